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

/// One try.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Checkpoints a second that were asked for.
    pub rate: f64,
    /// And made.
    pub made: f64,
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
        Self { rate, made, late_percent, dirty_pages_p50, fails_because }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.fails_because.is_none()
    }
}

/// Searches; the rate found (`None`: not even the lowest holds) and all tries.
pub fn search(engine: &Engine, case: &Case, view: &mut View) -> Result<(Option<f64>, Vec<Probe>), Failure> {
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
}
