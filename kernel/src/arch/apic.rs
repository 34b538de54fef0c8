//! The processor's interrupt controller (local APIC): x2APIC by MSRs, else the registers in memory. Also its timer.
//!
//! Source: Intel SDM volume 3, chapter 11. External interrupts of an old PIC (LINT0) are masked, since firmware may have left a
//! PIC's timer running whose vectors would be exceptions. NMIs (LINT1) are left as they are. The task priority is written only
//! if it is not zero, through the APIC and never through CR8.
#![expect(unsafe_code, reason = "device registers")]

use super::{cpu, interrupts};
use crate::memory;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use volatile::VolatilePtr;

/// IA32_APIC_BASE.
const APIC_BASE: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
/// Registers have the same numbers as MSRs (from 0x800 on) and in memory (times 16).
const X2APIC_MSRS: u32 = 0x800;

const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const END_OF_INTERRUPT: u32 = 0x0b;
const SPURIOUS_VECTOR: u32 = 0x0f;
const COMMAND: u32 = 0x30;
const COMMAND_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;

const MASKED: u32 = 1 << 16;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// How the registers are reached.
#[derive(Debug, Clone, Copy)]
enum Access {
    Msr,
    Memory(Registers),
}

/// The page of registers.
#[derive(Debug, Clone, Copy)]
struct Registers(NonNull<u32>);

// SAFETY: Each processor sees its own APIC at the address, and every access is one aligned 32-bit access.
unsafe impl Send for Registers {}
// SAFETY: As above.
unsafe impl Sync for Registers {}

impl Registers {
    fn at(self, register: u32) -> VolatilePtr<'static, u32> {
        // SAFETY: Registers are 16 bytes apart in a page that stays mapped; numbers are below 0x40.
        let address = unsafe { self.0.add(register as usize * 4) };
        // SAFETY: The address is that of a 32-bit register, valid for ever.
        unsafe { VolatilePtr::new(address) }
    }
}

static ACCESS: Once<Access> = Once::new();

/// Ticks of the APIC's timer in a second, after division by 16; 0: not known.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);

fn read(register: u32) -> u32 {
    match ACCESS.get() {
        #[expect(clippy::cast_possible_truncation, reason = "the registers read here have 32 bits")]
        // SAFETY: The processor is in x2APIC mode, where these MSRs exist; reading them has no effect.
        Some(Access::Msr) => unsafe { cpu::read_msr(X2APIC_MSRS + register) as u32 },
        Some(Access::Memory(registers)) => registers.at(register).read(),
        None => 0,
    }
}

fn write(register: u32, value: u32) {
    match ACCESS.get() {
        // SAFETY: As in `read`; the callers write what the manual describes.
        Some(Access::Msr) => unsafe { cpu::write_msr(X2APIC_MSRS + register, u64::from(value)) },
        Some(Access::Memory(registers)) => registers.at(register).write(value),
        None => (),
    }
}

/// Switches the APIC of this processor on. Without memory for its registers there are no interrupts, and everything polls.
///
/// # Errors
///
/// [`memory::MemoryError`] if the registers could not be mapped.
pub fn start() -> Result<(), memory::MemoryError> {
    // SAFETY: Every 64-bit processor has this MSR.
    let base = unsafe { cpu::read_msr(APIC_BASE) };
    let access = if cpu::features().x2apic {
        if base & (BASE_ENABLE | BASE_X2APIC) != BASE_ENABLE | BASE_X2APIC {
            // SAFETY: The processor has the mode; both bits may be set in steps from any state that firmware leaves.
            unsafe { cpu::write_msr(APIC_BASE, base | BASE_ENABLE) };
            // SAFETY: As above.
            unsafe { cpu::write_msr(APIC_BASE, base | BASE_ENABLE | BASE_X2APIC) };
        }
        Access::Msr
    } else {
        if base & BASE_ENABLE == 0 {
            // SAFETY: Switches the APIC on, as it is after a reset.
            unsafe { cpu::write_msr(APIC_BASE, base | BASE_ENABLE) };
        }
        let page = memory::map_device(base & 0x000f_ffff_ffff_f000, 4096)?;
        Access::Memory(Registers(
            NonNull::new(page.cast()).ok_or(memory::MemoryError::OutOfAddresses)?,
        ))
    };
    ACCESS.call_once(|| access);
    write(LVT_LINT0, MASKED);
    write(LVT_TIMER, MASKED);
    if read(TASK_PRIORITY) != 0 {
        write(TASK_PRIORITY, 0);
    }
    write(SPURIOUS_VECTOR, 1 << 8 | u32::from(interrupts::SPURIOUS));
    Ok(())
}

/// Whether interrupts can come at all.
#[must_use]
pub fn is_on() -> bool {
    ACCESS.is_completed()
}

/// How the registers are reached, for people.
#[must_use]
pub fn mode() -> &'static str {
    match ACCESS.get() {
        Some(Access::Msr) => "x2APIC",
        Some(Access::Memory(_)) => "xAPIC",
        None => "none",
    }
}

/// The APIC's number of this processor.
#[must_use]
pub fn id() -> u32 {
    match ACCESS.get() {
        Some(Access::Memory(_)) => read(ID) >> 24,
        _ => read(ID),
    }
}

/// Ends the interrupt that is in service.
pub fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Sends an interrupt to this processor.
pub fn interrupt_self(vector: u8) {
    // Fixed delivery with the shorthand "self" (bits 18 and 19).
    let command = 1 << 18 | 1 << 14 | u32::from(vector);
    match ACCESS.get() {
        // SAFETY: The one 64-bit register of x2APIC mode.
        Some(Access::Msr) => unsafe { cpu::write_msr(X2APIC_MSRS + COMMAND, u64::from(command)) },
        Some(Access::Memory(_)) => {
            write(COMMAND_HIGH, 0);
            write(COMMAND, command);
        }
        None => (),
    }
}

/// Lets the timer fire once at a value of the time stamp counter, with the given vector.
///
/// Where the processor has no such timer, the APIC's own counter is used; its rate is measured at the first call, unless
/// [`set_timer_frequency`] told it. Returns false if there is no APIC.
pub fn arm_timer(vector: u8, tsc: u64) -> bool {
    if !is_on() {
        return false;
    }
    if cpu::features().tsc_deadline {
        write(LVT_TIMER, TIMER_TSC_DEADLINE | u32::from(vector));
        if matches!(ACCESS.get(), Some(Access::Memory(_))) {
            // A write to the registers in memory and one to an MSR are not in order by themselves, and before the mode is set the
            // deadline would be lost (Intel SDM volume 3, "TSC-Deadline Mode").
            // SAFETY: Every 64-bit processor has this instruction.
            unsafe { core::arch::x86_64::_mm_mfence() };
        }
        // SAFETY: The processor has the MSR. A value in the past fires at once; 0 would disarm.
        unsafe { cpu::write_msr(IA32_TSC_DEADLINE, tsc.max(1)) };
        return true;
    }
    let hertz = match TIMER_HZ.load(Ordering::Relaxed) {
        0 => measure_timer(),
        known => known,
    };
    let ticks =
        u128::from(tsc.saturating_sub(cpu::tsc())) * u128::from(hertz) / u128::from(crate::time::tsc_hertz().max(1));
    let ticks = u32::try_from(ticks).unwrap_or(u32::MAX).max(1);
    write(TIMER_DIVIDE, 0b0011);
    write(LVT_TIMER, u32::from(vector));
    write(TIMER_INITIAL, ticks);
    true
}

/// Keeps the timer from firing.
pub fn disarm_timer() {
    write(LVT_TIMER, MASKED);
}

/// Tells the rate of the APIC's timer, as hypervisors know it (before division).
pub fn set_timer_frequency(hertz: u64) {
    TIMER_HZ.store(hertz / 16, Ordering::Relaxed);
}

/// Counts the timer's ticks over 200 us of the time stamp counter.
fn measure_timer() -> u64 {
    let window = (crate::time::tsc_hertz() / 5000).max(1);
    write(TIMER_DIVIDE, 0b0011);
    write(LVT_TIMER, MASKED);
    let start = cpu::tsc();
    write(TIMER_INITIAL, u32::MAX);
    while cpu::tsc().wrapping_sub(start) < window {
        core::hint::spin_loop();
    }
    let ticks = u64::from(u32::MAX - read(TIMER_CURRENT));
    let elapsed = cpu::tsc().wrapping_sub(start).max(1);
    write(TIMER_INITIAL, 0);
    let hertz = u128::from(ticks) * u128::from(crate::time::tsc_hertz()) / u128::from(elapsed);
    let hertz = u64::try_from(hertz).unwrap_or(u64::MAX).max(1);
    TIMER_HZ.store(hertz, Ordering::Relaxed);
    hertz
}
