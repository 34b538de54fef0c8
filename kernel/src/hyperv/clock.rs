//! The reference clock and the synthetic timer.

use spin::Once;
use vmbus::hyperv::{ClockSource, Hypervisor, Timer, TimerDelivery};

use super::port::PLATFORM;
use crate::arch::{cpu, interrupts};
use crate::time::{self, timer};
use vmbus::Instant;

/// Which of a processor's four synthetic timers the kernel uses.
const TIMER: u8 = 0;

/// Lets the hypervisor's clock and timer take over. What is not offered stays as it is.
pub(super) fn start(hypervisor: &'static Hypervisor) {
    match hypervisor.enable_reference_tsc(&PLATFORM) {
        Ok(()) => time::use_reference("hyper-v reference page", &|| {
            super::hypervisor().and_then(reference_units)
        }),
        Err(reason) => log::debug!("the clock stays the time stamp counter: {reason}"),
    }
    if let Err(reason) = start_timer(hypervisor) {
        log::debug!("the timer stays the local APIC's: {reason}");
    }
}

/// Reads the clock: by the page, or, while that is not valid (after a migration, for example), by the counter, which has the same
/// zero. The time stamp counter would be another clock, to which the time would jump.
fn reference_units(hypervisor: &Hypervisor) -> Option<u64> {
    hypervisor.reference_time().map(Instant::reference_units)
}

static SYNTHETIC: Once<Timer> = Once::new();

#[derive(Debug, thiserror::Error)]
enum NoTimer {
    #[error(transparent)]
    Vector(#[from] interrupts::NoVector),
    #[error(transparent)]
    Timer(#[from] vmbus::hyperv::TimerError),
    #[error("there is no reference clock to set it by")]
    NoClock,
}

/// Takes a timer with an interrupt of its own. (A timer that sends messages would need the bus's interrupt to be up.)
fn start_timer(hypervisor: &'static Hypervisor) -> Result<(), NoTimer> {
    if hypervisor.clock_source() == ClockSource::TimestampCounter {
        return Err(NoTimer::NoClock);
    }
    let vector = interrupts::allocate(timer::fired, interrupts::EndOfInterrupt::Written)?;
    let synthetic = Timer::enable(hypervisor, TIMER, TimerDelivery::Direct { vector });
    let synthetic = synthetic.inspect_err(|_| interrupts::release(vector))?;
    SYNTHETIC.call_once(|| synthetic);
    timer::use_platform_timer("hyper-v synthetic timer", &arm);
    Ok(())
}

/// Arms the timer for a time on the kernel's clock.
fn arm(deadline_ns: u64) -> bool {
    let (Some(timer), Some(hypervisor)) = (SYNTHETIC.get(), super::hypervisor()) else {
        return false;
    };
    if cpu::current() != 0 {
        return false;
    }
    let left_ns = deadline_ns.saturating_sub(time::now_ns());
    let Some(now) = reference_units(hypervisor) else {
        return false;
    };
    let units = now.saturating_add(left_ns.div_ceil(100));
    timer.set(Instant::from_reference_units(units));
    true
}

/// Stops the timer: the next system is to find a clean machine.
pub(super) fn stop() {
    if let Some(timer) = SYNTHETIC.get() {
        timer.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::testing::FakePlatform;
    use vmbus::testing::model::{Config, Host, Personality};

    #[test]
    fn b3_the_clock_goes_on_evenly_when_the_page_becomes_invalid() {
        let platform = FakePlatform::new();
        let host = Host::new(platform, Config::new(Personality::HyperV));
        let hypervisor = Hypervisor::detect_on(host).unwrap();
        hypervisor.enable_reference_tsc(platform).unwrap();
        assert_eq!(hypervisor.clock_source(), ClockSource::ReferencePage);
        let before = reference_units(&hypervisor).unwrap();
        host.set_tsc_sequence(0);
        assert_eq!(hypervisor.clock_source(), ClockSource::ReferenceCounter);
        let after = reference_units(&hypervisor).expect("there is a clock still");
        assert!((before..before + 10_000_000).contains(&after), "{before} and {after}");
        hypervisor.disable_reference_tsc();
        assert!(
            reference_units(&hypervisor).is_some_and(|later| later >= after),
            "also at the end"
        );
    }
}
