//! The platform's time: [`Clock`], which goes on only as it is looked at, or is real.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Mutex;
use std::time::Instant;

use super::locked;

/// When virtual time begins.
const START: u64 = 1_000_000;

/// Virtual time in units of 100 ns, to which real time is added from when on the test asks for that.
pub(super) struct Clock {
    units: AtomicU64,
    /// How often it was looked at, with nothing else between.
    idle_looks: AtomicU32,
    real_start: Mutex<Option<Instant>>,
}

impl Clock {
    pub(super) const fn new() -> Self {
        Self {
            units: AtomicU64::new(START),
            idle_looks: AtomicU32::new(0),
            real_start: Mutex::new(None),
        }
    }

    pub(super) fn start_over(&self) {
        self.units.store(START, Ordering::Relaxed);
        self.note_activity();
        *locked(&self.real_start) = None;
    }

    pub(super) fn time(&self) -> u64 {
        let offset = self.units.load(Ordering::Relaxed);
        let start = *locked(&self.real_start);
        start.map_or(offset, |start| {
            offset + u64::try_from(start.elapsed().as_nanos() / 100).unwrap_or(u64::MAX / 2)
        })
    }

    /// Moves on by one unit, and ever faster if it is looked at again and again.
    pub(super) fn look(&self) -> u64 {
        let looks = self.idle_looks.fetch_add(1, Ordering::Relaxed);
        let step = match looks {
            0..256 => 1,
            _ => 1_u64 << ((looks - 256) / 16).min(17),
        };
        if !self.is_real() {
            self.jump(step);
        }
        self.time()
    }

    pub(super) fn note_activity(&self) {
        self.idle_looks.store(0, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, duration: Duration) {
        self.jump(u64::try_from(duration.as_nanos().div_ceil(100)).unwrap_or(u64::MAX / 2));
    }

    pub(super) fn jump(&self, units: u64) {
        self.units.fetch_add(units, Ordering::Relaxed);
    }

    pub(super) fn make_real(&self) {
        *locked(&self.real_start) = Some(Instant::now());
    }

    pub(super) fn is_real(&self) -> bool {
        locked(&self.real_start).is_some()
    }
}
