//! `cargo run`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    qemu_tests::cli::main()
}
