//! Which figures of a run stand where: few of them one below the other, many side by side, a row for
//! each case.

use super::labelling::{describe, describe_all};
use super::scale::tick_text;
use super::side_by_side::{self, Entry};
use super::table::{Cell, Table};
use super::wording::{head, ratio, spread};
use crate::results::{Beside, Label, Labels, Measurement, Run};

/// More figures than this are set side by side.
const MANY: usize = 24;

/// All figures of a run.
pub fn tables(run: &Run) -> Vec<Table> {
    let all: Vec<&Measurement> = run.measurements.iter().collect();
    match all.len() {
        0 => Vec::new(),
        few if few <= MANY => vec![by_figure(&all, &shared(&all))],
        _ => by_case(&all),
    }
}

/// The labels that all figures of a run have in common, in words.
pub fn common(run: &Run) -> String {
    describe_all(&shared(&run.measurements.iter().collect::<Vec<_>>()))
}

fn shared(figures: &[&Measurement]) -> Labels {
    let Some((first, rest)) = figures.split_first() else { return Labels::default() };
    let everywhere =
        |name: &str, value: &Label| rest.iter().all(|figure| figure.labels.get(name) == Some(value));
    let labels = first.labels.0.iter().filter(|(name, value)| everywhere(name, value));
    Labels(labels.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The labels of a figure that not all have, without those that repeat another.
fn telling<'a>(figure: &'a Measurement, shared: &Labels) -> Vec<&'a str> {
    let names = figure.labels.0.keys().map(String::as_str);
    names
        .filter(|name| shared.get(name).is_none())
        .filter(|name| *name != "interval_ms" || figure.labels.get("rate").is_none())
        .collect()
}

fn by_figure(figures: &[&Measurement], shared: &Labels) -> Table {
    let cased = are_told_apart_by_case(figures);
    let limits = Besides::of(figures.iter().filter_map(|figure| figure.limit.as_ref()));
    let peers = Besides::of(figures.iter().filter_map(|figure| figure.peer.as_ref()));
    let row = |figure: &&Measurement| {
        let mut names = telling(figure, shared);
        names.retain(|name| !cased || ["case", "side"].contains(name));
        let of = describe(&figure.labels, &names);
        let value = Cell { value: tick_text(figure.value.median), aside: spread(figure).unwrap_or_default() };
        let mut cells = vec![Cell::of(head(&figure.name, Some(&figure.unit), None)), Cell::of(of), value];
        cells.extend(limits.cells(figure.limit.as_ref()));
        cells.extend(peers.cells(figure.peer.as_ref()));
        cells
    };
    let names = ["figure", "of", "median (range)"].map(str::to_owned).into_iter();
    let names = names.chain(limits.heads("limit")).chain(peers.heads("peer"));
    let mut table =
        Table { head: names.collect(), rows: figures.iter().map(row).collect(), ..Table::default() };
    if table.rows.iter().all(|row| row[1].value.is_empty()) {
        table.head.remove(1);
        table.rows.iter_mut().for_each(|row| drop(row.remove(1)));
    }
    table
}

/// What stands beside the figures of a table that has a row for each.
struct Besides<'a> {
    there: bool,
    /// What all of them are, which is then said once.
    name: Option<&'a str>,
}

impl<'a> Besides<'a> {
    fn of(mut all: impl Iterator<Item = &'a Beside>) -> Self {
        let Some(first) = all.next() else { return Self { there: false, name: None } };
        Self { there: true, name: all.all(|beside| beside.name == first.name).then_some(&first.name) }
    }

    fn heads(&self, kind: &str) -> Vec<String> {
        match (self.there, self.name) {
            (false, _) => Vec::new(),
            (true, name) => vec![name.unwrap_or(kind).to_owned(), "ratio".to_owned()],
        }
    }

    fn cells(&self, beside: Option<&Beside>) -> Vec<Cell> {
        match (self.there, beside) {
            (false, _) => Vec::new(),
            (true, None) => vec![Cell::default(), Cell::default()],
            (true, Some(beside)) => {
                let value = tick_text(beside.value);
                let what = if self.name.is_some() { value } else { format!("{}: {value}", beside.name) };
                let (ratio, range) = ratio(beside.ratio, beside.ratio_range);
                vec![Cell::of(what), Cell { value: ratio, aside: range.unwrap_or_default() }]
            }
        }
    }
}

/// Whether the names of their cases (and their sides) suffice: then the other labels repeat them.
fn are_told_apart_by_case(figures: &[&Measurement]) -> bool {
    let key = |figure: &Measurement| {
        let side = figure.labels.get("side").map(Label::to_string);
        (figure.name.clone(), figure.labels.get("case").map(Label::to_string), side)
    };
    let keys: std::collections::BTreeSet<_> = figures.iter().map(|figure| key(figure)).collect();
    keys.len() == figures.len() && figures.iter().all(|figure| figure.labels.get("case").is_some())
}

fn by_case(all: &[&Measurement]) -> Vec<Table> {
    let whole = shared(all);
    let cased = are_told_apart_by_case(all);
    let mut tables = Vec::new();
    for group in related(entries(all, &whole, cased)) {
        let figures: Vec<&Measurement> = group.iter().map(|entry| entry.figure).collect();
        let mine = shared(&figures);
        let one_case = group.iter().all(|entry| entry.case == group[0].case);
        let mut group_tables = match one_case {
            true => vec![by_figure(&figures, &mine)],
            false => side_by_side::tables(&entries(&figures, &mine, cased)),
        };
        // What the other groups have not is said above this one.
        let own: Vec<&str> =
            telling(group[0].figure, &whole).into_iter().filter(|name| mine.get(name).is_some()).collect();
        if !own.is_empty() {
            let own = format!("Of these: {}.", describe(&mine, &own));
            let above = group_tables[0].above.take();
            group_tables[0].above = Some(above.map_or_else(|| own.clone(), |above| format!("{own} {above}")));
        }
        tables.extend(group_tables);
    }
    tables
}

fn entries<'a>(figures: &[&'a Measurement], shared: &Labels, cased: bool) -> Vec<Entry<'a>> {
    let entry = |figure: &&'a Measurement| {
        let mut names = telling(figure, shared);
        names.retain(|name| *name != "side" && (!cased || *name == "case"));
        let side = figure.labels.get("side").filter(|_| shared.get("side").is_none());
        Entry { case: describe(&figure.labels, &names), side: side.map(Label::to_string), figure }
    };
    figures.iter().map(entry).collect()
}

/// Cases that have no figure in common (a takeover beside rates of checkpoints) are better apart than in
/// one table that is half empty.
fn related(entries: Vec<Entry<'_>>) -> Vec<Vec<Entry<'_>>> {
    let mut groups: Vec<usize> = (0..entries.len()).collect();
    for at in 0..entries.len() {
        for before in 0..at {
            let (one, other) = (&entries[before], &entries[at]);
            if one.case == other.case || one.is_figure_of(other) {
                let (kept, joined) = (groups[before].min(groups[at]), groups[before].max(groups[at]));
                groups.iter_mut().filter(|group| **group == joined).for_each(|group| *group = kept);
            }
        }
    }
    let mut found: Vec<(usize, Vec<Entry<'_>>)> = Vec::new();
    for (group, entry) in groups.into_iter().zip(entries) {
        match found.iter_mut().find(|(known, _)| *known == group) {
            Some((_, all)) => all.push(entry),
            None => found.push((group, vec![entry])),
        }
    }
    found.into_iter().map(|(_, all)| all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Better, RunClock, Sampled};

    /// A run of `epochs` as it is written, all values different.
    fn epochs(cases: u64) -> Run {
        let mut run = RunClock::start().run("epochs", &()).unwrap();
        for case in 1..=cases {
            let base = 100_000.0 + 1000.0 * case as f64;
            let labels = Labels::default()
                .with("case", &*format!("load={}/epoch", 10 * case))
                .with("dirty_pages", 10 * case)
                .with("guest_mib", 1024u64);
            let lower = |name: &str, unit: &str, value: f64| {
                Measurement::single(name, &labels, unit, Better::Lower, base + value)
            };
            let memcpy = |value: f64| Beside::single("memcpy of the same pages", base + 50.0, base + value);
            run.measurements.extend([
                lower("checkpoints_per_second", "1/s", 1.0),
                lower("pause_p50_us", "us", 2.0).with_limit(memcpy(2.0)),
                lower("pause_p99_us", "us", 7003.0).with_limit(memcpy(7003.0)),
                Measurement::new(
                    "memcpy_us",
                    &labels,
                    "us",
                    Better::Lower,
                    Sampled::of([base + 40.0, base + 50.0, base + 60.0]),
                ),
                Measurement::single("bytes_per_dirty_byte", &labels, "1", Better::Lower, 1.02),
            ]);
            for (at, side) in ["primary", "backup", "guest"].into_iter().enumerate() {
                let labels = labels.clone().with("side", side);
                let per = |name: &str, unit: &str, value: f64| {
                    Measurement::single(name, &labels, unit, Better::Lower, base + value + at as f64)
                };
                run.measurements
                    .extend([per("cpu_s_per_gib", "s/GiB", 10.0), per("cpu_us_per_epoch", "us", 20.0)]);
            }
        }
        run
    }

    /// Every number of every figure of a run, as it is to be written.
    fn numbers(run: &Run) -> Vec<String> {
        let mut all = Vec::new();
        for figure in &run.measurements {
            all.push(tick_text(figure.value.median));
            all.extend(spread(figure));
            for beside in [&figure.limit, &figure.peer].into_iter().flatten() {
                let (ratio, range) = ratio(beside.ratio, beside.ratio_range);
                all.extend([tick_text(beside.value), ratio]);
                all.extend(range);
            }
        }
        all
    }

    fn all_are_written(run: &Run) {
        let tables = tables(run);
        for text in [
            tables.iter().map(Table::markdown).collect::<String>(),
            tables.iter().map(Table::html).collect::<String>(),
        ] {
            for number in numbers(run) {
                assert!(text.contains(&number), "{number} is lost:\n{text}");
            }
        }
    }

    #[test]
    fn a_case_is_a_row_with_the_sides_in_columns_and_no_figure_is_lost() {
        let run = epochs(3);
        all_are_written(&run);
        let tables = tables(&run);
        let [table] = &tables[..] else { panic!("{} tables", tables.len()) };
        assert_eq!(
            table.head,
            [
                "",
                "checkpoints per second",
                "pause p50, us",
                "pause p99, us",
                "memcpy, us",
                "CPU s per GiB, primary",
                "CPU us per epoch, primary",
                "CPU s per GiB, backup",
                "CPU us per epoch, backup",
                "CPU s per GiB, guest",
                "CPU us per epoch, guest"
            ]
        );
        let text = table.markdown();
        assert!(text.contains("| 20 pages an epoch | 102,001 | 102,002 (1.00×) | 109,003 (1.07×) | 102,050 (102,040 to 102,060) |"), "{text}");
        assert!(text.contains("The same in all rows: bytes per dirty byte 1.02."), "{text}");
        assert!(
            text.contains(
                "× in pause p50 and pause p99: the ratio to memcpy of the same pages, the column \"memcpy, us\"."
            ),
            "{text}"
        );
        assert_eq!(text.matches("memcpy of the same pages").count(), 1, "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with('|')).count(), 2 + 3);
    }

    #[test]
    fn few_figures_and_those_of_one_case_stand_one_below_the_other() {
        let mut run = epochs(1);
        run.measurements[0].peer = Beside::paired("xl remus", &[(4.0, 2.5), (4.0, 2.0)]);
        all_are_written(&run);
        let text = tables(&run)[0].markdown();
        assert!(
            text.starts_with(
                "| figure | of | median (range) | memcpy of the same pages | ratio | xl remus | ratio |\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("| checkpoints per second |  | 101,001 |  |  | 2.25 | 1.80 (1.60 to 2.00) |"),
            "{text}"
        );
        assert!(text.contains("| pause p50, us |  | 101,002 | 101,050 | 1.00 |  |  |"), "{text}");
        assert!(text.contains("| CPU s per GiB | backup | 101,011 |  |  |  |  |"), "{text}");
        assert_eq!(common(&run), "10 pages an epoch, 10 dirty pages, guest of 1 GiB");
    }

    #[test]
    fn figures_of_the_same_case_and_name_are_both_kept() {
        let mut run = epochs(3);
        let mut again = run.measurements[0].clone();
        again.value = Sampled::of([77_777.0]);
        run.measurements.push(again);
        all_are_written(&run);
        // Told apart by a label that the case's name says nothing of.
        let last = run.measurements.len() - 1;
        run.measurements[last].labels = run.measurements[last].labels.clone().with("threads", 2u64);
        all_are_written(&run);
    }

    #[test]
    fn cases_without_a_figure_in_common_have_tables_of_their_own() {
        let mut run = RunClock::start().run("guest", &()).unwrap();
        for (work, unit) in [("redis", "commands/s"), ("compile", "files/s")] {
            for rate in 1..=10_u64 {
                let labels =
                    Labels::default().with("work", work).with("rate", rate).with("interval_ms", 1000 / rate);
                let value = 10.0 * rate as f64;
                let pairs = [(value, 2.0 * value), (value + 2.0, 2.0 * value)];
                let work = Measurement::new(
                    "work_rate",
                    &labels,
                    unit,
                    Better::Higher,
                    Sampled::of(pairs.iter().map(|pair| pair.0)),
                );
                run.measurements.push(work.with_peer(Beside::paired("unprotected", &pairs)));
                let late = Measurement::single(
                    "late_epochs_percent",
                    &labels,
                    "%",
                    Better::Lower,
                    0.25 * rate as f64,
                );
                run.measurements.push(late);
            }
        }
        let labels = Labels::default().with("work", "redis").with("rate", 40u64);
        run.measurements.push(Measurement::single("failover_total_ms", &labels, "ms", Better::Lower, 272.0));
        all_are_written(&run);
        let tables = tables(&run);
        assert_eq!(tables.len(), 2);
        assert_eq!(tables[0].head, ["", "work rate", "work rate: unprotected", "late epochs, %"]);
        let text = tables[0].markdown();
        assert!(
            text.contains("| 3 checkpoints/s, redis | 31 commands/s (30 to 32; 0.52×, 0.50 to 0.53) | 60 commands/s | 0.75 |"),
            "{text}"
        );
        assert!(text.contains("× in work rate: the ratio to unprotected."), "{text}");
        let text = tables[1].markdown();
        assert!(
            text.starts_with("Of these: 40 checkpoints/s, redis.\n\n| figure | median (range) |\n"),
            "{text}"
        );
        assert!(text.contains("| failover total, ms | 272 |"), "{text}");
    }
}
