//! `romulus-perf report`: results as a page that people can look at, and as tables of Markdown.

mod chart;
mod labelling;
mod layout;
mod markdown;
mod page;
mod plots;
mod scale;
mod side_by_side;
mod table;
mod wording;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::exit::{Failure, OrFail};
use crate::results::Results;

pub use labelling::describe_all;
pub use scale::tick_text;
pub use table::title;

/// Options of `romulus-perf report`.
#[derive(Args, Clone, Debug)]
pub struct ReportCommand {
    /// What `--json` of the other commands wrote; all of them make one report
    #[arg(required = true, value_name = "RESULTS.json")]
    results: Vec<PathBuf>,

    /// The page: one file that needs nothing else, neither scripts nor the network
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Replace the tables in this page of Markdown that stand between the markers
    /// `<!-- romulus-perf NAME -->` and `<!-- /romulus-perf NAME -->`; NAME is a command, or a
    /// command and a scenario
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,

    /// Write all runs together to this file, as JSON
    #[arg(long, value_name = "FILE")]
    merged: Option<PathBuf>,
}

/// The runs of all these files.
pub fn read_all(paths: &[PathBuf]) -> Result<Results, Failure> {
    let all: Vec<Results> = paths.iter().map(|path| Results::read(path)).collect::<Result<_, _>>()?;
    Ok(Results::merge(all))
}

/// Runs the command.
pub fn run(command: &ReportCommand) -> Result<ExitCode, Failure> {
    if command.out.is_none() && command.markdown.is_none() && command.merged.is_none() {
        return Err(Failure::usage(
            "what is to be made? --out FILE.html, --markdown FILE.md or --merged FILE.json",
        ));
    }
    let results = read_all(&command.results)?;
    if let Some(path) = &command.merged {
        results.write(path)?;
    }
    if let Some(path) = &command.out {
        write_page(path, &results)?;
    }
    if let Some(path) = &command.markdown {
        for name in markdown::update(path, &results)? {
            println!("{}: no markers for `{name}`, its table is left out", path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_page(path: &Path, results: &Results) -> Result<(), Failure> {
    let plots = plots::all(results);
    std::fs::write(path, page::html(results, &plots)).or_fail(format!("--out {}", path.display()))?;
    for plot in plots.iter().filter(|plot| plot.drawing.is_none()) {
        println!("no figures for `{}`: {}", plot.title, plot.command);
    }
    let drawn = plots.iter().filter(|plot| plot.drawing.is_some()).count();
    println!("{}: {} runs, {drawn} of {} plots", path.display(), results.runs.len(), plots.len());
    Ok(())
}
