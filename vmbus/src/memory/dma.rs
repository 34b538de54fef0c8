//! Memory to lend to the host: [`DmaBuffer`].
//!
//! A request takes its buffers by value and gives them back with its completion. Until then the host may read and write
//! them, whatever became of the caller's wait, so what is lent is counted: the pages go back to the platform when the
//! last owner is gone, and a request in flight is an owner. Neighbours: [`SharedPages`], the pages themselves;
//! [`Mdl`](super::Mdl), a chain of such buffers.

use alloc::vec::Vec;
use core::fmt;

use super::{OutOfRange, PAGE_SIZE, Pfn, SharedPages, pages_for};
use crate::Platform;
use crate::fallible::{OutOfMemory, Shared, TryPush, try_vec_with_capacity};
use crate::platform::{NotMapped, OutOfPages};

/// Memory for the host could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The platform has no pages left.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// The heap has no room for the list of pages.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The platform does not know one of its own pages, or the caller's address has no memory.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
}

struct Block {
    pages: SharedPages,
    pfns: Vec<Pfn>,
}

/// A range of bytes in pages that the host may read and write; several may stand on the same pages.
///
/// Cloning makes another owner of the same memory, not a copy. The bytes are reached by [`read_at`](Self::read_at) and
/// [`write_at`](Self::write_at) only, because the host may be writing them at the same time.
#[derive(Clone)]
pub struct DmaBuffer {
    block: Shared<Block>,
    offset: usize,
    len: usize,
}

impl DmaBuffer {
    /// Allocates a zeroed buffer of `len_bytes` bytes that starts at the beginning of a page.
    ///
    /// # Errors
    ///
    /// [`DmaError`] if there is no memory, or if `len_bytes` is 0.
    pub fn allocate(platform: &'static dyn Platform, len_bytes: usize) -> Result<Self, DmaError> {
        let mut buffer = Self::from_pages(SharedPages::allocate(platform, pages_for(len_bytes))?)?;
        buffer.len = len_bytes;
        Ok(buffer)
    }

    /// Makes a buffer of whole pages.
    ///
    /// # Errors
    ///
    /// [`DmaError`] if the heap has no room for the list of pages, or the platform does not know one; the pages are
    /// released then.
    pub fn from_pages(pages: SharedPages) -> Result<Self, DmaError> {
        let mut pfns = try_vec_with_capacity(pages.page_count())?;
        for index in 0..pages.page_count() {
            pfns.try_push(pages.pfn(index)?)?;
        }
        let len = pages.len_bytes();
        Ok(Self {
            block: Shared::try_new(Block { pages, pfns })?,
            offset: 0,
            len,
        })
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns true if the buffer has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns where the first byte lies in its page.
    #[must_use]
    pub const fn offset_in_page(&self) -> usize {
        self.offset % PAGE_SIZE
    }

    /// Returns the pages that the buffer touches, in order.
    #[must_use]
    pub fn pfns(&self) -> &[Pfn] {
        let first = self.offset / PAGE_SIZE;
        let count = match self.len {
            0 => 0,
            len => pages_for(self.offset_in_page().saturating_add(len)),
        };
        self.block
            .pfns
            .get(first..first.saturating_add(count))
            .unwrap_or_default()
    }

    /// Returns another owner of the bytes `offset..offset + len` of this buffer.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they are not all inside.
    pub fn slice(&self, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        self.check(offset, len)?;
        Ok(Self {
            block: self.block.clone(),
            // Inside, as just checked; so below, too.
            offset: self.offset.saturating_add(offset),
            len,
        })
    }

    /// Returns true if nobody else owns the pages: no other slice of them, and no request in flight.
    #[must_use]
    pub fn is_sole_owner(&self) -> bool {
        Shared::owner_count(&self.block) == 1
    }

    #[cfg(test)]
    #[cfg(feature = "host")]
    pub(crate) fn owner_count(&self) -> usize {
        Shared::owner_count(&self.block)
    }

    /// Copies bytes out. The host may write at the same time: each byte is read once, but they may be of different ages.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if the range leaves the buffer; nothing is copied then.
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(offset, target.len())?;
        self.block.pages.read_at(self.offset.saturating_add(offset), target)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if the range leaves the buffer; nothing is copied then.
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), OutOfRange> {
        self.check(offset, source.len())?;
        self.block.pages.write_at(self.offset.saturating_add(offset), source)
    }

    /// Returns the buffer made `len` bytes long, if its pages hold as many.
    pub(crate) fn extended(&self, len: usize) -> Option<Self> {
        (self.offset.checked_add(len)? <= self.block.pages.len_bytes()).then(|| Self {
            block: self.block.clone(),
            offset: self.offset,
            len,
        })
    }

    const fn check(&self, offset: usize, len: usize) -> Result<(), OutOfRange> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(OutOfRange {
                offset,
                len,
                size: self.len,
            }),
        }
    }
}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DmaBuffer")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
