//! x
use crate::exit::Failure;
use std::process::ExitCode;
pub fn run(options: crate::settings::protect::ProtectOptions) -> Result<ExitCode, Failure> {
    todo!()
}
