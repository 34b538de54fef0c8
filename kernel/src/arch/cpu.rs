//! The processor: features, time stamp counter, model-specific registers, interrupts on and off, halting.
//!
//! On the development machine, where the tests run, interrupts cannot be switched: those functions do nothing there.
#![expect(unsafe_code, reason = "privileged instructions")]

use core::arch::x86_64::{__cpuid, _rdtsc};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::interrupts::int3;
use x86_64::instructions::{hlt, interrupts, tables};
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

/// Number of a processor, as the kernel counts them. Only the first runs so far.
pub type Processor = u32;

/// Processors that the kernel has room for.
pub const MAX_PROCESSORS: usize = 64;

/// The processor that asks.
#[must_use]
pub const fn current() -> Processor {
    0
}

/// What the kernel needs to know of the processor. Each CPUID is an exit to the host, so it is asked once.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// Runs under a hypervisor that says so.
    pub hypervisor: bool,
    /// Has the APIC's registers as MSRs.
    pub x2apic: bool,
    /// Has a timer that fires at a value of the time stamp counter.
    pub tsc_deadline: bool,
    /// The time stamp counter runs at a constant rate.
    pub invariant_tsc: bool,
    /// Can forbid execution by page.
    pub no_execute: bool,
    /// Has pages of 1 GiB.
    pub gigabyte_pages: bool,
    /// Largest basic CPUID leaf.
    pub max_leaf: u32,
}

static FEATURES: Once<Features> = Once::new();

/// The processor's features.
pub fn features() -> &'static Features {
    FEATURES.call_once(|| {
        let max_leaf = cpuid(0)[0];
        let [_, _, ecx, _] = cpuid(1);
        let max_extended = cpuid(0x8000_0000)[0];
        let extended = if max_extended > 0x8000_0000 {
            cpuid(0x8000_0001)[3]
        } else {
            0
        };
        let power = if max_extended >= 0x8000_0007 {
            cpuid(0x8000_0007)[3]
        } else {
            0
        };
        let bit = |word: u32, number: u32| word & 1 << number != 0;
        Features {
            hypervisor: bit(ecx, 31),
            x2apic: bit(ecx, 21),
            tsc_deadline: bit(ecx, 24),
            invariant_tsc: bit(power, 8),
            no_execute: bit(extended, 20),
            gigabyte_pages: bit(extended, 26),
            max_leaf,
        }
    })
}

/// Asks CPUID: eax, ebx, ecx, edx.
#[must_use]
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let found = __cpuid(leaf);
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// The time stamp counter.
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: Every 64-bit processor has this instruction, and the kernel does not forbid it.
    unsafe { _rdtsc() }
}

/// Reads a model-specific register.
///
/// # Safety
///
/// The register must exist, and reading it must have no effect that another part of the kernel does not expect.
#[must_use]
pub unsafe fn read_msr(register: u32) -> u64 {
    // SAFETY: By the caller.
    unsafe { Msr::new(register).read() }
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The register must exist, and the value must not break what the rest of the kernel relies on.
pub unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: By the caller.
    unsafe { Msr::new(register).write(value) };
}

/// Interrupts are off while this exists; then they are as they were before.
#[derive(Debug)]
pub struct InterruptsOff {
    were_on: bool,
}

impl InterruptsOff {
    /// Switches interrupts off.
    #[must_use = "interrupts come back when this is dropped"]
    pub fn enter() -> Self {
        let were_on = interrupts_enabled();
        if were_on {
            disable_interrupts();
        }
        Self { were_on }
    }
}

impl Drop for InterruptsOff {
    fn drop(&mut self) {
        if self.were_on {
            enable_interrupts();
        }
    }
}

/// Whether interrupts are on.
#[must_use]
pub fn interrupts_enabled() -> bool {
    cfg!(target_os = "none") && interrupts::are_enabled()
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    if cfg!(target_os = "none") {
        interrupts::enable();
    }
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    if cfg!(target_os = "none") {
        interrupts::disable();
    }
}

/// Lets interrupts in and halts until one comes, with no gap in which one could come unseen. Leaves them on.
pub fn enable_interrupts_and_halt() {
    if cfg!(target_os = "none") {
        interrupts::enable_and_hlt();
    }
}

/// Resets the processor by a fault that it cannot handle.
pub fn triple_fault() -> ! {
    disable_interrupts();
    if cfg!(target_os = "none") {
        let nothing = DescriptorTablePointer {
            limit: 0,
            base: VirtAddr::zero(),
        };
        // SAFETY: nothing is to be handled any more: the next exception ends the machine, which is what the caller wants.
        unsafe { tables::lidt(&nothing) };
        int3();
    }
    halt_forever()
}

/// Stops this processor for ever.
pub fn halt_forever() -> ! {
    loop {
        disable_interrupts();
        if cfg!(target_os = "none") {
            hlt();
        }
    }
}
