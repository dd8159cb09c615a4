//! The file arbiter between processes: one winner a generation, also when processes are killed
//! in the middle of a swap.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use romulus_checkpoint::arbiter::file::FileArbiter;
use romulus_checkpoint::arbiter::{Arbiter, Ownership, Record, SwapOutcome, random_nonce};

const DIRECTORY: &str = "ROMULUS_TEST_ARBITER_DIRECTORY";
const GENERATIONS: &str = "ROMULUS_TEST_ARBITER_GENERATIONS";
const GUEST: &str = "vm";

/// The child, not a test of its own: swaps until the record has reached the generation asked,
/// printing what it won.
#[test]
fn worker() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let last: u64 = std::env::var(GENERATIONS).unwrap().parse().unwrap();
    let arbiter = FileArbiter::open(Path::new(&directory)).unwrap();
    loop {
        let Ok(found) = arbiter.read(GUEST) else { continue };
        let new = match &found {
            Some(record) if record.generation.0 >= last => return,
            Some(record) => {
                let ownership = Ownership::Owned { backup: format!("p{}", std::process::id()) };
                record.successor(ownership, random_nonce().unwrap())
            }
            None => Record::first_solo("a").unwrap(),
        };
        // A line in one write: a killed process leaves a whole line or none.
        if arbiter.swap(GUEST, found.as_ref(), &new) == SwapOutcome::Won {
            let line = format!("\nwon {} {}\n", new.generation, new.nonce);
            std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
    }
}

fn spawn(directory: &Path, generations: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(GENERATIONS, generations.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a child won, as it says so: generation and nonce. Ends with the child.
fn wins(child: &mut Child) -> impl Iterator<Item = (u64, u64)> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| {
        let (generation, nonce) = line.strip_prefix("won ")?.split_once(' ')?;
        Some((generation.parse().unwrap(), nonce.parse().unwrap()))
    })
}

fn check(won: Vec<(u64, u64)>, last: u64, may_be_missing: usize, directory: &Path) {
    let mut winners = BTreeMap::new();
    for (generation, nonce) in won {
        assert_eq!(winners.insert(generation, nonce), None, "generation {generation} was won twice");
    }
    let record = FileArbiter::open(directory).unwrap().read(GUEST).unwrap().unwrap();
    assert_eq!(record.generation.0, last, "a generation was skipped");
    let missing = (1..=last).filter(|generation| !winners.contains_key(generation)).count();
    assert!(missing <= may_be_missing, "{missing} generations have no winner");
    if let Some(nonce) = winners.get(&last) {
        assert_eq!(*nonce, record.nonce, "the record is not the last winner's");
    }
}

#[test]
fn i9_one_process_wins_each_generation() {
    let directory = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..4).map(|_| spawn(directory.path(), 60)).collect();
    let won = children.iter_mut().flat_map(wins).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    check(won, 60, 0, directory.path());
}

#[test]
fn i9_processes_killed_in_the_middle_leave_the_old_record_or_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let last = 150;
    let mut killed = 0;
    let mut won = Vec::new();
    for wins_before_kill in [1, 2, 5, 1, 3, 1, 4, 2] {
        let mut pair = [spawn(directory.path(), last), spawn(directory.path(), last)];
        let mut said = wins(&mut pair[0]);
        won.extend(said.by_ref().take(wins_before_kill));
        for child in &mut pair {
            child.kill().unwrap();
            killed += 1;
        }
        won.extend(said);
        won.extend(wins(&mut pair[1]));
        for child in &mut pair {
            child.wait().unwrap();
        }
    }
    let mut survivor = spawn(directory.path(), last);
    won.extend(wins(&mut survivor));
    assert!(survivor.wait().unwrap().success());
    check(won, last, killed, directory.path());
}

#[test]
fn i9_one_thread_wins_each_generation() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = FileArbiter::open(directory.path()).unwrap();
    assert_eq!(arbiter.swap(GUEST, None, &Record::first_solo("a").unwrap()), SwapOutcome::Won);
    for _ in 0..10 {
        let from = arbiter.read(GUEST).unwrap().unwrap();
        let race = || {
            let to = from.successor(Ownership::Ended, random_nonce().unwrap());
            arbiter.swap(GUEST, Some(&from), &to)
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(race)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let count = |wanted: fn(&SwapOutcome) -> bool| outcomes.iter().filter(|o| wanted(o)).count();
        assert_eq!(count(|outcome| *outcome == SwapOutcome::Won), 1, "{outcomes:?}");
        assert_eq!(count(|outcome| matches!(outcome, SwapOutcome::Lost(Some(_)))), 3, "{outcomes:?}");
    }
}
