//! Figures side by side: a row for each case, a column for each figure and side. What stands beside a
//! figure is a ratio in its cell, and a column or a line of its own.

use super::scale::tick_text;
use super::table::{Cell, Table};
use super::wording::{head, ratio, spread, with_unit, words};
use crate::results::{Beside, Measurement};

/// With more columns than this, those of one side each (`primary`, `backup`) make a table of their own.
const WIDE: usize = 12;

/// A figure's place: its case's row, and what its column is of beside its name.
pub struct Entry<'a> {
    pub case: String,
    pub side: Option<String>,
    pub figure: &'a Measurement,
}

impl Entry<'_> {
    /// Whether both stand in one column.
    pub fn is_figure_of(&self, other: &Entry<'_>) -> bool {
        self.figure.name == other.figure.name && self.side == other.side
    }
}

/// A column: the figures of each case, most often one.
struct Column<'a> {
    name: &'a str,
    side: Option<&'a str>,
    /// Where all have the same.
    unit: Option<&'a str>,
    cells: Vec<Vec<&'a Measurement>>,
}

impl<'a> Column<'a> {
    fn of(first: &'a Entry<'a>, entries: &'a [Entry<'a>], cases: &[&str]) -> Self {
        let mine: Vec<&Entry<'_>> = entries.iter().filter(|entry| entry.is_figure_of(first)).collect();
        let of_case =
            |case: &&str| mine.iter().filter(|entry| entry.case == *case).map(|entry| entry.figure).collect();
        let unit = first.figure.unit.as_str();
        Self {
            name: &first.figure.name,
            side: first.side.as_deref(),
            unit: mine.iter().all(|entry| entry.figure.unit == unit).then_some(unit),
            cells: cases.iter().map(of_case).collect(),
        }
    }

    fn head(&self) -> String {
        head(self.name, self.unit, self.side)
    }

    /// Names of what stands beside its figures.
    fn besides(&self) -> Vec<&'a str> {
        let mut names = Vec::new();
        for beside in self.cells.iter().flatten().flat_map(|figure| both(figure)) {
            if !names.contains(&beside.name.as_str()) {
                names.push(beside.name.as_str());
            }
        }
        names
    }

    fn cell(&self, case: usize) -> Cell {
        let one = |figure: &&Measurement| {
            let value = tick_text(figure.value.median);
            self.unit.map_or_else(|| with_unit(&value, &figure.unit), |_| value.clone())
        };
        let names_many = self.besides().len() > 1;
        let ratio_of = |beside: &Beside| {
            let (ratio, range) = ratio(beside.ratio, beside.ratio_range);
            let of = if names_many { format!(" of {}", beside.name) } else { String::new() };
            let range = range.map_or_else(String::new, |range| format!(", {range}"));
            format!("{ratio}×{of}{range}")
        };
        let asides = self.cells[case].iter().flat_map(|figure| {
            spread(figure).into_iter().chain(both(figure).map(&ratio_of)).collect::<Vec<_>>()
        });
        Cell {
            value: self.cells[case].iter().map(one).collect::<Vec<_>>().join(" / "),
            aside: asides.collect::<Vec<_>>().join("; "),
        }
    }

    /// Of each case what of this name stands beside its figure, and in which unit.
    fn beside(&self, name: &str) -> Vec<Option<(f64, &'a str)>> {
        let of = |figures: &Vec<&'a Measurement>| {
            let found = figures.iter().find_map(|figure| {
                let beside = both(figure).find(|beside| beside.name == name);
                beside.map(|beside| (beside.value, figure.unit.as_str()))
            });
            // Of two figures in a cell only one could be told: then what stands beside them is told with them.
            found.filter(|_| figures.len() == 1)
        };
        self.cells.iter().map(of).collect()
    }

    /// Whether its figures are these values.
    fn holds(&self, values: &[Option<(f64, &str)>]) -> bool {
        let is = |(figures, value): (&Vec<&Measurement>, &Option<(f64, &str)>)| match (&figures[..], value) {
            (_, None) => true,
            ([figure], Some((value, unit))) => figure.unit == *unit && near(figure.value.median, *value),
            _ => false,
        };
        self.cells.iter().zip(values).all(is)
    }
}

fn both(figure: &Measurement) -> impl Iterator<Item = &Beside> {
    figure.limit.iter().chain(&figure.peer)
}

fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-9 * one.abs().max(other.abs())
}

/// A column as it is written.
struct Written {
    head: String,
    /// With its unit, for where it is said in a line.
    said: String,
    cells: Vec<Cell>,
    sided: bool,
}

/// These figures; all cases of them.
pub fn tables(entries: &[Entry<'_>]) -> Vec<Table> {
    let mut cases: Vec<&str> = Vec::new();
    let mut columns: Vec<Column<'_>> = Vec::new();
    for entry in entries {
        if !cases.contains(&entry.case.as_str()) {
            cases.push(&entry.case);
        }
    }
    for entry in entries {
        let known =
            |column: &Column<'_>| column.name == entry.figure.name && column.side == entry.side.as_deref();
        if !columns.iter().any(known) {
            columns.push(Column::of(entry, entries, &cases));
        }
    }
    let (beside, below) = besides(&columns);
    let mut all: Vec<Written> = Vec::new();
    for (at, column) in columns.iter().enumerate() {
        let cells: Vec<Cell> = (0..cases.len()).map(|case| column.cell(case)).collect();
        all.push(Written {
            head: column.head(),
            said: said(column, &cells),
            cells,
            sided: column.side.is_some(),
        });
        all.extend(beside.iter().filter(|(after, _)| *after == at).map(|(_, head)| head.written()));
    }
    finish(&cases, all, below)
}

/// A column, named and with its value where a line is to say it.
fn said(column: &Column<'_>, cells: &[Cell]) -> String {
    let (name, _) = words(column.name, column.unit.unwrap_or_default());
    let side = column.side.map_or_else(String::new, |side| format!(", {side}"));
    let value = cells.first().map_or("", |cell| &cell.value);
    let unit = column.unit.and_then(|unit| words(column.name, unit).1);
    let unit = unit.map_or_else(String::new, |unit| format!(" {unit}"));
    format!("{name}{side} {value}{unit}")
}

/// A column of what stands beside figures.
struct BesideColumn {
    head: String,
    values: Vec<String>,
}

impl BesideColumn {
    fn written(&self) -> Written {
        let cells: Vec<Cell> = self.values.iter().map(|value| Cell::of(value.clone())).collect();
        let said = format!("{} {}", self.head, self.values.first().map_or("", String::as_str));
        Written { head: self.head.clone(), said, cells, sided: false }
    }

    fn of(name: String, values: &[Option<(f64, &str)>]) -> Self {
        let units: Vec<&str> = values.iter().flatten().map(|(_, unit)| *unit).collect();
        let unit = units.first().copied().filter(|first| units.iter().all(|unit| unit == first));
        let text = |value: &Option<(f64, &str)>| match (value, unit) {
            (None, _) => String::new(),
            (Some((value, _)), Some(_)) => tick_text(*value),
            (Some((value, unit)), None) => with_unit(&tick_text(*value), unit),
        };
        let head = match unit {
            Some(unit) => head_of_beside(&name, unit),
            None => name,
        };
        Self { head, values: values.iter().map(text).collect() }
    }
}

fn head_of_beside(name: &str, unit: &str) -> String {
    words("", unit).1.map_or_else(|| name.to_owned(), |unit| format!("{name}, {unit}"))
}

/// Columns of what stands beside figures, each with the column that it follows, and the lines that say
/// what ratios are to.
fn besides(columns: &[Column<'_>]) -> (Vec<(usize, BesideColumn)>, Vec<String>) {
    let mut names: Vec<&str> = Vec::new();
    for name in columns.iter().flat_map(Column::besides) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let (mut found, mut lines) = (Vec::new(), Vec::new());
    for name in names {
        let users: Vec<usize> =
            (0..columns.len()).filter(|at| columns[*at].besides().contains(&name)).collect();
        let values: Vec<_> = users.iter().map(|at| columns[*at].beside(name)).collect();
        let mut which = String::new();
        let together = together(&values);
        let same = together.as_ref().and_then(|values| columns.iter().find(|column| column.holds(values)));
        match (same, &together) {
            (Some(column), _) => which = format!(", the column \"{}\"", column.head()),
            (None, Some(values)) if users.len() > 1 => {
                found.push((users[users.len() - 1], BesideColumn::of(name.to_owned(), values)));
            }
            _ => found.extend(users.iter().zip(&values).map(|(at, values)| {
                let figure = words(columns[*at].name, columns[*at].unit.unwrap_or_default()).0;
                (*at, BesideColumn::of(format!("{figure}: {name}"), values))
            })),
        }
        let figures: Vec<String> = users
            .iter()
            .map(|at| words(columns[*at].name, columns[*at].unit.unwrap_or_default()).0)
            .collect();
        lines.push(format!("× in {}: the ratio to {name}{which}.", and(&figures)));
    }
    (found, lines)
}

/// One value for each case, where all of these agree.
fn together<'a>(all: &[Vec<Option<(f64, &'a str)>>]) -> Option<Vec<Option<(f64, &'a str)>>> {
    let cases = all.first().map_or(0, Vec::len);
    let of_case = |case: usize| {
        let mut there = all.iter().filter_map(|values| values[case]);
        let first = there.next();
        let agrees =
            there.all(|(value, unit)| first.is_some_and(|first| near(first.0, value) && first.1 == unit));
        agrees.then_some(first)
    };
    (0..cases).map(of_case).collect()
}

fn and(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Says once what is the same in all rows, and parts what would be too wide.
fn finish(cases: &[&str], all: Vec<Written>, below: Vec<String>) -> Vec<Table> {
    let constant = |column: &Written| {
        let first = &column.cells[0];
        cases.len() > 1
            && first.aside.is_empty()
            && !first.value.is_empty()
            && column.cells.iter().all(|cell| cell == first)
    };
    let (same, differing): (Vec<_>, Vec<_>) = all.into_iter().partition(constant);
    let same: Vec<String> = same.into_iter().map(|column| column.said).collect();
    let above = (!same.is_empty()).then(|| format!("The same in all rows: {}.", same.join(", ")));
    let parted = differing.len() > WIDE;
    let (sided, main): (Vec<_>, Vec<_>) = differing.into_iter().partition(|column| parted && column.sided);
    let table = |columns: Vec<Written>| {
        let row = |(at, case): (usize, &&str)| {
            let cells = columns.iter().map(|column| column.cells[at].clone());
            [Cell::of((*case).to_owned())].into_iter().chain(cells).collect()
        };
        Table {
            head: [String::new()]
                .into_iter()
                .chain(columns.iter().map(|column| column.head.clone()))
                .collect(),
            rows: cases.iter().enumerate().map(row).collect(),
            ..Table::default()
        }
    };
    let mut tables = vec![Table { above, below, ..table(main) }];
    if !sided.is_empty() {
        tables.push(table(sided));
    }
    tables
}
