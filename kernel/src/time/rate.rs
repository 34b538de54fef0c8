//! The rate of the time stamp counter: told by the hypervisor or the processor, or measured.

use super::RateSource;
use crate::arch::{apic, cpu};
use crate::hyperv::{self, NotHyperV};

/// The rate of the time stamp counter, if anybody tells it at once.
fn told_rate() -> Option<(u64, RateSource)> {
    let from_hypervisor = match hyperv::found() {
        Ok(hypervisor) => {
            if let Some(hertz) = hypervisor.apic_frequency_hz() {
                apic::set_timer_frequency(hertz);
            }
            hypervisor.tsc_frequency_hz()
        }
        // Leaf 0x40000010, which several hypervisors share: kHz of the counter.
        Err(NotHyperV::Other { .. }) if cpu::cpuid(0x4000_0000)[0] >= 0x4000_0010 => {
            Some(u64::from(cpu::cpuid(0x4000_0010)[0]) * 1000)
        }
        Err(_) => None,
    };
    let from_processor = || {
        let max = cpu::features().max_leaf;
        processor_rate(|leaf| if leaf <= max { cpu::cpuid(leaf) } else { [0; 4] })
    };
    from_hypervisor
        .filter(|hertz| *hertz > 0)
        .map(|hertz| (hertz, RateSource::Hypervisor))
        .or_else(|| from_processor().map(|hertz| (hertz, RateSource::Processor)))
}

/// Finds out the rate of the time stamp counter while the kernel does other things.
///
/// Where nobody tells the rate, it is measured against Hyper-V's reference counter (QEMU offers that without the registers for
/// rates unless it is asked for them): one look at both counters at the beginning, one at the end.
#[derive(Debug, Clone, Copy)]
pub struct RateProbe {
    told: Option<(u64, RateSource)>,
    begin: Option<Sample>,
}

/// Both counters at about the same time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tsc: u64,
    /// In units of 100 ns.
    reference: u64,
}

/// Units of 100 ns between the two looks at least: an exit to the host takes up to 5 us, so this is good to a few per cent at the
/// worst, and to a few per mille where exits take as long as one another. It is only the start's clock and the timers'.
const MEASURE_100NS: u64 = 1500;

impl RateProbe {
    /// Asks whoever may know, or has the first look.
    #[must_use]
    pub fn begin() -> Self {
        let told = told_rate();
        let begin = if told.is_none() { sample() } else { None };
        Self { told, begin }
    }

    /// The rate, if it can be known. Waits if this comes too soon after the beginning.
    #[must_use]
    pub fn finish(self) -> Option<(u64, RateSource)> {
        if self.told.is_some() {
            return self.told;
        }
        let begin = self.begin?;
        // A counter that does not count ends this, too.
        for _ in 0..1000 {
            let end = sample()?;
            if let Some(hertz) = measured_rate(begin, end) {
                return Some((hertz, RateSource::Measured));
            }
            core::hint::spin_loop();
        }
        None
    }
}

fn measured_rate(begin: Sample, end: Sample) -> Option<u64> {
    let reference = end
        .reference
        .checked_sub(begin.reference)
        .filter(|elapsed| *elapsed >= MEASURE_100NS)?;
    let ticks = end.tsc.checked_sub(begin.tsc)?;
    u64::try_from(u128::from(ticks) * 10_000_000 / u128::from(reference))
        .ok()
        .filter(|hertz| *hertz > 0)
}

/// Looks at both counters, if there is a reference counter (TLFS section 12.4).
fn sample() -> Option<Sample> {
    let reference = hyperv::hypervisor()?.reference_time()?.reference_units();
    Some(Sample {
        tsc: cpu::tsc(),
        reference,
    })
}

/// From leaves 0x15 (crystal and ratio) and 0x16 (base frequency in MHz).
fn processor_rate(cpuid: impl Fn(u32) -> [u32; 4]) -> Option<u64> {
    let [denominator, numerator, crystal, _] = cpuid(0x15);
    if denominator != 0 && numerator != 0 && crystal != 0 {
        return Some(u64::from(crystal) * u64::from(numerator) / u64::from(denominator));
    }
    let megahertz = cpuid(0x16)[0] & 0xffff;
    (megahertz != 0).then(|| u64::from(megahertz) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_measured_over_a_window_that_is_long_enough() {
        let begin = Sample {
            tsc: 1000,
            reference: 77,
        };
        assert_eq!(
            measured_rate(
                begin,
                Sample {
                    tsc: 2000,
                    reference: 77 + MEASURE_100NS - 1
                }
            ),
            None
        );
        assert_eq!(
            measured_rate(
                begin,
                Sample {
                    tsc: 376_000,
                    reference: 77 + 1500
                }
            ),
            Some(2_500_000_000)
        );
        assert_eq!(
            measured_rate(
                begin,
                Sample {
                    tsc: 5,
                    reference: 77 + 1500
                }
            ),
            None,
            "a counter that runs backwards"
        );
        assert_eq!(
            measured_rate(
                begin,
                Sample {
                    tsc: 2000,
                    reference: 3
                }
            ),
            None
        );
    }

    #[test]
    fn the_processor_may_tell_its_rate() {
        let leaves = |crystal: u32, megahertz: u32| {
            move |leaf| {
                if leaf == 0x15 {
                    [2, 176, crystal, 0]
                } else {
                    [megahertz, 0, 0, 0]
                }
            }
        };
        assert_eq!(processor_rate(leaves(24_000_000, 0)), Some(2_112_000_000));
        assert_eq!(processor_rate(leaves(0, 2100)), Some(2_100_000_000));
        assert_eq!(processor_rate(leaves(0, 0)), None);
    }
}
