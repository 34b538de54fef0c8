//! Points in time and deadlines.
//!
//! Time is the hypervisor's reference time: units of 100 ns since the partition was created. It does not depend on the
//! operating system's clock, and it runs before that clock does. [`crate::hyperv`] reads it.

use core::time::Duration;

/// A point in time: units of 100 ns since the partition was created (the TLFS's reference time).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// Makes an instant from units of 100 ns since the partition was created.
    #[must_use]
    pub const fn from_reference_units(units_100ns: u64) -> Self {
        Self(units_100ns)
    }

    /// Returns the units of 100 ns since the partition was created.
    #[must_use]
    pub const fn reference_units(self) -> u64 {
        self.0
    }

    /// Returns this instant moved into the future by `duration`, or the last representable instant.
    #[must_use]
    pub const fn saturating_add(self, duration: Duration) -> Self {
        let units = duration.as_nanos().div_ceil(100);
        #[expect(clippy::cast_possible_truncation, reason = "the branch has checked that it fits")]
        let units = if units > u64::MAX as u128 {
            u64::MAX
        } else {
            units as u64
        };
        Self(self.0.saturating_add(units))
    }

    /// Returns the time from `earlier` to this instant, or zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        let units = self.0.saturating_sub(earlier.0);
        // At most 1.8e19 units of 100 ns: seconds and remainder both fit.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a remainder below ten million, times 100"
        )]
        let nanos = (units % 10_000_000 * 100) as u32;
        Duration::new(units / 10_000_000, nanos)
    }
}

/// How long a call may wait. There is no call in this crate that waits without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// For ever. A choice that the caller writes down, never a default.
    Never,
    /// Until this instant.
    At(Instant),
    /// For this long from the moment of the call. [`Duration::ZERO`] looks once and does not wait.
    After(Duration),
}

impl Deadline {
    /// Looks once, never waits.
    pub const IMMEDIATE: Self = Self::After(Duration::ZERO);

    /// Waits for up to this many seconds from the moment of the call.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self::After(Duration::from_secs(seconds))
    }

    /// Waits for up to this many milliseconds from the moment of the call.
    #[must_use]
    pub const fn millis(milliseconds: u64) -> Self {
        Self::After(Duration::from_millis(milliseconds))
    }

    /// Fixes a relative deadline at `now`; returns `None` for [`Deadline::Never`].
    ///
    /// A function with several waits in it calls this once, at its beginning.
    #[must_use]
    pub const fn resolve(self, now: Instant) -> Option<Instant> {
        match self {
            Self::Never => None,
            Self::At(instant) => Some(instant),
            Self::After(duration) => Some(now.saturating_add(duration)),
        }
    }

    /// Returns this deadline with a relative one fixed at `now`.
    #[must_use]
    pub const fn fixed(self, now: Instant) -> Self {
        match self.resolve(now) {
            None => Self::Never,
            Some(instant) => Self::At(instant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_up_to_units_so_that_no_wait_ends_early() {
        let start = Instant::from_reference_units(5);
        assert_eq!(start.saturating_add(Duration::from_nanos(1)).reference_units(), 6);
        assert_eq!(start.saturating_add(Duration::from_nanos(100)).reference_units(), 6);
        assert_eq!(
            start.saturating_add(Duration::from_secs(1)).reference_units(),
            10_000_005
        );
        assert_eq!(start.saturating_add(Duration::MAX).reference_units(), u64::MAX);
    }

    #[test]
    fn the_difference_of_instants_is_never_negative() {
        let early = Instant::from_reference_units(10);
        let late = Instant::from_reference_units(20_000_017);
        assert_eq!(late.saturating_duration_since(early), Duration::new(2, 700));
        assert_eq!(early.saturating_duration_since(late), Duration::ZERO);
    }

    #[test]
    fn a_relative_deadline_is_fixed_once() {
        let now = Instant::from_reference_units(100);
        assert_eq!(
            Deadline::millis(1).resolve(now),
            Some(Instant::from_reference_units(10_100))
        );
        assert_eq!(Deadline::IMMEDIATE.resolve(now), Some(now));
        assert_eq!(Deadline::Never.resolve(now), None);
        assert_eq!(
            Deadline::seconds(1).fixed(now),
            Deadline::At(Instant::from_reference_units(10_000_100))
        );
        assert_eq!(Deadline::Never.fixed(now), Deadline::Never);
    }
}
