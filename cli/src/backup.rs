//! x
use crate::exit::Failure;
use std::process::ExitCode;
pub fn run(options: crate::settings::backup::BackupOptions) -> Result<ExitCode, Failure> {
    todo!()
}
