//! How long a test waits: [`wait_until`], and a watch over tests that do not end.
//!
//! A build that is broken shall fail, and say what it lacked; it shall not hang. So a test waits for other threads with
//! [`wait_until`]. What waits elsewhere, in a loop that does not end, for a lock or for a thread, is watched: each test that makes a
//! [`FakePlatform`](super::FakePlatform) has from then on twice the patience of one wait for all that it does with it. After that its name is
//! printed and the process aborted, since no thread can be made to fail by another one.
//!
//! A wait's patience is 25 seconds; of real time, whatever a platform's clock says. `VMBUS_TEST_PATIENCE` has other seconds, for machines that
//! are slow or programs that are stopped in a debugger. Under Miri, which is some thousand times slower, it is half an hour, and nothing is
//! watched.
#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "runs on a development machine")
)]

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::thread_local;
use std::time::Instant;

use super::heap::Exempt;

/// How long one wait lasts at most.
fn patience() -> Duration {
    let usual = if cfg!(miri) { 1_800 } else { 25 };
    let told = std::env::var("VMBUS_TEST_PATIENCE").ok();
    Duration::from_secs(told.and_then(|seconds| seconds.parse().ok()).unwrap_or(usual))
}

/// Waits until `condition` returns true, and lets other threads run between two looks. What the test has to do meanwhile, it does in
/// there.
///
/// # Panics
///
/// If 25 seconds pass (`VMBUS_TEST_PATIENCE` has other ones); the message names what was awaited.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = Waiting::new(what);
    while !condition() {
        waiting.check();
        thread::yield_now();
    }
}

/// A wait that began when this was made.
pub(crate) struct Waiting<'a> {
    what: &'a str,
    begun: Instant,
    patience: Duration,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(what: &'a str) -> Self {
        Self {
            what,
            begun: Instant::now(),
            patience: patience(),
        }
    }

    /// Panics if it has taken too long.
    #[track_caller]
    pub(crate) fn check(&self) {
        let (what, patience) = (self.what, self.patience);
        assert!(
            self.begun.elapsed() < patience,
            "waited {patience:?} in vain for {what}"
        );
    }
}

/// A thread that has something to do, and since when.
struct Watched {
    thread: ThreadId,
    name: String,
    since: Instant,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

fn with_watched<T>(work: impl FnOnce(&mut Vec<Watched>) -> T) -> T {
    let _exempt = Exempt::enter();
    work(&mut WATCHED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Takes the thread off the list when it ends.
struct Leaves(ThreadId);

impl Drop for Leaves {
    fn drop(&mut self) {
        with_watched(|watched| watched.retain(|one| one.thread != self.0));
    }
}

/// Watches this thread from now on, or begins anew. A program's first thread is left alone: it may go on for ever.
pub(crate) fn watch() {
    thread_local!(static LEAVES: Leaves = Leaves(thread::current().id()));
    let here = thread::current();
    if cfg!(miri) || here.name() == Some("main") {
        return;
    }
    let _exempt = Exempt::enter();
    LEAVES.with(|_| ());
    let name = String::from(here.name().unwrap_or("a thread of a test"));
    with_watched(|watched| {
        watched.retain(|one| one.thread != here.id());
        watched.push(Watched {
            thread: here.id(),
            name,
            since: Instant::now(),
        });
    });
    static WATCHMAN: Once = Once::new();
    WATCHMAN.call_once(|| drop(thread::Builder::new().name(String::from("watch")).spawn(look_for_ever)));
}

fn look_for_ever() {
    let patience = patience().saturating_mul(2);
    loop {
        thread::sleep(Duration::from_millis(500));
        with_watched(|watched| {
            let late: Vec<_> = watched.iter().filter(|one| one.since.elapsed() > patience).collect();
            if !late.is_empty() {
                let mut stderr = std::io::stderr();
                for one in late {
                    // Not by `eprintln`: what that says is kept for the end of a test. If it cannot be said, nobody can be told.
                    let _ = writeln!(stderr, "\n{} has not ended after {patience:?}: it hangs", one.name);
                }
                std::process::abort();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_its_condition_holds() {
        let mut looks = 0;
        wait_until("the third look", || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    #[should_panic(expected = "waited 0ns in vain for what never comes")]
    fn a_wait_that_is_in_vain_says_what_was_awaited() {
        let mut waiting = Waiting::new("what never comes");
        waiting.patience = Duration::ZERO;
        waiting.check();
    }

    const HANG: &str = "VMBUS_TEST_THAT_HANGS";

    #[test]
    #[cfg_attr(miri, ignore = "starts a process")]
    fn a_test_that_hangs_is_named() {
        if std::env::var_os(HANG).is_some() {
            let _ = crate::testing::FakePlatform::new();
            loop {
                thread::park();
            }
        }
        let this = thread::current();
        let name = this.name().filter(|name| *name != "main");
        let name = name.unwrap_or("testing::patience::tests::a_test_that_hangs_is_named");
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads", "2"])
            .envs([(HANG, "yes"), ("VMBUS_TEST_PATIENCE", "1")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success());
        assert!(said.contains(&std::format!("{name} has not ended after 2s")), "{said}");
    }
}
