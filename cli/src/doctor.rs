//! `romulus doctor`: what this machine can do, what is missing, and how to get it.

use std::process::ExitCode;

use romulus_host::facts::{Fact, Status, gather};
use romulus_host::pinning::{PinningPlan, usable_cores};

use crate::exit::{Code, Failure};

/// Options of `romulus doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorOptions {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Says what was found; fails if something is missing without which nothing works.
pub fn run(options: &DoctorOptions) -> Result<ExitCode, Failure> {
    let mut facts = gather();
    facts.push(xen());
    let pinning = PinningPlan::auto(&usable_cores()).to_string();
    if options.json {
        let all = serde_json::json!({ "facts": facts, "pinning_auto": pinning });
        println!("{all:#}");
    } else {
        for fact in &facts {
            print!("{}", lines(fact));
        }
        println!("[ok]      {:<20} --pin auto means {pinning} here", "pinning");
    }
    let missing: Vec<&str> =
        facts.iter().filter(|fact| fact.status == Status::Missing).map(|fact| fact.name).collect();
    if missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new(Code::Machine, format!("missing on this machine: {}", missing.join(", "))))
}

#[cfg(feature = "xen")]
fn xen() -> Fact {
    romulus_xen::facts::xen()
}

#[cfg(not(feature = "xen"))]
fn xen() -> Fact {
    let detail = "this romulus was built without Xen".into();
    Fact { name: "xen", status: Status::Ok, detail, remedy: None }
}

fn lines(fact: &Fact) -> String {
    let status = match fact.status {
        Status::Ok => "[ok]",
        Status::Warn => "[limited]",
        Status::Missing => "[missing]",
    };
    let mut text = format!("{status:<9} {:<20} {}\n", fact.name, fact.detail);
    if let Some(remedy) = &fact.remedy {
        text.push_str(&format!("{:<30} {remedy}\n", ""));
    }
    text
}
