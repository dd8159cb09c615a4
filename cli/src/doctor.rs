//! x
use crate::exit::Failure;
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub struct DoctorOptions {}
pub fn run(options: &DoctorOptions) -> Result<ExitCode, Failure> {
    todo!()
}
