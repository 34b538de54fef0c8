//! Time: nanoseconds since the kernel's first instruction, deadlines, phases of the start.
//!
//! The clock is the time stamp counter, whose rate comes from the hypervisor, from CPUID, or from a guess that is told as such. A
//! better one (Hyper-V's reference TSC page) may take over later: [`use_reference`]. Time never jumps when it does.

pub mod rate;
pub mod timer;

use crate::arch::cpu;
use crate::sync::IrqMutex;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;

/// Where the rate of the time stamp counter is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSource {
    /// A hypervisor said so, in a register.
    Hypervisor,
    /// The processor said so, in CPUID.
    Processor,
    /// It was measured against another clock.
    Measured,
    /// Nobody said anything: 1 GHz is assumed, and times are only good for comparison.
    Assumed,
}

impl RateSource {
    /// The name for people and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hypervisor => "hypervisor",
            Self::Processor => "processor",
            Self::Measured => "measured",
            Self::Assumed => "assumed",
        }
    }
}

/// Converts ticks of a counter to nanoseconds with one multiplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    hertz: u64,
    /// Nanoseconds per tick, times 2^32.
    factor: u64,
}

impl Rate {
    /// A rate in ticks per second; 0 counts as 1.
    #[must_use]
    pub const fn new(hertz: u64) -> Self {
        let hertz = if hertz == 0 { 1 } else { hertz };
        let factor = (1_000_000_000u128 << 32) / hertz as u128;
        #[expect(clippy::cast_possible_truncation, reason = "at most 10^9 * 2^32, which has 62 bits")]
        Self {
            hertz,
            factor: factor as u64,
        }
    }

    /// Nanoseconds in so many ticks.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "wraps after centuries")]
    pub const fn nanoseconds(self, ticks: u64) -> u64 {
        ((ticks as u128 * self.factor as u128) >> 32) as u64
    }

    /// Ticks in so many nanoseconds, rounded up; saturates.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "checked")]
    pub const fn ticks(self, nanoseconds: u64) -> u64 {
        let ticks = (nanoseconds as u128 * self.hertz as u128).div_ceil(1_000_000_000);
        if ticks > u64::MAX as u128 {
            u64::MAX
        } else {
            ticks as u64
        }
    }
}

const ASSUMED: Rate = Rate::new(1_000_000_000);

static START_TSC: AtomicU64 = AtomicU64::new(0);
static RATE: Once<(Rate, RateSource)> = Once::new();

/// A clock that takes over from the time stamp counter.
struct Reference {
    /// Reads it, in units of 100 ns; none while it is not valid.
    read: &'static (dyn Fn() -> Option<u64> + Sync),
    /// What it showed when it took over.
    base: u64,
    /// What [`now_ns`] showed then.
    base_ns: u64,
    name: &'static str,
}

static REFERENCE: Once<Reference> = Once::new();

/// Starts the clock: what the time stamp counter showed at the first instruction, and its rate. The first phase is reached then.
pub fn start(start_tsc: u64, hertz: Option<(u64, RateSource)>) {
    START_TSC.store(start_tsc, Ordering::Relaxed);
    reached_at("start", 0);
    if let Some((hertz, source)) = hertz {
        RATE.call_once(|| (Rate::new(hertz), source));
    }
}

fn rate() -> Rate {
    RATE.get().map_or(ASSUMED, |(rate, _)| *rate)
}

/// Where the rate of the time stamp counter is known from.
#[must_use]
pub fn rate_source() -> RateSource {
    RATE.get().map_or(RateSource::Assumed, |(_, source)| *source)
}

/// Ticks of the time stamp counter in a second.
#[must_use]
pub fn tsc_hertz() -> u64 {
    rate().hertz
}

/// Name of the clock in use.
#[must_use]
pub fn clock_name() -> &'static str {
    REFERENCE.get().map_or("tsc", |reference| reference.name)
}

/// Lets another clock take over, which counts units of 100 ns from any start. Only the first call counts. While it gives
/// nothing, the time stamp counter goes on.
pub fn use_reference(name: &'static str, read: &'static (dyn Fn() -> Option<u64> + Sync)) {
    if let Some(base) = read() {
        REFERENCE.call_once(|| Reference {
            read,
            base,
            base_ns: tsc_ns(cpu::tsc()),
            name,
        });
    }
}

fn tsc_ns(tsc: u64) -> u64 {
    rate().nanoseconds(tsc.saturating_sub(START_TSC.load(Ordering::Relaxed)))
}

/// Nanoseconds since the kernel's first instruction.
#[must_use]
pub fn now_ns() -> u64 {
    if let Some(reference) = REFERENCE.get()
        && let Some(now) = (reference.read)()
    {
        return reference.base_ns + now.saturating_sub(reference.base).saturating_mul(100);
    }
    tsc_ns(cpu::tsc())
}

/// The value that the time stamp counter will have at a time (on the clock of [`now_ns`]).
#[must_use]
pub fn tsc_at(deadline_ns: u64) -> u64 {
    cpu::tsc().saturating_add(rate().ticks(deadline_ns.saturating_sub(now_ns())))
}

/// Until when to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// A time on the clock of [`now_ns`].
    At(u64),
    /// For ever: a choice that the caller writes.
    Never,
}

impl Deadline {
    /// So many nanoseconds from now.
    #[must_use]
    pub fn after_ns(nanoseconds: u64) -> Self {
        Self::At(now_ns().saturating_add(nanoseconds))
    }

    /// So many milliseconds from now.
    #[must_use]
    pub fn after_ms(milliseconds: u64) -> Self {
        Self::after_ns(milliseconds.saturating_mul(1_000_000))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        match self {
            Self::At(time) => now_ns() >= time,
            Self::Never => false,
        }
    }

    /// As a number: never is the largest.
    pub(crate) const fn as_ns(self) -> u64 {
        match self {
            Self::At(time) => time,
            Self::Never => u64::MAX,
        }
    }
}

/// Waits without doing anything else; other tasks run.
pub fn sleep_ns(nanoseconds: u64) {
    crate::task::wait_until(Deadline::after_ns(nanoseconds), || false);
}

/// Phases that are remembered.
const PHASES: usize = 24;

static REACHED: IrqMutex<([(&str, u64); PHASES], usize)> = IrqMutex::new(([("", 0); PHASES], 0));

/// Remembers that a phase of the start has been reached now.
pub fn reached(name: &'static str) {
    reached_at(name, now_ns());
}

fn reached_at(name: &'static str, now: u64) {
    let mut reached = REACHED.lock();
    let (phases, count) = &mut *reached;
    if let Some(slot) = phases.get_mut(*count) {
        *slot = (name, now);
        *count += 1;
    }
}

/// The phases reached so far, in nanoseconds since the first instruction.
#[must_use]
pub fn phases() -> Vec<(&'static str, u64)> {
    let reached = REACHED.lock();
    let (phases, count) = &*reached;
    let (phases, count) = (*phases, *count);
    drop(reached);
    phases.iter().take(count).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_nanoseconds_convert() {
        let rate = Rate::new(2_500_000_000);
        let hour = 3_600_000_000_000;
        assert!(
            (hour - 1000..=hour).contains(&rate.nanoseconds(2_500_000_000 * 3600)),
            "1 us off after an hour at most"
        );
        assert_eq!(rate.ticks(1000), 2500);
        assert_eq!(rate.ticks(u64::MAX), u64::MAX);
        assert_eq!(Rate::new(1_000_000_000).nanoseconds(12345), 12345);
        assert_eq!(Rate::new(0).nanoseconds(1), 1_000_000_000);
    }

    #[test]
    fn never_is_never() {
        assert!(!Deadline::Never.has_passed());
        assert!(Deadline::At(0).has_passed());
        assert_eq!(Deadline::Never.as_ns(), u64::MAX);
    }
}
