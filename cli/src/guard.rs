//! x
use crate::exit::Failure;
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub struct GuardOptions {}
pub fn run(options: &GuardOptions) -> Result<ExitCode, Failure> {
    todo!()
}
