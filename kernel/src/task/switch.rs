//! The switch from one task's stack to another's.
#![expect(unsafe_code, reason = "switches stacks")]

use crate::memory::layout::to_usize;
use crate::memory::stack::Stack;
use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Saves the registers that a function must preserve, exchanges the stack pointers, and goes on where the other stack stopped.
#[unsafe(naked)]
extern "C" fn exchange(save: *mut u64, load: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret"
    )
}

/// Goes on on another stack; returns when somebody switches back. Interrupts are off.
pub(super) fn switch(save: &AtomicU64, load: &AtomicU64) {
    exchange(save.as_ptr(), load.load(Ordering::Relaxed));
}

/// Writes onto a new stack what [`switch`] expects there, and returns its stack pointer.
pub(super) fn prepare(stack: &Stack, entry: extern "C" fn() -> !) -> u64 {
    // From the top: a zero where a caller's address would stand, which ends backtraces and aligns the stack as after a call; the
    // entry, to which `exchange` returns; six registers.
    let words = [0, 0, 0, 0, 0, 0, (entry as *const ()).addr() as u64, 0];
    let pointer = stack.top() - size_of_val(&words) as u64;
    // SAFETY: The words lie inside the new stack, which nobody uses yet.
    unsafe { core::ptr::with_exposed_provenance_mut::<[u64; 8]>(to_usize(pointer)).write(words) };
    pointer
}

#[cfg(target_os = "none")]
/// Leaves the current stack for good and calls `entry` on a new one.
///
/// # Safety
///
/// The stack must live for ever, and nothing on the old one may be used again.
pub(crate) unsafe fn leave_for(stack: &Stack, entry: extern "C" fn() -> !) -> ! {
    let pointer = prepare(stack, entry);
    let mut unused = 0;
    exchange(&raw mut unused, pointer);
    unreachable!("nobody returns to the old stack")
}
