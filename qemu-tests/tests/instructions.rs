//! The instruction counts of `vmbus`, also on a machine without valgrind: it is unpacked as the other host tools are, and the
//! test of that package runs with it. Where one is installed, that test has run already.

use std::io::Write as _;
use std::process::Command;

use qemu_tests::tools::{on_path, valgrind, workspace};

#[test]
fn instructions_are_counted_where_no_valgrind_is_installed() {
    // Past the test harness, which shows nothing of a test that passes.
    let say = |text: &str| {
        let _ = writeln!(std::io::stderr(), "instructions: {text}");
    };
    let unpacked = std::env::var_os("VMBUS_UNPACK_VALGRIND").is_some();
    if on_path("valgrind").is_some() && !unpacked {
        return say("valgrind is installed, the test of vmbus counts with it");
    }
    let valgrind = match valgrind::provide() {
        Ok(valgrind) => valgrind,
        Err(error) => {
            return say(&format!(
                "NOT CHECKED: there is no valgrind, nor can it be had: {error:#}"
            ));
        }
    };
    let status = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["test", "--quiet", "--package", "vmbus", "--test", "instructions"])
        .env("VALGRIND", &valgrind.program)
        .envs(valgrind.environment.iter().map(|(name, value)| (name, value)))
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "the instruction counts of vmbus"
    );
}
