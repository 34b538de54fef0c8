//! Tests that run inside the guest, by name from the command line (`selftest=`). One file each.
//!
//! A test passes by returning; the panic tests do not return.

pub mod broken_ring;
pub mod bus;
pub mod dynamic_memory;
pub mod exceptions;
pub mod kmcl;
pub mod memory;
pub mod panics;
pub mod pressure;
pub mod signals;
pub mod smp;
pub mod speed;
pub mod storage;
pub mod storage_dies;
pub mod tasks;
pub mod traffic;

use alloc::string::String;
use core::fmt;

/// What a test says when it fails.
pub type Verdict = Result<(), String>;

/// A test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name on the command line.
    pub name: &'static str,
    /// The test itself.
    pub run: fn() -> Verdict,
}

/// The tests.
const TESTS: &[Test] = &[
    Test {
        name: "connect",
        run: bus::connect,
    },
    Test {
        name: "reopen",
        run: bus::reopen,
    },
    Test {
        name: "takeover",
        run: bus::takeover,
    },
    Test {
        name: "reconnect",
        run: bus::reconnect,
    },
    Test {
        name: "balloon",
        run: dynamic_memory::balloon,
    },
    Test {
        name: "pressure",
        run: pressure::run,
    },
    Test {
        name: "hotadd",
        run: dynamic_memory::hot_add,
    },
    Test {
        name: "kmcl",
        run: kmcl::run,
    },
    Test {
        name: "memory",
        run: memory::run,
    },
    Test {
        name: "tasks",
        run: tasks::run,
    },
    Test {
        name: "smp",
        run: smp::run,
    },
    Test {
        name: "speed",
        run: speed::run,
    },
    Test {
        name: "storage",
        run: storage::run,
    },
    Test {
        name: "page-fault",
        run: exceptions::page_fault,
    },
    Test {
        name: "stack-overflow",
        run: exceptions::stack_overflow,
    },
    Test {
        name: "panic-interrupt",
        run: panics::in_interrupt,
    },
    Test {
        name: "panic-deferred",
        run: panics::in_deferred_work,
    },
    Test {
        name: "panic-task",
        run: panics::in_task,
    },
    Test {
        name: "panic-bus-lock",
        run: panics::with_bus_lock,
    },
    Test {
        name: "panic-heap-lock",
        run: panics::with_heap_lock,
    },
    Test {
        name: "panic-memory-locks",
        run: panics::with_memory_locks,
    },
    Test {
        name: "panic-console-lock",
        run: panics::with_console_lock,
    },
    Test {
        name: "panic-posting",
        run: panics::while_posting,
    },
    Test {
        name: "storage-dies",
        run: storage_dies::run,
    },
    Test {
        name: "storm",
        run: traffic::storm,
    },
    Test {
        name: "signals",
        run: signals::run,
    },
    Test {
        name: "broken-ring",
        run: broken_ring::channels,
    },
    Test {
        name: "faulted",
        run: broken_ring::drivers,
    },
    Test {
        name: "reset-busy",
        run: traffic::reset_busy,
    },
];

/// A test that did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// What it said.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// Runs tests by name until one fails.
///
/// # Errors
///
/// The first [`Failure`]; an unknown name is one.
pub fn run<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    run_of(TESTS, names)
}

fn run_of<'a>(tests: &[Test], names: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    for name in names {
        let failure = |reason| Failure {
            name: name.into(),
            reason,
        };
        let test = tests.iter().find(|test| test.name == name);
        let test = test.ok_or_else(|| failure("there is no such test".into()))?;
        crate::println!("self-test {name} ...");
        (test.run)().map_err(failure)?;
        crate::println!("self-test {name} passed");
    }
    Ok(())
}

/// Fails a test with a message unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($message)+));
        }
    };
}
pub(crate) use ensure;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_test_is_named_and_the_first_failure_ends_the_run() {
        let tests = [
            Test {
                name: "good",
                run: || Ok(()),
            },
            Test {
                name: "bad",
                run: || Err("it is".into()),
            },
        ];
        assert_eq!(run_of(&tests, ["good", "good"].into_iter()), Ok(()));
        assert_eq!(
            run_of(&tests, ["good", "bad", "nowhere"].into_iter())
                .unwrap_err()
                .to_string(),
            "bad: it is"
        );
        assert_eq!(
            run(["nowhere"].into_iter()).unwrap_err().to_string(),
            "nowhere: there is no such test"
        );
    }
}
