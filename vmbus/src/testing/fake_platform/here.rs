//! What a thread of the test stands for: the processor that it is on, and how deep it is in dispatch sections.

use core::cell::Cell;
use std::thread_local;

use crate::platform::{DispatchToken, ProcessorIndex, TaskId};

thread_local! {
    static PROCESSOR: Cell<u32> = const { Cell::new(0) };
    static DISPATCH_DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// While it lives, the thread is on another processor.
#[derive(Debug)]
#[must_use = "the thread is on the processor only as long as this lives"]
pub struct ProcessorGuard {
    before: u32,
}

impl ProcessorGuard {
    pub(super) fn enter(index: u32) -> Self {
        Self {
            before: PROCESSOR.replace(index),
        }
    }
}

impl Drop for ProcessorGuard {
    fn drop(&mut self) {
        PROCESSOR.set(self.before);
    }
}

pub(super) fn processor() -> ProcessorIndex {
    ProcessorIndex(PROCESSOR.get())
}

/// A task is a thread: the address of a variable of its own tells it from the others.
pub(super) fn task() -> TaskId {
    PROCESSOR.with(|here| TaskId(core::ptr::from_ref(here).addr()))
}

pub(super) fn dispatch_depth() -> usize {
    DISPATCH_DEPTH.get()
}

pub(super) fn enter_dispatch() -> DispatchToken {
    let depth = DISPATCH_DEPTH.get();
    DISPATCH_DEPTH.set(depth + 1);
    DispatchToken(depth)
}

/// Leaves the section of `token`; an error is the depth at which it was not the innermost one.
pub(super) fn leave_dispatch(token: DispatchToken) -> Result<(), usize> {
    let depth = DISPATCH_DEPTH.replace(token.0);
    if depth == token.0 + 1 { Ok(()) } else { Err(depth) }
}
