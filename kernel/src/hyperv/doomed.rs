//! The processor, with a hypercall that panics when the self-test wants it: with all that is held while a message is posted.
#![expect(unsafe_code, reason = "passes the instructions on")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use vmbus::hyperv::machine::{Cpuid, Machine, Native};

/// The machine of a kernel with self-tests.
pub(super) static MACHINE: Doomed = Doomed;

/// Whether the next hypercall panics.
static NEXT: AtomicBool = AtomicBool::new(false);

/// Has the next hypercall panic.
pub(crate) fn next_hypercall() {
    NEXT.store(true, Ordering::Relaxed);
}

pub(super) struct Doomed;

// SAFETY: these are the instructions, or a panic before one.
unsafe impl Machine for Doomed {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        Native.cpuid(leaf, subleaf)
    }

    fn timestamp(&self) -> u64 {
        Native.timestamp()
    }

    unsafe fn read_msr(&self, register: u32) -> u64 {
        // SAFETY: by the caller.
        unsafe { Native.read_msr(register) }
    }

    unsafe fn write_msr(&self, register: u32, value: u64) {
        // SAFETY: by the caller.
        unsafe { Native.write_msr(register, value) }
    }

    #[expect(clippy::panic, reason = "it is the test")]
    unsafe fn hypercall(&self, page: NonNull<u8>, control: u64, input: u64, output: u64) -> u64 {
        if NEXT.swap(false, Ordering::Relaxed) {
            panic!("forced by the self-test, in a hypercall with control {control:#x}");
        }
        // SAFETY: by the caller.
        unsafe { Native.hypercall(page, control, input, output) }
    }

    fn take_hypercall_page(&self) -> bool {
        Native.take_hypercall_page()
    }

    fn give_hypercall_page_back(&self) {
        Native.give_hypercall_page_back();
    }
}
