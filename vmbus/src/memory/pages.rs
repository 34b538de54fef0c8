//! Pages that the host may see: [`SharedPages`].
#![expect(
    unsafe_code,
    reason = "the one place that turns a platform's pages into copies and atomics"
)]

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64};

use super::{Gpa, PAGE_SIZE, Pfn, copy};
use crate::Platform;
use crate::platform::{NotMapped, OutOfPages, PageUse};

/// An access outside the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access to {len} bytes at offset {offset} of {size} bytes")]
pub struct OutOfRange {
    /// Where the access began, in bytes from the block's start.
    pub offset: usize,
    /// How many bytes it was to touch.
    pub len: usize,
    /// The block's size in bytes.
    pub size: usize,
}

/// An owned block of whole pages that the host may read and write, contiguous in the kernel's address space.
///
/// Dropping it gives the pages back to the platform: whoever holds one for the host's sake drops it only after the host
/// has given it up.
pub struct SharedPages {
    base: NonNull<u8>,
    page_count: usize,
    platform: &'static dyn Platform,
}

// SAFETY: the block is owned, is reached only through atomics and raw copies that tolerate concurrent writers (the
// host is one already), and the platform is `Sync`.
unsafe impl Send for SharedPages {}
// SAFETY: as above: no method hands out a plain reference into the block.
unsafe impl Sync for SharedPages {}

impl SharedPages {
    /// Allocates `page_count` zeroed pages for data.
    ///
    /// # Errors
    ///
    /// [`OutOfPages`] if the platform has none, or if `page_count` is 0.
    pub fn allocate(platform: &'static dyn Platform, page_count: usize) -> Result<Self, OutOfPages> {
        Self::allocate_for(platform, page_count, PageUse::Data)
    }

    /// Allocates `page_count` zeroed pages for `page_use`.
    ///
    /// # Errors
    ///
    /// [`OutOfPages`] if the platform has none, or if `page_count` is 0.
    pub fn allocate_for(
        platform: &'static dyn Platform,
        page_count: usize,
        page_use: PageUse,
    ) -> Result<Self, OutOfPages> {
        if page_count == 0 || page_count > isize::MAX as usize / PAGE_SIZE {
            return Err(OutOfPages { page_count });
        }
        let base = platform.allocate_pages(page_count, page_use)?;
        Ok(Self {
            base,
            page_count,
            platform,
        })
    }

    /// Returns the number of pages.
    #[must_use]
    pub const fn page_count(&self) -> usize {
        self.page_count
    }

    /// Returns the size in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.page_count.saturating_mul(PAGE_SIZE)
    }

    /// Returns the platform that the pages came from.
    #[must_use]
    pub fn platform(&self) -> &'static dyn Platform {
        self.platform
    }

    /// Returns where the block lies in the kernel's address space. The memory belongs to this object and the host.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the guest-physical page behind page `index` of the block.
    ///
    /// # Errors
    ///
    /// [`NotMapped`] if the block has no such page, or if the platform does not know its own page.
    pub fn pfn(&self, index: usize) -> Result<Pfn, NotMapped> {
        if index >= self.page_count {
            return Err(NotMapped {
                address: self.base.addr().get().wrapping_add(index.wrapping_mul(PAGE_SIZE)),
            });
        }
        // SAFETY: the page lies inside the block, as just checked.
        let address = unsafe { self.base.add(index.wrapping_mul(PAGE_SIZE)) };
        Ok(self.platform.translate(address)?.page())
    }

    /// Returns the guest-physical address of the block's first byte.
    ///
    /// # Errors
    ///
    /// [`NotMapped`] if the platform does not know its own page.
    pub fn gpa(&self) -> Result<Gpa, NotMapped> {
        self.platform.translate(self.base)
    }

    const fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        let size = self.len_bytes();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(OutOfRange { offset, len, size }),
        }
    }

    /// Copies bytes out of the block. The host may write at the same time: each byte is read once, but bytes may be of
    /// different ages.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if the range leaves the block; nothing is copied then.
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(offset, target.len())?;
        // SAFETY: inside the block or at its end, as just checked.
        let source = unsafe { self.base.add(offset) };
        // SAFETY: valid for that many bytes, which are only ever reached as atomics or by such copies.
        unsafe { copy::from_shared(target, source) };
        Ok(())
    }

    /// Copies bytes into the block.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if the range leaves the block; nothing is copied then.
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset, source.len())?;
        // SAFETY: inside the block or at its end, as just checked.
        let target = unsafe { self.base.add(offset) };
        // SAFETY: valid for that many bytes, which are only ever reached as atomics or by such copies.
        unsafe { copy::to_shared(target, source) };
        Ok(())
    }

    /// Returns the aligned 32-bit or 64-bit word at byte `offset` as an atomic.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if the word leaves the block or is not aligned.
    pub fn word<T: SharedWord>(&self, offset: usize) -> Result<&T, OutOfRange> {
        self.check(offset, size_of::<T>())?;
        if !offset.is_multiple_of(align_of::<T>()) {
            return Err(OutOfRange {
                offset,
                len: size_of::<T>(),
                size: self.len_bytes(),
            });
        }
        // SAFETY: inside the block, as just checked.
        let pointer = unsafe { self.base.add(offset) };
        // SAFETY: aligned (the block is page-aligned, the offset a multiple), inside the block, and `T` is an atomic
        // integer, for which every bit pattern is valid and concurrent access is defined.
        Ok(unsafe { pointer.cast::<T>().as_ref() })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for core::sync::atomic::AtomicU32 {}
    impl Sealed for core::sync::atomic::AtomicU64 {}
}

/// A word in shared memory: `AtomicU32` or `AtomicU64`.
pub trait SharedWord: sealed::Sealed {}
impl SharedWord for AtomicU32 {}
impl SharedWord for AtomicU64 {}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: exactly what was allocated; the owner drops the block only when the host has given it up.
        unsafe { self.platform.release_pages(self.base, self.page_count) };
    }
}

impl fmt::Debug for SharedPages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SharedPages")
            .field("base", &self.base)
            .field("page_count", &self.page_count)
            .finish()
    }
}
