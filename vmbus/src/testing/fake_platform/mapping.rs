//! Memory in a file of the system's, so that it can be mapped more than once: [`File`]. Only on 64-bit Linux and not in an
//! interpreter; elsewhere it cannot be made.
#![cfg_attr(
    not(all(target_os = "linux", target_pointer_width = "64", not(miri))),
    expect(clippy::missing_const_for_fn, reason = "only there are they trivial")
)]

use core::ptr::NonNull;

use crate::memory::PAGE_SIZE;

/// A file in memory. Its pages are handed out once, from the front.
#[derive(Debug)]
pub(super) struct File {
    #[cfg_attr(
        not(all(target_os = "linux", target_pointer_width = "64", not(miri))),
        expect(dead_code, reason = "there are no such files there")
    )]
    descriptor: i32,
    pages: usize,
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod system {
    use super::{File, NonNull, PAGE_SIZE};
    use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

    // The constants of Linux on all 64-bit machines that Rust has a standard library for.
    const PROT_READ_WRITE: c_int = 3;
    const MAP_SHARED: c_int = 1;
    const MAP_PRIVATE_ANONYMOUS: c_int = 0x22;
    const MAP_FIXED: c_int = 0x10;
    const MADV_REMOVE: c_int = 9;

    unsafe extern "C" {
        fn memfd_create(name: *const c_char, flags: c_uint) -> c_int;
        fn ftruncate(descriptor: c_int, length: c_long) -> c_int;
        fn mmap(
            address: *mut c_void,
            length: usize,
            protection: c_int,
            flags: c_int,
            descriptor: c_int,
            offset: c_long,
        ) -> *mut c_void;
        fn munmap(address: *mut c_void, length: usize) -> c_int;
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }

    fn mapped(result: *mut c_void) -> Option<NonNull<u8>> {
        // MAP_FAILED is all ones.
        (result.addr() != usize::MAX).then_some(())?;
        NonNull::new(result.cast())
    }

    impl File {
        pub(in super::super) fn new() -> Option<Self> {
            // SAFETY: a C string and no flags.
            let descriptor = unsafe { memfd_create(c"vmbus-test".as_ptr(), 0) };
            (descriptor >= 0).then_some(Self { descriptor, pages: 0 })
        }

        /// Adds fresh zeroed pages to the file and maps them. Returns where, and the number of the first in the file.
        pub(in super::super) fn allocate(&mut self, page_count: usize) -> Option<(NonNull<u8>, usize)> {
            let first = self.pages;
            let length = c_long::try_from((first + page_count) * PAGE_SIZE).ok()?;
            // SAFETY: makes an own file longer.
            if unsafe { ftruncate(self.descriptor, length) } != 0 {
                return None;
            }
            let offset = c_long::try_from(first * PAGE_SIZE).ok()?;
            let length = page_count * PAGE_SIZE;
            let nowhere = core::ptr::null_mut();
            // SAFETY: a new mapping, placed by the system.
            let base = unsafe { mmap(nowhere, length, PROT_READ_WRITE, MAP_SHARED, self.descriptor, offset) };
            let base = mapped(base)?;
            self.pages += page_count;
            Some((base, first))
        }

        /// Maps pages of the file twice in a row.
        pub(in super::super) fn map_twice(&self, pages: &[usize]) -> Option<NonNull<u8>> {
            let length = pages.len() * 2 * PAGE_SIZE;
            let nowhere = core::ptr::null_mut();
            // SAFETY: a new mapping that only takes the place.
            let base = unsafe { mmap(nowhere, length, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0) };
            let base = mapped(base)?;
            for (index, page) in pages.iter().chain(pages).enumerate() {
                let at = base.as_ptr().wrapping_add(index * PAGE_SIZE).cast();
                let offset = c_long::try_from(page * PAGE_SIZE).ok()?;
                let flags = MAP_SHARED | MAP_FIXED;
                // SAFETY: replaces a page of the place just taken.
                let result = unsafe { mmap(at, PAGE_SIZE, PROT_READ_WRITE, flags, self.descriptor, offset) };
                mapped(result)?;
            }
            Some(base)
        }

        /// Removes a mapping of so many pages.
        ///
        /// # Safety
        ///
        /// It was made by this file and is not used any more.
        pub(in super::super) unsafe fn unmap(base: NonNull<u8>, page_count: usize) {
            // SAFETY: the caller vouches for it.
            let _ = unsafe { munmap(base.as_ptr().cast(), page_count * PAGE_SIZE) };
        }

        /// Gives the memory of mapped pages back to the system, then removes the mapping.
        ///
        /// # Safety
        ///
        /// As for [`Self::unmap`], and no other mapping of the pages is used.
        pub(in super::super) unsafe fn free(base: NonNull<u8>, page_count: usize) {
            // SAFETY: the caller vouches for it.
            let _ = unsafe { madvise(base.as_ptr().cast(), page_count * PAGE_SIZE, MADV_REMOVE) };
            // SAFETY: as above.
            unsafe { Self::unmap(base, page_count) };
        }
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
impl File {
    pub(super) fn new() -> Option<Self> {
        None
    }

    pub(super) fn allocate(&mut self, _page_count: usize) -> Option<(NonNull<u8>, usize)> {
        let _ = (self.pages, PAGE_SIZE);
        None
    }

    pub(super) fn map_twice(&self, _pages: &[usize]) -> Option<NonNull<u8>> {
        None
    }

    /// Never called: there is no such file.
    ///
    /// # Safety
    ///
    /// None is needed.
    pub(super) unsafe fn unmap(_base: NonNull<u8>, _page_count: usize) {}

    /// Never called: there is no such file.
    ///
    /// # Safety
    ///
    /// None is needed.
    pub(super) unsafe fn free(_base: NonNull<u8>, _page_count: usize) {}
}
