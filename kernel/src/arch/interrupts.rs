//! Interrupts: the frame that an entry saves, the registry of vectors, and what happens at the end of an interrupt.
//!
//! A hard interrupt handler acknowledges and marks, nothing more: no allocation, no lock that a task may hold, no logging. The work
//! itself is deferred ([`crate::task::deferred`]); it runs at the end of the interrupt that asked for it, with interrupts on.

use super::{apic, cpu, exceptions};
use crate::sync::IrqMutex;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is on the stack when an interrupt or exception reaches Rust.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "the processor's registers by their names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// First vector that [`allocate`] gives out.
const FIRST: u8 = 0x30;

/// Vectors that can be given out.
const COUNT: usize = 32;

/// The APIC's vector for interrupts that vanished before they were taken. Its low four bits must be ones on old processors.
pub(crate) const SPURIOUS: u8 = 0xff;

/// Who tells the APIC that the interrupt is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfInterrupt {
    /// The registry does, after the handler.
    Written,
    /// The interrupt's source does (`AutoEOI`), or the handler.
    Automatic,
}

#[derive(Clone, Copy)]
struct Registration {
    handler: fn(cpu::Processor),
    end: EndOfInterrupt,
}

static HANDLERS: IrqMutex<[Option<Registration>; COUNT]> = IrqMutex::new([None; COUNT]);

/// Depth of interrupts on the only processor.
static DEPTH: AtomicU32 = AtomicU32::new(0);

/// Interrupts since the start.
static TOTAL: AtomicU64 = AtomicU64::new(0);

/// No vector is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no interrupt vector is left")]
pub struct NoVector;

/// Registers a handler and returns its vector.
///
/// # Errors
///
/// [`NoVector`] if all are in use.
pub fn allocate(handler: fn(cpu::Processor), end: EndOfInterrupt) -> Result<u8, NoVector> {
    let mut handlers = HANDLERS.lock();
    let free = handlers.iter_mut().zip(FIRST..).find(|(slot, _)| slot.is_none());
    let (slot, vector) = free.ok_or(NoVector)?;
    *slot = Some(Registration { handler, end });
    Ok(vector)
}

/// Gives a vector back.
pub fn release(vector: u8) {
    if let Some(slot) = vector
        .checked_sub(FIRST)
        .and_then(|index| HANDLERS.lock().get_mut(usize::from(index)).map(Option::take))
    {
        debug_assert!(slot.is_some());
    }
}

/// Whether the processor is in a hard interrupt handler.
#[must_use]
pub fn in_interrupt() -> bool {
    DEPTH.load(Ordering::Relaxed) > 0
}

/// Interrupts since the start.
#[must_use]
pub fn total() -> u64 {
    TOTAL.load(Ordering::Relaxed)
}

/// Where every vector ends up, with interrupts off.
pub fn dispatch(frame: &mut Frame) {
    let Some(vector) = u8::try_from(frame.vector).ok().filter(|&vector| vector >= 32) else {
        exceptions::handle(frame);
        return;
    };
    TOTAL.fetch_add(1, Ordering::Relaxed);
    if frame.rflags & INTERRUPTS_ON == 0 {
        // Nothing is written to the APIC: the interrupt in service is another one, or the first coming of this one.
        UNDUE.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if vector == SPURIOUS {
        return;
    }
    let index = vector.checked_sub(FIRST).map(usize::from);
    // The lock cannot be held here: whoever takes it has interrupts off. The entry is copied and the lock released.
    let registration = index.and_then(|index| HANDLERS.lock().get(index).copied().flatten());
    DEPTH.fetch_add(1, Ordering::Relaxed);
    match registration {
        Some(Registration { handler, end }) => {
            handler(cpu::current());
            if end == EndOfInterrupt::Written {
                apic::end_of_interrupt();
            }
        }
        None => {
            STRAY.fetch_add(1, Ordering::Relaxed);
            apic::end_of_interrupt();
        }
    }
    DEPTH.fetch_sub(1, Ordering::Relaxed);
    crate::task::after_interrupt();
}

/// The flag of interrupts that are let in (RFLAGS.IF).
const INTERRUPTS_ON: u64 = 1 << 9;

/// Interrupts that came while they were off.
static UNDUE: AtomicU64 = AtomicU64::new(0);

/// Interrupts that came while they were off, which no processor does, and which are dropped.
///
/// QEMU's emulation of a nested guest does it: what it injects when the guest is entered it delivers a second time, whatever the
/// guest's flags are, if its time slice ends right behind (seen with 10.0 and `-icount`: the exception number stays set). A
/// handler that interrupts itself would wait for its own locks for ever.
#[must_use]
pub fn undue() -> u64 {
    UNDUE.load(Ordering::Relaxed)
}

/// Interrupts that nobody had asked for.
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Interrupts that nobody had asked for.
#[must_use]
pub fn stray() -> u64 {
    STRAY.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_that_comes_while_they_are_off_reaches_no_handler() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        fn count(_: cpu::Processor) {
            CALLS.fetch_add(1, Ordering::Relaxed);
        }
        let vector = allocate(count, EndOfInterrupt::Written).unwrap();
        let mut frame = Frame {
            vector: u64::from(vector),
            rflags: INTERRUPTS_ON | 2,
            ..Frame::default()
        };
        dispatch(&mut frame);
        assert_eq!((CALLS.load(Ordering::Relaxed), undue()), (1, 0));
        frame.rflags = 2;
        dispatch(&mut frame);
        assert_eq!((CALLS.load(Ordering::Relaxed), undue()), (1, 1));
        release(vector);
    }
}
