//! [`Tiny`]: the platform trait of `vmbus`.
#![expect(unsafe_code, reason = "the contract with vmbus")]

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;

use vmbus::memory::{Gpa, PAGE_SIZE};
use vmbus::platform::{NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex};

/// This kernel, as `vmbus` sees it.
pub(crate) struct Tiny;

/// The layout of a block of pages; `None` if no memory is that large.
fn layout(page_count: usize) -> Option<Layout> {
    Layout::from_size_align(page_count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()
}

// SAFETY: method by method below.
unsafe impl Platform for Tiny {
    // The heap's blocks are zeroed, aligned as the layout says, and mapped writable and executable, as everything here is.
    fn allocate_pages(&self, page_count: usize, _page_use: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        let layout = layout(page_count).ok_or(OutOfPages { page_count })?;
        // SAFETY: the layout is not empty, because there is at least one page.
        let block = unsafe { alloc_zeroed(layout) };
        NonNull::new(block).ok_or(OutOfPages { page_count })
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        if let Some(layout) = layout(page_count) {
            // SAFETY: by the caller, the block comes from `allocate_pages`, with the same count and so the same layout.
            unsafe { dealloc(base.as_ptr(), layout) };
        }
    }

    // Every address is its own physical address.
    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        Ok(Gpa::new(address.addr().get() as u64))
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(0)
    }

    // Nothing to arrange: the loop below polls.
    fn schedule_deferred(&self, _processor: ProcessorIndex) {}
}
