//! See the library.

fn main() -> std::process::ExitCode {
    romulus_perf::main()
}
