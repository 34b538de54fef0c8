//! One timer per processor that wakes it at a time: a synthetic timer where the platform gives one, else the APIC's.
//!
//! The interrupt itself does nothing: whoever waits looks at the clock whenever the processor wakes.

use crate::arch::{apic, cpu, interrupts};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;

/// Arms a timer for a time on the clock of [`super::now_ns`]; false if it cannot.
pub type Arm = &'static (dyn Fn(u64) -> bool + Sync);

static PLATFORM: Once<(&'static str, Arm)> = Once::new();
static APIC_VECTOR: Once<Option<u8>> = Once::new();

/// When the timer will fire; `u64::MAX`: it is not armed.
static ARMED: AtomicU64 = AtomicU64::new(u64::MAX);

/// Lets the platform's timer take over. Its interrupt handler calls [`fired`].
pub fn use_platform_timer(name: &'static str, arm: Arm) {
    PLATFORM.call_once(|| (name, arm));
    ARMED.store(u64::MAX, Ordering::Relaxed);
}

/// Says that the timer has fired.
pub fn fired(_: cpu::Processor) {
    ARMED.store(u64::MAX, Ordering::Relaxed);
}

/// Name of the timer in use.
#[must_use]
pub fn name() -> &'static str {
    match PLATFORM.get() {
        Some((name, _)) => name,
        None if !apic::is_on() => "none",
        None if cpu::features().tsc_deadline => "apic-tsc-deadline",
        None => "apic",
    }
}

/// Makes sure that the processor wakes at `deadline_ns` at the latest. False if it will not: then the caller must not halt.
///
/// An earlier time that is armed stays: waking too early does no harm, and arming costs an exit to the host.
pub fn wake_at(deadline_ns: u64) -> bool {
    if deadline_ns == u64::MAX || ARMED.load(Ordering::Relaxed) <= deadline_ns {
        return true;
    }
    let armed = PLATFORM.get().is_some_and(|(_, arm)| arm(deadline_ns)) || arm_apic(deadline_ns);
    if armed {
        ARMED.store(deadline_ns, Ordering::Relaxed);
    }
    armed
}

fn arm_apic(deadline_ns: u64) -> bool {
    let vector = APIC_VECTOR.call_once(|| interrupts::allocate(fired, interrupts::EndOfInterrupt::Written).ok());
    vector.is_some_and(|vector| apic::arm_timer(vector, super::tsc_at(deadline_ns)))
}
