//! The `romulus` command.

fn main() -> std::process::ExitCode {
    romulus::main()
}
