//! A host that writes to the guest's memory while the guest reads it: [`Scrambler`].

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::testing::FakePlatform;

/// While it lives, a thread writes patterns to guest memory, one after the other, as fast as it can.
pub struct Scrambler {
    is_done: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Scrambler {
    /// Begins to write `patterns` in turn at guest-physical address `gpa`: a message slot, an index, a packet.
    ///
    /// # Panics
    ///
    /// If no thread can be made.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test without its thread tests nothing")]
    pub fn start(platform: &'static FakePlatform, gpa: u64, patterns: Vec<Vec<u8>>) -> Self {
        let (is_done, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_done_there, rounds_there) = (Arc::clone(&is_done), Arc::clone(&rounds));
        let thread = std::thread::Builder::new()
            .name(String::from("scrambler"))
            .spawn(move || {
                while !is_done_there.load(Ordering::Relaxed) {
                    for pattern in &patterns {
                        if platform.guest_write(gpa, pattern).is_err() {
                            return;
                        }
                        // After each: on a busy machine a guest would only ever see the last one.
                        std::thread::yield_now();
                    }
                    rounds_there.fetch_add(1, Ordering::Relaxed);
                }
            });
        let scrambler = Self {
            is_done,
            rounds,
            thread: Some(thread.expect("a thread")),
        };
        // Not before it really runs.
        while scrambler.rounds() == 0 && scrambler.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            std::thread::yield_now();
        }
        scrambler
    }

    /// Returns how often all patterns were written.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}

impl Drop for Scrambler {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; it is not worth a second one.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Scrambler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Scrambler")
            .field("rounds", &self.rounds())
            .finish_non_exhaustive()
    }
}
