//! The highest rate of checkpoints that holds.

use std::time::Duration;

use romulus_checkpoint::metrics::Quantity;
use serde::Serialize;

use super::case::{Case, Load};
use super::engine::Engine;
use super::sampler::{Measured, measure};
use super::view::View;
use crate::exit::Failure;
use crate::results::Labels;

/// Fewer late epochs than this, in percent.
pub const LATE_PERCENT: f64 = 1.0;
/// Rates that are tried.
const RATES: (f64, f64) = (1.0, 10_000.0);
/// The search ends when what holds and what does not are this close.
const CLOSE: f64 = 1.05;
/// The rate that is really made, of the one asked for.
const MADE: f64 = 0.97;
/// The pages that epochs really have, of those that the guest is to write.
const WRITTEN: f64 = 0.95;
/// Length of a probe: so many epochs, within bounds.
const PROBE_EPOCHS: f64 = 300.0;
const PROBE_SECONDS: (f64, f64) = (1.0, 5.0);
/// After a change of the rate.
const SETTLE: Duration = Duration::from_millis(300);
/// A machine that others use too has bad moments: a rate fails when it fails this often.
const ATTEMPTS: usize = 2;
/// Measurements of full length at the most: what bounds the time that a case takes.
const LONG_ATTEMPTS: usize = 10;

/// One try.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Checkpoints a second that were asked for.
    pub rate: f64,
    /// And made.
    pub made: f64,
    /// How long it was tried.
    pub seconds: f64,
    pub late_percent: f64,
    pub dirty_pages_p50: u64,
    /// Why it does not hold.
    pub fails_because: Option<String>,
}

impl Probe {
    /// Judges what was measured at a rate.
    pub fn of(case: &Case, rate: f64, measured: &Measured) -> Self {
        let dirty_pages_p50 = measured.primary.quantity(Quantity::DirtyPages).value_at_quantile(0.5);
        let (made, late_percent) = (measured.rate(), measured.late_percent());
        let short = match case.load {
            Load::PerEpoch(pages) => (dirty_pages_p50 as f64) < WRITTEN * pages as f64,
            _ => false,
        };
        let fails_because = if late_percent >= LATE_PERCENT {
            Some(format!("{late_percent:.1} % late"))
        } else if made < MADE * rate {
            Some(format!("{made:.0}/s made"))
        } else if short {
            Some(format!("the guest writes only {dirty_pages_p50} pages in time"))
        } else if !measured.disturbances.is_empty() {
            Some(format!("{:?}", measured.disturbances))
        } else {
            None
        };
        Self { rate, made, seconds: measured.seconds, late_percent, dirty_pages_p50, fails_because }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.fails_because.is_none()
    }
}

/// What a search came to.
pub struct Found {
    /// The case at the rate that was measured at full length.
    pub case: Case,
    /// What was measured there.
    pub measured: Measured,
    /// The rate really made, if it holds.
    pub max_rate: Option<f64>,
    /// All tries.
    pub probes: Vec<Probe>,
}

impl Found {
    /// The case at the rate that its scenario gives, where no other is known.
    pub fn given(case: &Case, engine: &Engine, view: &mut View) -> Result<Self, Failure> {
        let measured = measure(engine, Duration::from_secs_f64(case.seconds), &case.labels(), view)?;
        Ok(Self { case: case.clone(), measured, max_rate: None, probes: Vec::new() })
    }
}

/// Searches, and measures what it finds for as long as the scenario says. Where that does not hold, the
/// highest rate that does is sought below, by measurements of the same length.
pub fn find(engine: &Engine, case: &Case, view: &mut View) -> Result<Found, Failure> {
    let (found, mut probes) = search(engine, case, view)?;
    let Some(found) = found else {
        return Ok(Found { probes, ..Found::given(case, engine, view)? });
    };
    let time = Duration::from_secs_f64(case.seconds);
    let settle = Duration::from_secs_f64(case.settle_seconds.min(1.0));
    let at = |rate: f64| Case { interval_ms: 1e3 / rate, ..case.clone() };
    let (mut held, mut last) = (None, None);
    let bounds = descend(found, |rate| {
        let case = at(rate);
        engine.set_interval(case.interval());
        std::thread::sleep(settle);
        let measured = measure(engine, time, &case.labels(), view)?;
        let probe = Probe::of(&case, rate, &measured);
        let holds = probe.holds();
        let why = probe.fails_because.as_deref().unwrap_or("holds").to_owned();
        view.keep(&format!("    {rate:.0}/s for {time:?}: {why}"));
        probes.push(probe);
        *if holds { &mut held } else { &mut last } = Some((case, measured));
        Ok::<_, Failure>(holds)
    })?;
    if let Bounds { holds: Some(good), fails: Some(bad) } = bounds {
        view.keep(&format!("    {good:.1}/s holds for {time:?}, {bad:.1}/s does not"));
    }
    let max_rate = held.as_ref().map(|(_, measured)| measured.rate());
    let (case, measured) = held.or(last).ok_or_else(|| Failure::failed("no rate was measured"))?;
    Ok(Found { case, measured, max_rate, probes })
}

/// Searches by probes; the rate found (`None`: not even the lowest holds) and all tries.
fn search(engine: &Engine, case: &Case, view: &mut View) -> Result<(Option<f64>, Vec<Probe>), Failure> {
    let mut probes = Vec::new();
    let found = bisect(1e3 / case.interval_ms, |rate| {
        for _ in 0..ATTEMPTS {
            let probe = probe(engine, case, rate, view)?;
            let why = probe.fails_because.as_deref().unwrap_or("holds").to_owned();
            view.keep(&format!("    {rate:.0}/s: {why}"));
            let holds = probe.holds();
            probes.push(probe);
            if holds {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    Ok((found, probes))
}

fn probe(engine: &Engine, case: &Case, rate: f64, view: &mut View) -> Result<Probe, Failure> {
    engine.set_interval(Duration::from_secs_f64(1.0 / rate));
    std::thread::sleep(SETTLE);
    let seconds = (PROBE_EPOCHS / rate).clamp(PROBE_SECONDS.0, PROBE_SECONDS.1);
    let measured = measure(engine, Duration::from_secs_f64(seconds), &Labels::default(), view)?;
    Ok(Probe::of(case, rate, &measured))
}

/// What measurements of full length say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bounds {
    /// The highest rate that holds.
    holds: Option<f64>,
    /// The lowest that does not.
    fails: Option<f64>,
}

/// The highest rate that holds, from `found` down: in steps that grow from [`CLOSE`] on until one
/// holds, then between that one and the lowest that failed, until they are as close as [`CLOSE`]. Every
/// rate has [`ATTEMPTS`], all of them together [`LONG_ATTEMPTS`].
fn descend<E>(found: f64, mut holds: impl FnMut(f64) -> Result<bool, E>) -> Result<Bounds, E> {
    let mut bounds = Bounds::default();
    let (mut rate, mut step, mut left) = (found, CLOSE, LONG_ATTEMPTS);
    loop {
        let mut held = false;
        for _ in 0..ATTEMPTS {
            if left == 0 {
                return Ok(bounds);
            }
            left -= 1;
            held = holds(rate)?;
            if held {
                break;
            }
        }
        *if held { &mut bounds.holds } else { &mut bounds.fails } = Some(rate);
        rate = match (bounds.holds, bounds.fails) {
            (None, Some(bad)) if bad > RATES.0 => {
                let lower = (bad / step).max(RATES.0);
                step *= step;
                lower
            }
            // A rounding error is no reason for another measurement.
            (Some(good), Some(bad)) if bad / good > CLOSE + 1e-6 => (good * bad).sqrt(),
            _ => return Ok(bounds),
        };
    }
}

/// The highest rate that holds, within [`CLOSE`], beginning at `start`.
fn bisect<E>(start: f64, mut holds: impl FnMut(f64) -> Result<bool, E>) -> Result<Option<f64>, E> {
    let (least, most) = RATES;
    let (mut good, mut bad) = (None, None);
    let mut rate = start.clamp(least, most);
    loop {
        match holds(rate)? {
            true => good = Some(rate),
            false => bad = Some(rate),
        }
        rate = match (good, bad) {
            (Some(good), None) if good >= most => return Ok(Some(good)),
            (Some(good), None) => (2.0 * good).min(most),
            (None, Some(bad)) if bad <= least => return Ok(None),
            (None, Some(bad)) => (bad / 2.0).max(least),
            (Some(good), Some(bad)) if bad / good <= CLOSE => return Ok(Some(good)),
            (Some(good), Some(bad)) => (good * bad).sqrt(),
            (None, None) => return Ok(None),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_is_found_from_both_sides() {
        for border in [1.5, 39.0, 40.0, 333.0, 9_000.0] {
            for start in [1.0, 40.0, 1000.0] {
                let mut tries = 0;
                let found = bisect(start, |rate| {
                    tries += 1;
                    Ok::<_, ()>(rate <= border)
                });
                let found = found.unwrap().unwrap();
                assert!(found <= border && border / found <= CLOSE, "{found} for {border} from {start}");
                assert!(tries < 25);
            }
        }
        assert_eq!(bisect(40.0, |_| Ok::<_, ()>(false)), Ok(None));
        assert_eq!(bisect(40.0, |_| Ok::<_, ()>(true)), Ok(Some(RATES.1)));
        assert_eq!(bisect(40.0, |_| Err("broken")), Err("broken"));
    }

    /// Descends from a rate to this border; what came of it, and the rates that were tried.
    fn descent(found: f64, border: f64) -> (Bounds, Vec<f64>) {
        let mut tried = Vec::new();
        let bounds = descend(found, |rate| {
            tried.push(rate);
            Ok::<_, ()>(rate <= border)
        });
        (bounds.unwrap(), tried)
    }

    #[test]
    fn a_rate_that_holds_at_length_is_kept_at_once() {
        assert_eq!(descent(200.0, 200.0), (Bounds { holds: Some(200.0), fails: None }, vec![200.0]));
    }

    #[test]
    fn one_bad_moment_lowers_nothing() {
        let mut answers = [false, true].into_iter();
        let bounds = descend(200.0, |_| answers.next().ok_or("too many"));
        assert_eq!(bounds, Ok(Bounds { holds: Some(200.0), fails: None }));
    }

    #[test]
    fn the_highest_rate_that_holds_at_length_is_found_closely() {
        for border in [199.0, 191.0, 175.0, 150.0] {
            let (bounds, tried) = descent(200.0, border);
            let (good, bad) = (bounds.holds.unwrap(), bounds.fails.unwrap());
            assert!(good <= border && border < bad && bad <= 200.0, "{bounds:?} around {border}");
            assert!(bad / good <= CLOSE + 1e-6, "{bounds:?} around {border}, tried {tried:?}");
            assert!(tried.len() <= LONG_ATTEMPTS);
        }
        // One step down and no further, where that holds.
        assert_eq!(descent(200.0, 191.0).1, [200.0, 200.0, 200.0 / CLOSE]);
    }

    #[test]
    fn its_measurements_are_bounded_and_what_holds_is_kept() {
        for border in [0.0, 0.5, 20.0, 100.0, 120.0, 143.0] {
            let (bounds, tried) = descent(200.0, border);
            assert!(tried.len() <= LONG_ATTEMPTS, "{tried:?}");
            let best = tried.iter().copied().filter(|rate| *rate <= border).reduce(f64::max);
            assert_eq!(bounds.holds, best, "{border}: {tried:?}");
            assert!(bounds.fails.unwrap() > border);
        }
        // Half of the rate found by probes still holds at length: it must not end as nothing.
        assert!(descent(200.0, 100.0).0.holds.is_some());
        assert_eq!(
            descent(RATES.0, 0.0),
            (Bounds { holds: None, fails: Some(RATES.0) }, vec![RATES.0; ATTEMPTS])
        );
        assert_eq!(descend(40.0, |_| Err("broken")), Err("broken"));
    }
}
