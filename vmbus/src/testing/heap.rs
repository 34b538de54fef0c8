//! A heap that fails when told to: [`TestHeap`], for a test program's `#[global_allocator]`.
//!
//! The model and the fake platform allocate as they like. So that a test can let each allocation of the *guest* fail, one
//! after the other, their allocations neither count nor fail. Each block remembers whose it is, so that it is in nobody's
//! figures whoever gives it back.
#![expect(unsafe_code, reason = "a global allocator")]

use alloc::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;
use std::thread_local;

thread_local! {
    /// How deep this thread is in code whose allocations do not count.
    static EXEMPT: Cell<usize> = const { Cell::new(0) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static FAIL_AT: Cell<Option<u64>> = const { Cell::new(None) };
    /// Blocks and bytes that this thread has taken and not given back, those of exempt code left out.
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's heap, with counters and a switch to let an allocation fail.
///
/// ```no_run
/// #[global_allocator]
/// static HEAP: vmbus::testing::TestHeap = vmbus::testing::TestHeap;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TestHeap;

impl TestHeap {
    /// Returns how many allocations this thread has asked for, those of the model left out.
    #[must_use]
    pub fn allocations() -> u64 {
        COUNT.get()
    }

    /// Makes the `n`-th allocation of this thread from now fail (0: the next one), and only that.
    pub fn fail_allocation(n: u64) {
        FAIL_AT.set(Some(COUNT.get() + n));
    }

    /// Ends the failing. Returns true if the allocation that was to fail was still ahead: then the work tested has fewer
    /// allocations than that.
    #[must_use]
    pub fn stop_failing() -> bool {
        FAIL_AT.take().is_some_and(|at| at >= COUNT.get())
    }

    /// Returns how many blocks and bytes this thread has taken and not given back, those of the model left out.
    ///
    /// Of this thread alone, because the test harness has one of its own, which allocates when it likes. What one thread
    /// takes and another gives back is missing in the second one's figures.
    #[must_use]
    pub fn live() -> (isize, isize) {
        LIVE.get()
    }

    /// Runs `work` with allocations that neither count nor fail: for a test's own.
    pub fn exempt<R>(work: impl FnOnce() -> R) -> R {
        let _exempt = Exempt::enter();
        work()
    }

    fn may_allocate() -> bool {
        if EXEMPT.get() > 0 {
            return true;
        }
        let this = COUNT.get();
        COUNT.set(this + 1);
        FAIL_AT.get() != Some(this)
    }
}

/// While it lives, this thread's allocations are not the guest's.
pub(super) struct Exempt {
    depth: usize,
}

impl Exempt {
    pub(super) fn enter() -> Self {
        let depth = EXEMPT.get();
        EXEMPT.set(depth + 1);
        Self { depth }
    }

    /// The other way round: the model calls the guest.
    pub(super) fn leave() -> Self {
        Self {
            depth: EXEMPT.replace(0),
        }
    }
}

impl Drop for Exempt {
    fn drop(&mut self) {
        EXEMPT.set(self.depth);
    }
}

fn note(blocks: isize, bytes: usize) {
    let (live_blocks, live_bytes) = LIVE.get();
    let bytes = blocks * isize::try_from(bytes).unwrap_or(0);
    LIVE.set((live_blocks + blocks, live_bytes + bytes));
}

/// The layout with one byte more behind the block, in which it stands whether it counts.
fn with_mark(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size().checked_add(1)?, layout.align()).ok()
}

// SAFETY: everything is the system's allocator's, one byte longer than asked for; a refusal is a null pointer, as the trait
// has it.
unsafe impl GlobalAlloc for TestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let counts = EXEMPT.get() == 0;
        let Some(marked) = with_mark(layout).filter(|_| Self::may_allocate()) else {
            return core::ptr::null_mut();
        };
        // SAFETY: a layout that is not empty.
        let block = unsafe { System.alloc(marked) };
        if !block.is_null() {
            // SAFETY: the mark lies inside of the block.
            let mark = unsafe { block.add(layout.size()) };
            // SAFETY: as above.
            unsafe { mark.write(u8::from(counts)) };
            if counts {
                note(1, layout.size());
            }
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(marked) = with_mark(layout) else { return };
        // SAFETY: the mark lies inside of the block.
        let mark = unsafe { block.add(layout.size()) };
        // SAFETY: written when the block was allocated.
        if unsafe { mark.read() } != 0 {
            note(-1, layout.size());
        }
        // SAFETY: allocated above, with this layout.
        unsafe { System.dealloc(block, marked) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout::new::<[u64; 4]>();

    fn can_allocate() -> bool {
        // SAFETY: a layout with a size.
        let block = unsafe { TestHeap.alloc(LAYOUT) };
        if block.is_null() {
            return false;
        }
        // SAFETY: allocated just now, in the same way.
        unsafe { TestHeap.dealloc(block, LAYOUT) };
        true
    }

    #[test]
    fn the_allocation_that_was_named_fails_and_no_other() {
        TestHeap::fail_allocation(1);
        assert_eq!([0; 3].map(|_| can_allocate()), [true, false, true]);
        assert!(!TestHeap::stop_failing(), "it was met");
        TestHeap::fail_allocation(9);
        assert!(can_allocate());
        assert!(TestHeap::stop_failing(), "it was not met");
    }

    #[test]
    fn what_another_thread_allocates_is_not_in_the_figures() {
        let before = TestHeap::live();
        // SAFETY: a layout with a size.
        let block = std::thread::spawn(|| unsafe { TestHeap.alloc(LAYOUT) }.expose_provenance());
        let block = core::ptr::with_exposed_provenance_mut(block.join().unwrap());
        assert_eq!(TestHeap::live(), before);
        // SAFETY: allocated by the other thread, in the same way.
        unsafe { TestHeap.dealloc(block, LAYOUT) };
        assert_eq!(TestHeap::live(), (before.0 - 1, before.1 - 32));
    }

    #[test]
    fn what_is_exempt_neither_counts_nor_fails_until_the_guest_is_called() {
        let before = TestHeap::allocations();
        TestHeap::fail_allocation(0);
        TestHeap::exempt(|| {
            assert!(can_allocate());
            let _guest = Exempt::leave();
            assert!(!can_allocate());
        });
        assert_eq!(TestHeap::allocations(), before + 1);
        assert_eq!(EXEMPT.get(), 0);
    }

    #[test]
    fn what_is_exempt_is_not_in_the_figures_whoever_gives_it_back() {
        let before = TestHeap::live();
        // SAFETY: a layout with a size.
        let block = TestHeap::exempt(|| unsafe { TestHeap.alloc(LAYOUT) });
        assert_eq!(TestHeap::live(), before);
        // SAFETY: allocated just now, in the same way.
        unsafe { TestHeap.dealloc(block, LAYOUT) };
        assert_eq!(TestHeap::live(), before);
    }
}
