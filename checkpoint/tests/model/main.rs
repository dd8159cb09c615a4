//! Exhaustive search on small configurations. With all rules of docs/architecture.md no
//! reachable state breaks an invariant; with a clause left out a counterexample is found.
//!
//! `cargo test --release -p romulus-checkpoint --test model`; with `ROMULUS_MODEL=large` larger
//! configurations as well (minutes, and several GiB). `--nocapture` prints sizes and counterexamples.

mod arbiter;
mod production;
mod replication;
mod rules;
mod sides;
mod slots;
mod spelled;

use arbiter::{Arbiter, Clause, GUARDED, TWO_IMAGES};
use production::{ProductionBackup, ProductionPrimary};
use replication::Replication;
use rules::Rule::{self, *};
use rules::{Config, SMALL};
use sides::{BackupSide, PrimarySide};
use slots::{Check, Slots};
use spelled::{SpelledBackup, SpelledPrimary};
use stateright::{Checker, HasDiscoveries, Model};

/// No reachable state breaks a property, and what should be reachable is.
fn holds<P, B>(config: Config)
where
    P: PrimarySide + Send + Sync + 'static,
    B: BackupSide + Send + Sync + 'static,
{
    let begin = std::time::Instant::now();
    let checker = Replication::<P, B>::new(config).checker().threads(1).spawn_bfs().join();
    println!("{config:?}: {} states, {:?}", checker.unique_state_count(), begin.elapsed());
    checker.assert_properties();
}

/// The shortest way to break an invariant without these clauses.
fn counterexample(config: Config) -> Option<String> {
    let model = Replication::<SpelledPrimary, SpelledBackup>::new(config);
    let checker = model.checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries().into_iter().find(|(name, _)| name.starts_with("I2"));
    let found = found.map(|(_, path)| format!("{:?}", path.into_actions()));
    println!("without {:?}: {} states: {found:?}\n", config.without, checker.unique_state_count());
    found
}

#[track_caller]
fn needed(without: &'static [Rule]) {
    assert!(counterexample(Config { without, ..SMALL }).is_some(), "nothing breaks without {without:?}");
}

#[test]
fn i2_i3_the_smallest_configuration_holds() {
    holds::<SpelledPrimary, SpelledBackup>(Config { placements: 2, homings: 1, ..SMALL });
    holds::<ProductionPrimary, ProductionBackup>(Config { placements: 2, ..SMALL });
    holds::<ProductionPrimary, ProductionBackup>(Config { placements: 2, copy_only: true, ..SMALL });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn i2_i3_the_rules_hold() {
    holds::<SpelledPrimary, SpelledBackup>(SMALL);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn i2_i3_the_production_code_holds() {
    holds::<ProductionPrimary, ProductionBackup>(SMALL);
    holds::<ProductionPrimary, ProductionBackup>(Config { copy_only: true, ..SMALL });
    let config = Config { takeover: false, ..SMALL };
    holds::<ProductionPrimary, ProductionBackup>(Config { placements: 4, losses: 2, homings: 3, ..config });
    holds::<ProductionPrimary, ProductionBackup>(Config { pages: 3, spares: 4, ..config });
    holds::<ProductionPrimary, ProductionBackup>(Config { pages: 3, depth: 3, homings: 1, ..config });
    holds::<ProductionPrimary, ProductionBackup>(Config { spares: 1, depth: 1, placements: 5, ..config });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn i2_i3_larger_configurations_hold_when_asked_for() {
    if std::env::var_os("ROMULUS_MODEL").is_none_or(|size| size != "large") {
        return;
    }
    let config = Config { takeover: false, ..SMALL };
    for arbiter in [Arbiter { guest_states: 2, swaps: 5, ..GUARDED }, Arbiter { swaps: 4, ..TWO_IMAGES }] {
        assert_eq!(broken(arbiter), [""; 0]);
    }
    holds::<SpelledPrimary, SpelledBackup>(Config { placements: 4, ..config });
    holds::<SpelledPrimary, SpelledBackup>(Config { early: 2, ..config });
    holds::<SpelledPrimary, SpelledBackup>(Config { without: &[HomingOfTheNewest], ..config });
    holds::<SpelledPrimary, SpelledBackup>(Config { without: &[HomeOfNoUnackedTarget], ..config });
    holds::<ProductionPrimary, ProductionBackup>(Config { placements: 5, losses: 2, homings: 3, ..config });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_1_each_clause_is_needed() {
    for clause in
        [&[MapIsUsed], &[HomingsAreApplied], &[UnackedIsUsed], &[FirstEpochIsWhole], &[HomingTargetIsUsed]]
    {
        needed(clause);
    }
    // A page that comes back to the source of a homing that it had left: one epoch more.
    let config = Config { pages: 1, placements: 4, losses: 0, ..SMALL };
    assert!(counterexample(config).is_none());
    assert!(counterexample(Config { without: &[HomingSourceIsUsed], ..config }).is_some());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_2_is_needed() {
    needed(&[RoundsAreAcked]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_3_each_check_is_needed() {
    needed(&[HomingsInSequence]);
    let search = |without| Slots { slots: 3, homings: 2, without }.checker().threads(1).spawn_bfs().join();
    let checker = search(None);
    println!("slots: {} states", checker.unique_state_count());
    checker.assert_properties();
    for check in Check::ALL {
        let checker = search(Some(check));
        let path = checker.discovery("I2: each page is where the map says");
        println!("without {check:?}: {:?}\n", path.expect("breaks").into_actions());
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_4_each_clause_is_needed() {
    for clause in [&[HomeFollowsCommit], &[NoHomingUnasked], &[HomeWaitsForCommit]] {
        needed(clause);
    }
    // Either of these two is enough while Homes wait for the Commits before them (the larger
    // configurations show it); both are kept.
    needed(&[HomingOfTheNewest, HomeOfNoUnackedTarget]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_5_each_clause_is_needed() {
    for clause in [
        &[SupersededIsDropped],
        &[OneCopyToATarget],
        &[CommitCancelsCopies],
        &[HWaitsForCopies],
        &[CopiesInSequence],
    ] {
        needed(clause);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rules_6_7_8_and_the_fence_are_needed() {
    for clause in [&[AckIsAtomic], &[EnoughSlots], &[CommitIsNext], &[CommitIsFenced]] {
        needed(clause);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_9_each_clause_is_needed() {
    for clause in [
        &[OldWritesDie],
        &[OldMessagesDie],
        &[HomingIsQuiet],
        &[WelcomeIsAck],
        &[DirtySetsMerge],
        &[LostHomingsDrop],
    ] {
        // By losing the connection alone, without a takeover.
        let config = Config { without: clause, takeover: false, ..SMALL };
        assert!(counterexample(config).is_some(), "nothing breaks without {clause:?}");
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_10_each_clause_is_needed() {
    for clause in [&[FenceFirst], &[TakeoverHomes], &[TakeoverEndsIncarnation]] {
        needed(clause);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn rule_11_the_promise_is_needed() {
    needed(&[InvalidateFirst]);
}

/// The invariants that a search found broken, with the way there.
fn broken(arbiter: Arbiter) -> Vec<String> {
    let begin = std::time::Instant::now();
    let finish = HasDiscoveries::AnyFailures;
    let checker = arbiter.checker().threads(1).finish_when(finish).spawn_bfs().join();
    let found = checker.discoveries().into_iter().filter(|(name, _)| name.starts_with('I'));
    let found: Vec<_> = found.map(|(name, path)| format!("{name}: {:?}", path.into_actions())).collect();
    println!("{arbiter:?}: {} states, {:?}: {found:?}\n", checker.unique_state_count(), begin.elapsed());
    found
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn i1_i9_the_arbiters_rules_hold() {
    GUARDED.checker().threads(1).spawn_bfs().join().assert_properties();
    assert_eq!(broken(TWO_IMAGES), [""; 0]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "searches millions of states: run in release")]
fn i1_i9_each_clause_about_the_record_is_needed() {
    for clause in Clause::ALL {
        let without = |arbiter| broken(Arbiter { without: Some(clause), ..arbiter });
        let found = [GUARDED, TWO_IMAGES].into_iter().any(|arbiter| !without(arbiter).is_empty());
        assert!(found, "nothing breaks without {clause:?}");
    }
}
