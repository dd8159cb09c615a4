//! Compares ways to hold a guest's output, on the same kind of set-up: a guest's tap in a bridge, and a
//! second tap in it as the client.
//!
//! - `ungated`: nothing holds, for comparison;
//! - `redirect`: Romulus's gate ([`romulus_host::gate`]);
//! - `plug`: the tap's ingress redirected to an ifb with the queueing discipline `plug`, as Remus does it;
//! - `nfqueue`: a rule of nftables in the bridge hands the packets to a queue of the kernel's, and a program
//!   gives its verdict when they are released.
//!
//! 40 times a second the guest stands still for a mark, and what came before the mark before it is released.
//! Apart from that, boundaries are looked at one by one: whether exactly what was sent before a mark leaves
//! with its release, also with two marks that are not acked.
//! A way that the kernel lacks is named with the cause, and the others are measured. Needs root, `ip` and `tc`
//! (Debian's iproute2) and `nft` (nftables). Everything is made in a network namespace that goes with the
//! process.
//!
//! `cargo run --release -p romulus-host --example gate_compare -- [--rounds N] [--seconds S] [--json FILE]`

#[path = "../gate_lab/mod.rs"]
mod gate_lab;

mod configuring;
mod depth;
mod load;
mod netlink;
mod nfqueue;
mod plug;
mod run;
mod table;
mod way;
mod world;

use std::time::Duration;

use load::Load;
use run::{Outcome, Pace};
use table::Table;
use way::Kind;

const USAGE: &str = "gate_compare [--rounds N] [--seconds S] [--json FILE]";

/// Boundaries that are looked at, for each way and load.
const MARKS: u64 = 50;

struct Settings {
    rounds: usize,
    length: Duration,
    json: Option<String>,
}

fn settings() -> Result<Settings, String> {
    let mut settings = Settings { rounds: 3, length: Duration::from_secs(2), json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{option} needs a value"))?;
        let number = || value.parse::<u32>().ok().filter(|number| (1..=1000).contains(number));
        let number = || number().ok_or_else(|| format!("{option} {value}: not a number from 1 to 1000"));
        match option.as_str() {
            "--rounds" => settings.rounds = number()? as usize,
            "--seconds" => settings.length = Duration::from_secs(number()?.into()),
            "--json" => settings.json = Some(value),
            _ => return Err(format!("unknown argument {option}")),
        }
    }
    Ok(settings)
}

fn measure(kind: Kind, load: Load, pace: Pace) -> Outcome {
    run::run(kind, load, pace).unwrap_or_else(|error| panic!("{}, which worked before: {error}", kind.name()))
}

fn main() {
    let settings = settings().unwrap_or_else(|error| {
        eprintln!("{error}\nusage: {USAGE}");
        std::process::exit(2);
    });
    gate_lab::enter_namespace();
    let mut table = Table::default();
    let held = find_and_look(&mut table);
    look_at_boundaries(&mut table, &held);
    let kinds: Vec<Kind> = [Kind::Ungated].into_iter().chain(held).collect();
    for round in 0..settings.rounds {
        for load in Load::ALL {
            // Each way begins once in a while.
            for turn in 0..kinds.len() {
                let kind = kinds[(round + turn) % kinds.len()];
                let outcome = measure(kind, load, Pace::Rate(settings.length));
                eprintln!("round {}, {}, {}: {}", round + 1, load.name(), kind.name(), outcome.in_short());
                table.add(kind, load, outcome);
            }
        }
    }
    print!("{table}");
    if let Some(file) = settings.json {
        let text = serde_json::to_string_pretty(&table.to_json(settings.length)).expect("plain values");
        std::fs::write(&file, text + "\n").unwrap_or_else(|error| panic!("writing {file}: {error}"));
    }
    if let Err(complaint) = table.verdict() {
        eprintln!("{complaint}");
        std::process::exit(1);
    }
}

/// The ways that this kernel has.
fn find_and_look(table: &mut Table) -> Vec<Kind> {
    let mut kinds = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.holds()) {
        let looked = depth::two_unacked(kind).and_then(|left| Ok((left, configuring::marks_us(kind)?)));
        match looked {
            Ok((left, configuring_us)) => {
                kinds.push(kind);
                table.looked(kind, left, configuring_us);
            }
            Err(cause) => table.lacking(kind, cause),
        }
    }
    kinds
}

fn look_at_boundaries(table: &mut Table, kinds: &[Kind]) {
    for load in Load::ALL {
        for kind in kinds {
            let outcome = measure(*kind, load, Pace::Boundaries(MARKS));
            let (load_name, name, checked) = (load.name(), kind.name(), outcome.epochs_checked);
            eprintln!(
                "boundaries, {load_name}, {name}: {checked} of {MARKS} seen, {} packets early",
                outcome.early
            );
            table.boundaries(*kind, load, outcome);
        }
    }
}
