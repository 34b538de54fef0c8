//! What the machine is: which hypervisor, and what it says of its clocks. The one place that binds the kernel to `vmbus`.

use crate::arch::cpu;
use crate::time::RateSource;
use core::fmt;

/// The hypervisor under the kernel, as far as the kernel itself needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// None that shows itself.
    None,
    /// Hyper-V, or a hypervisor that offers its interface.
    HyperV {
        /// Largest leaf.
        max_leaf: u32,
    },
    /// Another one.
    Other {
        /// Its signature.
        signature: Signature,
        /// Largest leaf.
        max_leaf: u32,
    },
}

/// Twelve characters from CPUID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 12]);

impl Signature {
    fn from_words(words: [u32; 3]) -> Self {
        let mut bytes = [0; 12];
        for (to, from) in bytes.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
            *to = from;
        }
        Self(bytes)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0.iter().take_while(|&&byte| byte != 0) {
            write!(
                f,
                "{}",
                if byte.is_ascii_graphic() || byte == b' ' {
                    char::from(byte)
                } else {
                    '?'
                }
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no hypervisor"),
            Self::HyperV { .. } => f.write_str("Hyper-V"),
            Self::Other { signature, .. } => write!(f, "hypervisor \"{signature}\" without Hyper-V's interface"),
        }
    }
}

/// Interprets CPUID leaves; `hypervisor` is the processor's bit that says that there is one.
fn identify(hypervisor: bool, mut cpuid: impl FnMut(u32) -> [u32; 4]) -> Hypervisor {
    if !hypervisor {
        return Hypervisor::None;
    }
    let [max_leaf, ebx, ecx, edx] = cpuid(0x4000_0000);
    let signature = Signature::from_words([ebx, ecx, edx]);
    // TLFS section 2.4: the vendor says who it is, the interface ("Hv#1") what it offers; the latter counts.
    if max_leaf >= 0x4000_0005 && cpuid(0x4000_0001)[0] == u32::from_le_bytes(*b"Hv#1") {
        Hypervisor::HyperV { max_leaf }
    } else {
        Hypervisor::Other { signature, max_leaf }
    }
}

/// Asks the processor which hypervisor there is.
pub fn hypervisor() -> &'static Hypervisor {
    static FOUND: spin::Once<Hypervisor> = spin::Once::new();
    FOUND.call_once(|| identify(cpu::features().hypervisor, cpu::cpuid))
}

/// The processor's vendor and name. Four exits to the host: only asked for where it is shown.
pub fn processor_name() -> ([u8; 48], Signature) {
    let [_, ebx, ecx, edx] = cpu::cpuid(0);
    let mut name = [0; 48];
    let words = (0x8000_0002..=0x8000_0004).flat_map(cpu::cpuid);
    for (to, from) in name.iter_mut().zip(words.flat_map(u32::to_le_bytes)) {
        *to = from;
    }
    (name, Signature::from_words([ebx, edx, ecx]))
}

/// The rate of the time stamp counter, if anybody tells it at once.
fn told_rate() -> Option<(u64, RateSource)> {
    let from_hypervisor = match *hypervisor() {
        Hypervisor::HyperV { .. } => hyperv_rates().map(|(tsc, apic)| {
            crate::arch::apic::set_timer_frequency(apic);
            tsc
        }),
        // Leaf 0x40000010, which several hypervisors share: kHz of the counter.
        Hypervisor::Other { max_leaf, .. } if max_leaf >= 0x4000_0010 => {
            Some(u64::from(cpu::cpuid(0x4000_0010)[0]) * 1000)
        }
        _ => None,
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
    const ACCESS_REFERENCE_COUNTER: u32 = 1 << 1;
    const REFERENCE_COUNTER: u32 = 0x4000_0020;
    static HAS: spin::Once<bool> = spin::Once::new();
    let has = *HAS.call_once(|| {
        matches!(hypervisor(), Hypervisor::HyperV { .. }) && cpu::cpuid(0x4000_0003)[0] & ACCESS_REFERENCE_COUNTER != 0
    });
    has.then(|| {
        let reference = hyperv_register(REFERENCE_COUNTER);
        Sample {
            tsc: cpu::tsc(),
            reference,
        }
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

/// Hyper-V's rates of the time stamp counter and of the APIC's timer, if the guest may ask (TLFS section 12.8.1).
fn hyperv_rates() -> Option<(u64, u64)> {
    const ACCESS_FREQUENCY_MSRS: u32 = 1 << 11;
    const FREQUENCY_MSRS_AVAILABLE: u32 = 1 << 8;
    const TSC_FREQUENCY: u32 = 0x4000_0022;
    const APIC_FREQUENCY: u32 = 0x4000_0023;
    let [eax, _, _, edx] = cpu::cpuid(0x4000_0003);
    if eax & ACCESS_FREQUENCY_MSRS == 0 || edx & FREQUENCY_MSRS_AVAILABLE == 0 {
        return None;
    }
    Some((hyperv_register(TSC_FREQUENCY), hyperv_register(APIC_FREQUENCY)))
}

#[expect(unsafe_code, reason = "reads a register of the hypervisor")]
fn hyperv_register(register: u32) -> u64 {
    // SAFETY: The callers ask for the two registers of rates and the reference counter only, after the hypervisor has said that
    // they exist and may be read.
    unsafe { cpu::read_msr(register) }
}

/// Resets the machine by the hypervisor's register, if the hypervisor offers that; otherwise, or if it has no effect, returns.
pub fn reset() {
    const ACCESS_RESET_MSR: u32 = 1 << 7;
    const RESET: u32 = 0x4000_0003;
    if !matches!(hypervisor(), Hypervisor::HyperV { .. }) || cpu::cpuid(0x4000_0003)[0] & ACCESS_RESET_MSR == 0 {
        return;
    }
    #[expect(unsafe_code, reason = "writes a register of the hypervisor")]
    // SAFETY: The hypervisor says that the register exists; the end of the machine is what the caller wants.
    unsafe {
        cpu::write_msr(RESET, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[u8; 12]) -> [u32; 3] {
        [0, 4, 8].map(|at| u32::from_le_bytes(text[at..at + 4].try_into().unwrap()))
    }

    fn machine(max_leaf: u32, signature: &[u8; 12], interface: &[u8; 4]) -> Hypervisor {
        let [b, c, d] = words(signature);
        identify(true, |leaf| match leaf {
            0x4000_0000 => [max_leaf, b, c, d],
            0x4000_0001 => [u32::from_le_bytes(*interface), 0, 0, 0],
            _ => unreachable!(),
        })
    }

    #[test]
    fn hypervisors_are_told_apart() {
        assert_eq!(
            machine(0x4000_000c, b"Microsoft Hv", b"Hv#1"),
            Hypervisor::HyperV { max_leaf: 0x4000_000c }
        );
        assert_eq!(
            machine(0x4000_0005, b"OpenVMMxxxxx", b"Hv#1"),
            Hypervisor::HyperV { max_leaf: 0x4000_0005 }
        );
        let kvm = machine(0x4000_0001, b"KVMKVMKVM\0\0\0", b"\0\0\0\0");
        assert_eq!(kvm.to_string(), "hypervisor \"KVMKVMKVM\" without Hyper-V's interface");
        assert_eq!(identify(false, |_| unreachable!()), Hypervisor::None);
        assert_eq!(Signature(*b"TCG\x07TCG\xffTCGT").to_string(), "TCG?TCG?TCGT");
    }

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
