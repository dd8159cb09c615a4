//! Names for things that differ in few of their labels.

use std::collections::BTreeSet;

use super::scale::tick_text;
use crate::results::{Label, Labels};

/// What tells each of these from the others: the labels in which any two differ. Labels `case` and
/// `run` alone, where they do that by themselves and leave none without a name.
pub fn distinguish(all: &[Labels]) -> Vec<String> {
    let names: BTreeSet<&String> = all.iter().flat_map(|labels| labels.0.keys()).collect();
    let differs = |name: &str| all.windows(2).any(|pair| pair[0].get(name) != pair[1].get(name));
    let mut telling: Vec<&str> = names.into_iter().map(String::as_str).filter(|name| differs(name)).collect();
    for enough in [&["case"][..], &["run", "case"]] {
        let names: BTreeSet<String> = all.iter().map(|labels| describe(labels, enough)).collect();
        let tells = names.len() == all.len() && !names.contains("");
        if tells && enough.iter().all(|name| telling.contains(name)) {
            telling = enough.to_vec();
            break;
        }
    }
    all.iter().map(|labels| describe(labels, &telling)).collect()
}

/// These labels of one thing, for people.
pub fn describe(labels: &Labels, names: &[&str]) -> String {
    // The case of a scenario that has but one says nothing.
    let telling = |name: &&&str| {
        **name != "case" || !matches!(labels.get("case"), Some(Label::Text(case)) if case == "only")
    };
    let of = |name: &&str| labels.get(name).map(|value| phrase(name, value));
    names.iter().filter(telling).filter_map(of).collect::<Vec<_>>().join(", ")
}

/// All labels, the name of the case first.
pub fn describe_all(labels: &Labels) -> String {
    let mut names: Vec<&str> = labels.0.keys().map(String::as_str).collect();
    names.sort_by_key(|name| *name != "case");
    describe(labels, &names)
}

/// A case's name in words: those of `epochs` are made of labels, as in `guest_mib=1024 load=100/epoch`.
pub fn case_in_words(case: &str) -> String {
    let parts: Option<Vec<_>> = case.split(' ').map(|part| part.split_once('=')).collect();
    let Some(parts) = parts else { return case.to_owned() };
    let words = parts.into_iter().map(|(name, value)| match (name, value.parse::<f64>()) {
        (_, Ok(number)) => phrase(name, &Label::Number(number)),
        ("pin", _) => format!("pinned {value}"),
        ("load", _) => load(value),
        _ => phrase(name, &Label::Text(value.to_owned())),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What people are told of a case, which begins with its name.
pub fn note_in_words(note: &str) -> String {
    match note.split_once(": ") {
        Some((case, rest)) => format!("{}: {rest}", case_in_words(case)),
        None => note.to_owned(),
    }
}

/// What a guest is to write: `100/epoch`, `20000/s`, `unlimited`.
fn load(value: &str) -> String {
    let number = |text: &str| text.parse().map_or_else(|_| text.to_owned(), tick_text);
    match value.split_once('/') {
        Some((pages, "epoch")) => format!("{} pages an epoch", number(pages)),
        Some((pages, "s")) => format!("{} pages/s", number(pages)),
        _ => format!("writes {value}"),
    }
}

fn phrase(name: &str, value: &Label) -> String {
    let number = |divisor: f64| match value {
        Label::Number(value) => tick_text(value / divisor),
        other => other.to_string().replace('_', " "),
    };
    let at_least = |least: f64| matches!(value, Label::Number(value) if *value >= least);
    let count = |one: &str, many: &str| match value {
        Label::Number(0.0) => format!("no {many}"),
        Label::Number(1.0) => format!("1 {one}"),
        _ => format!("{} {many}", number(1.0)),
    };
    match (name, value) {
        ("case", Label::Text(case)) => case_in_words(case),
        ("run" | "case" | "work" | "fabric" | "of" | "side", _) => value.to_string(),
        ("beside", _) => format!("beside {value}"),
        ("pattern", _) => format!("pattern {}", number(1.0)),
        ("capture", Label::Text(way)) if way == "sent_now" => "staged capture, sent at once".into(),
        ("capture", _) => format!("{} capture", number(1.0)),
        ("tracking", Label::Text(way)) if way == "reported" => "writes told by the guest".into(),
        ("tracking", Label::Text(way)) if way == "write_protect" => "writes tracked by the kernel".into(),
        ("find_max", Label::Flag(sought)) => {
            if *sought { "highest rate sought" } else { "rate given" }.into()
        }
        ("copy_workers", _) => count("copy worker", "copy workers"),
        ("writers", _) => count("writer", "writers"),
        ("streams", _) => count("stream", "streams"),
        ("threads", _) => count("thread", "threads"),
        ("guest_mib", _) if at_least(1_048_576.0) => format!("guest of {} TiB", number(1_048_576.0)),
        ("guest_mib", _) if at_least(1024.0) => format!("guest of {} GiB", number(1024.0)),
        ("guest_mib", _) => format!("guest of {} MiB", number(1.0)),
        ("size_bytes", _) if at_least(1_048_576.0) => format!("{} MiB", number(1_048_576.0)),
        ("size_bytes", _) if at_least(1024.0) => format!("{} KiB", number(1024.0)),
        ("size_bytes", _) => format!("{} bytes", number(1.0)),
        ("state_kib", _) => format!("state of {} KiB", number(1.0)),
        ("content_mib", _) => format!("{} MiB with content", number(1.0)),
        ("dirty_mib_per_second", _) => format!("{} MiB/s rewritten", number(1.0)),
        ("dirty_pages", _) => count("dirty page", "dirty pages"),
        ("pages_per_second", _) => format!("{} pages/s", number(1.0)),
        ("interval_ms", _) => format!("every {} ms", number(1.0)),
        ("rate", _) => format!("{} checkpoints/s", number(1.0)),
        (_, Label::Flag(true)) => name.replace('_', " "),
        (_, Label::Flag(false)) => format!("not {}", name.replace('_', " ")),
        _ => format!("{} {}", name.replace('_', " "), number(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_named() {
        let base = Labels::default().with("fabric", "tcp").with("guest_mib", 8192u64);
        let all = [base.clone().with("dirty_pages", 100u64), base.clone().with("dirty_pages", 10_000u64)];
        assert_eq!(distinguish(&all), ["100 dirty pages", "10,000 dirty pages"]);
        assert_eq!(distinguish(&all[..1]), [""]);
        let cases = [all[0].clone().with("case", "a"), all[1].clone().with("case", "b")];
        assert_eq!(distinguish(&cases), ["a", "b"]);
        let runs = [
            base.clone().with("case", "a").with("run", "x"),
            base.clone().with("case", "a").with("run", "y"),
        ];
        assert_eq!(distinguish(&runs), ["x", "y"]);
        let nameless = [
            base.clone().with("case", "only").with("run", "aims"),
            base.clone().with("case", "a").with("run", "size"),
        ];
        assert_eq!(distinguish(&nameless), ["aims", "size, a"]);
        assert_eq!(describe_all(&cases[0]), "a, 100 dirty pages, tcp, guest of 8 GiB");
    }

    #[test]
    fn names_of_cases_are_read_out() {
        for (case, words) in [
            ("load=100/epoch", "100 pages an epoch"),
            ("load=20000/s interval_ms=33.333", "20,000 pages/s, every 33.3 ms"),
            ("guest_mib=1048576", "guest of 1 TiB"),
            ("guest_mib=512 load=unlimited", "guest of 512 MiB, writes unlimited"),
            ("capture=sent_now copy_workers=0", "staged capture, sent at once, no copy workers"),
            ("capture=direct copy_workers=1", "direct capture, 1 copy worker"),
            ("pattern=hot_set", "pattern hot set"),
            ("pin=capture=0,committer=1", "pinned capture=0,committer=1"),
            ("40 checkpoints/s, redis", "40 checkpoints/s, redis"),
        ] {
            assert_eq!(case_in_words(case), words);
            assert_eq!(describe_all(&Labels::default().with("case", case)), words);
        }
        assert_eq!(describe_all(&Labels::default().with("case", "only").with("sparse", true)), "sparse");
        assert_eq!(note_in_words("load=10/epoch: 7 throttled: x"), "10 pages an epoch: 7 throttled: x");
        assert_eq!(note_in_words("colo: did not work"), "colo: did not work");
    }
}
