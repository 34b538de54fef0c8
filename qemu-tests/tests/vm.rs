//! The VM tests: `cargo test --package qemu-tests --test vm [NAME]`.
//!
//! They need no hardware virtualisation. `VMBUS_SKIP_VM=1` leaves them out, loudly, where no host can be brought up.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use qemu_tests::harness::Harness;
use qemu_tests::scenarios::{self, Scenario};

/// The stripped kernel must not be larger.
const LARGEST_KERNEL: u64 = 512 << 10;
/// The UEFI loader must not be larger.
const LARGEST_LOADER: u64 = 128 << 10;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One at a time: they share a middle Linux, and their deadlines assume a processor of their own.
    arguments.test_threads = Some(1);
    let skip = std::env::var_os("VMBUS_SKIP_VM").is_some_and(|value| value != "0");
    let all = scenarios::all();
    let empty = |scenario: &Scenario| Trial::test(scenario.name, || Ok(())).with_ignored_flag(skip);
    let selected: Vec<Scenario> = all
        .iter()
        .filter(|scenario| !arguments.is_filtered_out(&empty(scenario)))
        .copied()
        .collect();
    if skip && !arguments.list {
        eprintln!("warning: VMBUS_SKIP_VM is set: {} VM tests are NOT run", selected.len());
    }
    let runner = PathBuf::from(env!("CARGO_BIN_EXE_qemu-tests"));
    let selected = if arguments.list || skip { Vec::new() } else { selected };
    let harness = match Harness::new(runner, selected) {
        Ok(harness) => Arc::new(harness),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trial = |scenario: Scenario| {
        let harness = Arc::clone(&harness);
        let run = move || {
            let verdict = harness.run(&scenario);
            for (name, value) in &verdict.figures {
                eprintln!("    {}: {name} = {value:.3}", scenario.name);
            }
            verdict.failure.map_or(Ok(()), |failure| Err(Failed::from(failure)))
        };
        Trial::test(scenario.name, run).with_ignored_flag(skip)
    };
    let sized = Arc::clone(&harness);
    let kernel = Trial::test("kernel_size", move || {
        small_enough("the stripped kernel", sized.kernel_size(), LARGEST_KERNEL)
    });
    let sized = Arc::clone(&harness);
    let loader = Trial::test("loader_size", move || {
        small_enough("the UEFI loader", sized.loader_size(), LARGEST_LOADER)
    });
    let trials = all.into_iter().map(trial).chain([kernel, loader]).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn small_enough(what: &str, size: anyhow::Result<u64>, limit: u64) -> Result<(), Failed> {
    let bytes = size.map_err(|error| Failed::from(format!("{error:#}")))?;
    eprintln!("    {what}: {bytes} bytes");
    if bytes <= limit {
        Ok(())
    } else {
        Err(Failed::from(format!(
            "{what} has {bytes} bytes, at most {limit} are allowed"
        )))
    }
}
