//! The heap: `linked_list_allocator` over a range of virtual addresses that grows by frames as it is needed.
//!
//! It never shrinks. Pages for the host do not come from here but from [`super::pages`].
#![expect(unsafe_code, reason = "implements GlobalAlloc")]

use super::frames::FrameRange;
use super::layout::{self, HEAP, HEAP_SIZE, PAGE_SIZE};
use super::paging::Access;
use crate::sync::IrqMutex;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;

/// Bytes by which the heap grows at least.
const CHUNK: u64 = 64 << 10;

struct Growing {
    heap: Heap,
    /// Bytes mapped from [`HEAP`] on.
    mapped: u64,
    /// Bytes known to the heap.
    known: u64,
}

static HEAP_STATE: IrqMutex<Growing> = IrqMutex::new(Growing {
    heap: Heap::empty(),
    mapped: 0,
    known: 0,
});

/// The kernel's global allocator.
#[derive(Debug)]
pub struct KernelHeap;

#[cfg(target_os = "none")]
#[global_allocator]
static GLOBAL: KernelHeap = KernelHeap;

/// Figures of the heap in bytes: used and mapped.
#[must_use]
pub fn usage() -> (u64, u64) {
    let state = HEAP_STATE.lock();
    (state.heap.used() as u64, state.mapped)
}

/// Bytes that are free, whether as frames or in the heap: what a test for leaks compares.
#[must_use]
pub fn free_in_all() -> u64 {
    let (used, mapped) = usage();
    super::statistics().free + mapped - used
}

/// Runs `work` while the heap's lock is held.
#[cfg(any(test, feature = "selftest"))]
pub(crate) fn with_lock_held(work: impl FnOnce()) {
    let _held = HEAP_STATE.lock();
    work();
}

// SAFETY: `linked_list_allocator` hands out disjoint blocks of the memory that it was given; the lock makes its calls exclusive.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut state = HEAP_STATE.lock();
        loop {
            if let Ok(block) = state.heap.allocate_first_fit(layout) {
                return block.as_ptr();
            }
            if state.grow(layout).is_none() {
                return core::ptr::null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(block) = NonNull::new(pointer) {
            // SAFETY: The caller's contract: the block came from `alloc` with this layout.
            unsafe { HEAP_STATE.lock().heap.deallocate(block, layout) };
        }
    }
}

impl Growing {
    /// Makes room for at least one block of the layout; none if there is no memory.
    fn grow(&mut self, wanted: Layout) -> Option<()> {
        let wanted = layout::page_up((wanted.size() as u64).checked_add(wanted.align() as u64 + 64)?);
        let length = wanted.max(CHUNK);
        if length > HEAP_SIZE - self.mapped {
            return None;
        }
        self.map(length);
        // A part may have been mapped before memory ran out; it is used, and kept for the next time.
        let gained = self.mapped - self.known;
        if gained < wanted && self.known > 0 || gained == 0 {
            return None;
        }
        let gained_bytes = layout::to_usize(gained);
        if self.known == 0 {
            let start = core::ptr::with_exposed_provenance_mut(layout::to_usize(HEAP));
            // SAFETY: The range was just mapped, nobody else uses it, and it stays mapped for ever.
            unsafe { self.heap.init(start, gained_bytes) };
        } else {
            // SAFETY: The range behind the heap's end was just mapped for it.
            unsafe { self.heap.extend(gained_bytes) };
        }
        self.known = self.mapped;
        Some(())
    }

    /// Maps up to `length` more bytes: in one run if there is one, else page by page.
    fn map(&mut self, length: u64) {
        let end = self.known + length;
        while self.mapped < end {
            let left = end - self.mapped;
            let run = super::allocate_frames(left / PAGE_SIZE)
                .or_else(|| super::allocate_frame().map(|first| FrameRange { first, count: 1 }));
            let Some(run) = run else { return };
            let bytes = run.count * PAGE_SIZE;
            let mapped = super::with_page_tables(|mapper| {
                mapper.map(HEAP + self.mapped, run.first.address(), bytes, Access::ReadWrite)
            });
            if mapped.is_err() {
                // The frames are lost: a part of them may be mapped, and there is no memory left in any case.
                return;
            }
            self.mapped += bytes;
        }
    }
}
