//! What is going on, for people: one line that overwrites itself on a terminal, plain lines
//! elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Plain lines come this often at the most.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// A view on standard error.
pub struct View {
    bar: Option<ProgressBar>,
    /// Before each line: which case of how many.
    prefix: String,
    told: Option<Instant>,
}

impl View {
    /// A line on a terminal, lines elsewhere.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, prefix: String::new(), told: None }
    }

    /// What follows is about this.
    pub fn begin(&mut self, prefix: String) {
        self.prefix = prefix;
        self.told = None;
    }

    /// How it stands; shown at once on a terminal, now and then elsewhere.
    pub fn tell(&mut self, text: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {}", self.prefix, text()));
            bar.tick();
        } else if self.told.is_none_or(|told| told.elapsed() >= PLAIN_EVERY) {
            self.told = Some(Instant::now());
            eprintln!("{}: {}", self.prefix, text());
        }
    }

    /// Something for standard output.
    pub fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// A line that stays.
    pub fn keep(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
