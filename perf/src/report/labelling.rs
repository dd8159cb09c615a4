//! Names for things that differ in few of their labels.

use std::collections::BTreeSet;

use super::scale::tick_text;
use crate::results::{Label, Labels};

/// What tells each of these from the others: the labels in which any two differ. Labels `case` and
/// `run` alone, where they do that by themselves.
pub fn distinguish(all: &[Labels]) -> Vec<String> {
    let names: BTreeSet<&String> = all.iter().flat_map(|labels| labels.0.keys()).collect();
    let differs = |name: &str| all.windows(2).any(|pair| pair[0].get(name) != pair[1].get(name));
    let mut telling: Vec<&str> = names.into_iter().map(String::as_str).filter(|name| differs(name)).collect();
    for enough in [&["case"][..], &["run", "case"]] {
        let names: BTreeSet<String> = all.iter().map(|labels| describe(labels, enough)).collect();
        if enough.iter().all(|name| telling.contains(name)) && names.len() == all.len() {
            telling = enough.to_vec();
            break;
        }
    }
    all.iter().map(|labels| describe(labels, &telling)).collect()
}

/// These labels of one thing, for people.
pub fn describe(labels: &Labels, names: &[&str]) -> String {
    let of = |name: &&str| labels.get(name).map(|value| phrase(name, value));
    names.iter().filter_map(of).collect::<Vec<_>>().join(", ")
}

/// All labels, the name of the case first.
pub fn describe_all(labels: &Labels) -> String {
    let mut names: Vec<&str> = labels.0.keys().map(String::as_str).collect();
    names.sort_by_key(|name| *name != "case");
    describe(labels, &names)
}

fn phrase(name: &str, value: &Label) -> String {
    let number = |divisor: f64| match value {
        Label::Number(value) => tick_text(value / divisor),
        other => other.to_string(),
    };
    let at_least = |least: f64| matches!(value, Label::Number(value) if *value >= least);
    match (name, value) {
        ("run" | "case" | "work" | "fabric" | "of" | "pattern" | "capture" | "side", _) => value.to_string(),
        ("beside", _) => format!("beside {value}"),
        ("guest_mib", _) if at_least(1024.0) => format!("guest {} GiB", number(1024.0)),
        ("guest_mib", _) => format!("guest {} MiB", number(1.0)),
        ("size_bytes", _) if at_least(1_048_576.0) => format!("{} MiB", number(1_048_576.0)),
        ("size_bytes", _) if at_least(1024.0) => format!("{} KiB", number(1024.0)),
        ("size_bytes", _) => format!("{} bytes", number(1.0)),
        ("content_mib", _) => format!("{} MiB with content", number(1.0)),
        ("dirty_pages", _) => format!("{} dirty pages", number(1.0)),
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
        assert_eq!(describe_all(&cases[0]), "a, 100 dirty pages, tcp, guest 8 GiB");
    }
}
