//! A chain of byte ranges of guest memory: [`Mdl`] (Windows: `MDL`, a memory descriptor list).
//!
//! An `Mdl` says which bytes a packet or a GPADL describes without carrying them. It is built from [`DmaBuffer`]s, from
//! other `Mdl`s, and by `unsafe` constructors from memory that the caller vouches for. It owns what it describes (by
//! count), so whoever holds an `Mdl` holds the memory. There are no slices over it, because the host may be writing:
//! [`Mdl::read_at`] and [`Mdl::write_at`] copy.
//!
//! Offsets and lengths are as KMCL documents them: bytes from the start of the chain, and a length of 0 means "to the
//! end". Neighbours: [`super::DmaBuffer`]; [`crate::kmcl`], which lends `Mdl`s to the peer.
#![expect(
    unsafe_code,
    reason = "copies to and from memory that the caller of an unsafe constructor vouched for"
)]

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use super::{DmaBuffer, DmaError, OutOfRange, PAGE_SIZE, Pfn, copy, pages_for};
use crate::Platform;
use crate::fallible::{OutOfMemory, Shared, TryPush, try_vec_with_capacity};

/// Bytes of an `Mdl` could not be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MdlError {
    /// The range is not inside the `Mdl`.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// A part was made from page numbers alone, so the kernel has no address for it.
    #[error("a part of the memory has page numbers but no kernel address")]
    NoAddress,
}

/// Memory of the kernel that is not the crate's: address, length, and the pages behind it.
struct KernelMemory {
    base: NonNull<u8>,
    pfns: Vec<Pfn>,
}
// SAFETY: the constructor's caller vouched that the memory may be reached from anywhere as racy bytes while this lives.
unsafe impl Send for KernelMemory {}
// SAFETY: as above; no method hands out a reference into the memory.
unsafe impl Sync for KernelMemory {}

#[derive(Clone)]
enum Memory {
    Dma(DmaBuffer),
    Kernel(Shared<KernelMemory>),
    Pages(Shared<Vec<Pfn>>),
}

/// A range of one memory; `offset` counts from the start of the buffer, or of the first page of a page list, or from the
/// base address.
#[derive(Clone)]
struct Piece {
    memory: Memory,
    offset: usize,
    len: usize,
}

#[derive(Clone)]
enum Chain {
    None,
    One(Piece),
    Many(Shared<Vec<Piece>>),
}

/// A chain of byte ranges of guest memory. Cloning makes another owner of the same memory.
///
/// # Examples
///
/// ```
/// # fn example(platform: &'static dyn vmbus::Platform) -> Result<(), Box<dyn core::error::Error>> {
/// use vmbus::memory::{DmaBuffer, Mdl};
/// let header = DmaBuffer::allocate(platform, 64)?;
/// let body = DmaBuffer::allocate(platform, 4096)?;
/// let mdl = Mdl::chain([header.into(), body.into()])?;
/// assert_eq!(mdl.len(), 4160);
/// let tail = mdl.range(64, 0)?; // 0: to the end
/// tail.write_at(0, b"first bytes of the body")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Mdl {
    chain: Chain,
    offset: usize,
    len: usize,
}

/// The part of an `Mdl` that lies in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSpan {
    /// The page.
    pub pfn: Pfn,
    /// Where in the page it starts, in bytes.
    pub offset: usize,
    /// How many bytes of the page it covers, at least 1.
    pub len: usize,
}

impl PageSpan {
    /// Returns true if `next` can follow in the same range of a page list: only a range's first page may start, and only
    /// its last page may end, inside the page.
    #[must_use]
    pub const fn continues_with(&self, next: &Self) -> bool {
        self.offset + self.len == PAGE_SIZE && next.offset == 0
    }
}

impl From<DmaBuffer> for Mdl {
    fn from(buffer: DmaBuffer) -> Self {
        let len = buffer.len();
        Self::one(Memory::Dma(buffer), 0, len)
    }
}

impl Mdl {
    const fn one(memory: Memory, offset: usize, len: usize) -> Self {
        Self {
            chain: Chain::One(Piece { memory, offset, len }),
            offset: 0,
            len,
        }
    }

    /// Describes no bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            chain: Chain::None,
            offset: 0,
            len: 0,
        }
    }

    /// Joins several in the order given, like MDLs linked by their `Next` pointer.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn chain(parts: impl IntoIterator<Item = Self>) -> Result<Self, OutOfMemory> {
        let mut pieces = Vec::new();
        for part in parts {
            for piece in part.pieces() {
                pieces.try_push(piece)?;
            }
        }
        let len = pieces.iter().map(|piece| piece.len).sum();
        Ok(Self {
            chain: Chain::Many(Shared::try_new(pieces)?),
            offset: 0,
            len,
        })
    }

    /// Describes any memory of the kernel, as a Windows driver does with `IoAllocateMdl` and locked pages.
    ///
    /// # Errors
    ///
    /// [`DmaError`] if part of the range is not mapped, or if there is no memory for the list of pages.
    ///
    /// # Safety
    ///
    /// Until the last clone of the result is gone (a request in flight holds one), the `len` bytes at `base` stay mapped
    /// to the same pages, and are not reached through references: the host may read and write them, and so may the
    /// owners of the result.
    pub unsafe fn from_kernel_memory(
        platform: &'static dyn Platform,
        base: NonNull<u8>,
        len: usize,
    ) -> Result<Self, DmaError> {
        let offset_in_page = base.addr().get() % PAGE_SIZE;
        let page_count = if len == 0 { 0 } else { pages_for(offset_in_page + len) };
        let mut pfns = try_vec_with_capacity(page_count)?;
        for index in 0..page_count {
            // The first byte of the range in that page.
            let offset = (index * PAGE_SIZE).saturating_sub(offset_in_page);
            // SAFETY: inside the range that the caller vouches for.
            let address = unsafe { base.add(offset) };
            pfns.try_push(platform.translate(address)?.page())?;
        }
        let memory = Memory::Kernel(Shared::try_new(KernelMemory { base, pfns })?);
        Ok(Self::one(memory, 0, len))
    }

    /// Describes `len` bytes of the pages `pfns`, from `first_offset` bytes into the first.
    ///
    /// The kernel cannot reach the bytes through the result: it is for lending only.
    ///
    /// # Errors
    ///
    /// [`PageListError`] if the pages do not hold so many bytes, or if there is no memory for the list.
    ///
    /// # Safety
    ///
    /// The pages are memory that the host may read and write until the last clone of the result is gone.
    pub unsafe fn from_page_list(pfns: &[Pfn], first_offset: usize, len: usize) -> Result<Self, PageListError> {
        let size = pfns.len() * PAGE_SIZE;
        if first_offset >= PAGE_SIZE || len > size.saturating_sub(first_offset) {
            return Err(PageListError::OutOfRange(OutOfRange {
                offset: first_offset,
                len,
                size,
            }));
        }
        let mut list = try_vec_with_capacity(pfns.len())?;
        for pfn in pfns {
            list.try_push(*pfn)?;
        }
        Ok(Self::one(Memory::Pages(Shared::try_new(list)?), first_offset, len))
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns true if it describes no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of ranges in the chain.
    #[must_use]
    pub fn chain_len(&self) -> usize {
        self.pieces().count()
    }

    /// Returns another owner of `len` bytes from `offset`; a `len` of 0 means to the end.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they are not all inside.
    pub fn range(&self, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        let out_of_range = OutOfRange {
            offset,
            len,
            size: self.len,
        };
        let rest = self.len.checked_sub(offset).ok_or(out_of_range)?;
        if len > rest {
            return Err(out_of_range);
        }
        Ok(Self {
            chain: self.chain.clone(),
            offset: self.offset + offset,
            len: if len == 0 { rest } else { len },
        })
    }

    /// Returns the first part of the chain, made `len` bytes long: at most to the end of the page that it ends in.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if that is longer, or if the memory does not own the rest of the page.
    pub(crate) fn first_part_extended(&self, len: usize) -> Result<Self, OutOfRange> {
        let out_of_range = OutOfRange {
            offset: 0,
            len,
            size: self.len,
        };
        let (piece, from, available) = self.parts().next().ok_or(out_of_range)?;
        if len <= available {
            return self.range(0, len);
        }
        let memory = match &piece.memory {
            Memory::Dma(buffer) => Memory::Dma(buffer.extended(piece.offset + from + len).ok_or(out_of_range)?),
            Memory::Pages(pfns) if pages_for(piece.offset + from + len) <= pfns.len() => piece.memory.clone(),
            _ => return Err(out_of_range),
        };
        if pages_for(piece.pages_at(from).1 + len) != pages_for(piece.pages_at(from).1 + available) {
            return Err(out_of_range);
        }
        Ok(Self::one(memory, piece.offset + from, len))
    }

    /// Returns the buffer, if this is one whole buffer and nothing else; otherwise returns the `Mdl` unchanged.
    ///
    /// # Errors
    ///
    /// The `Mdl` itself, if it was not made by `Mdl::from(buffer)`.
    pub fn into_dma_buffer(self) -> Result<DmaBuffer, Self> {
        match self.chain {
            Chain::One(Piece {
                memory: Memory::Dma(buffer),
                ..
            }) if self.offset == 0 && self.len == buffer.len() => Ok(buffer),
            chain => Err(Self { chain, ..self }),
        }
    }

    /// Returns the parts of the chain that this range covers.
    fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.parts().map(|(piece, from, len)| Piece {
            memory: piece.memory.clone(),
            offset: piece.offset + from,
            len,
        })
    }

    /// Walks the pieces that this range covers: each with the first covered byte in it and the number of them.
    fn parts(&self) -> impl Iterator<Item = (&Piece, usize, usize)> {
        let pieces = match &self.chain {
            Chain::None => &[],
            Chain::One(piece) => core::slice::from_ref(piece),
            Chain::Many(pieces) => pieces.as_slice(),
        };
        let (mut skip, mut left) = (self.offset, self.len);
        pieces.iter().filter_map(move |piece| {
            if skip >= piece.len {
                skip -= piece.len;
                return None;
            }
            let from = skip;
            let len = (piece.len - from).min(left);
            skip = 0;
            left -= len;
            (len > 0).then_some((piece, from, len))
        })
    }

    /// Returns the pages, and where the bytes begin in the first, if one piece of memory is all there is.
    pub(crate) fn run(&self) -> Option<(&[Pfn], usize)> {
        let Chain::One(piece) = &self.chain else { return None };
        let (pfns, start) = piece.pages_at(self.offset);
        let (first, offset) = (start / PAGE_SIZE, start % PAGE_SIZE);
        Some((pfns.get(first..first + pages_for(offset + self.len))?, offset))
    }

    /// Walks the pages in order, each with the bytes in it.
    pub fn page_spans(&self) -> impl Iterator<Item = PageSpan> + '_ {
        self.parts().flat_map(|(piece, from, len)| {
            let (pfns, start) = piece.pages_at(from);
            let mut position = start;
            let end = start + len;
            core::iter::from_fn(move || {
                let pfn = *pfns.get(position / PAGE_SIZE)?;
                let offset = position % PAGE_SIZE;
                let len = (PAGE_SIZE - offset).min(end - position);
                position += len;
                (len > 0).then_some(PageSpan { pfn, offset, len })
            })
        })
    }

    /// Returns how many ranges and how many page numbers it takes to describe the bytes to the host: parts that meet at
    /// page boundaries share a range.
    #[must_use]
    pub fn wire_extent(&self) -> WireExtent {
        let mut extent = WireExtent::default();
        if self.len == 0 {
            return extent;
        }
        if let Chain::One(piece) = &self.chain {
            // One piece is contiguous in the kernel's address space or in the page list: one range.
            let (_, start) = piece.pages_at(self.offset);
            extent.pages = pages_for(start % PAGE_SIZE + self.len);
            extent.ranges = 1;
            return extent;
        }
        let mut last: Option<PageSpan> = None;
        for span in self.page_spans() {
            extent.pages += 1;
            extent.ranges += usize::from(!last.is_some_and(|last| last.continues_with(&span)));
            last = Some(span);
        }
        extent
    }

    /// Copies bytes out; each is read once.
    ///
    /// # Errors
    ///
    /// [`MdlError`]; nothing is copied if the range is wrong.
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), MdlError> {
        self.check(offset, target.len())?;
        let mut rest = target;
        self.walk(offset, rest.len(), |piece, from, len| {
            let (now, later) = core::mem::take(&mut rest).split_at_mut(len);
            rest = later;
            piece.read(from, now)
        })
    }

    /// Copies bytes in.
    ///
    /// # Errors
    ///
    /// [`MdlError`]; nothing is copied if the range is wrong.
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), MdlError> {
        self.check(offset, source.len())?;
        let mut rest = source;
        self.walk(offset, rest.len(), |piece, from, len| {
            let (now, later) = rest.split_at(len);
            rest = later;
            piece.write(from, now)
        })
    }

    fn walk(
        &self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(&Piece, usize, usize) -> Result<(), MdlError>,
    ) -> Result<(), MdlError> {
        let (mut skip, mut left) = (offset, len);
        for (piece, from, available) in self.parts() {
            if left == 0 {
                break;
            }
            if skip >= available {
                skip -= available;
                continue;
            }
            let now = (available - skip).min(left);
            each(piece, from + skip, now)?;
            left -= now;
            skip = 0;
        }
        Ok(())
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

/// A page list makes no `Mdl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageListError {
    /// The pages do not hold the range.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// No memory for the list.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// How much it takes to describe an `Mdl` to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WireExtent {
    /// Ranges: each with a byte count and an offset into its first page.
    pub ranges: usize,
    /// Page numbers in all ranges.
    pub pages: usize,
}

impl Piece {
    /// Returns the page list, and the position of byte `from` of the piece in it.
    fn pages_at(&self, from: usize) -> (&[Pfn], usize) {
        let position = self.offset + from;
        match &self.memory {
            Memory::Dma(buffer) => (buffer.pfns(), buffer.offset_in_page() + position),
            Memory::Kernel(memory) => (&memory.pfns, memory.base.addr().get() % PAGE_SIZE + position),
            Memory::Pages(pfns) => (pfns, position),
        }
    }

    fn read(&self, from: usize, target: &mut [u8]) -> Result<(), MdlError> {
        let position = self.offset + from;
        match &self.memory {
            Memory::Dma(buffer) => Ok(buffer.read_at(position, target)?),
            Memory::Kernel(memory) => {
                // SAFETY: `target` is as long as a part of the range that the constructor's caller vouched for.
                unsafe { copy::from_shared(target, memory.at(position)) };
                Ok(())
            }
            Memory::Pages(_) => Err(MdlError::NoAddress),
        }
    }

    fn write(&self, from: usize, source: &[u8]) -> Result<(), MdlError> {
        let position = self.offset + from;
        match &self.memory {
            Memory::Dma(buffer) => Ok(buffer.write_at(position, source)?),
            Memory::Kernel(memory) => {
                // SAFETY: `source` is as long as a part of the range that the constructor's caller vouched for.
                unsafe { copy::to_shared(memory.at(position), source) };
                Ok(())
            }
            Memory::Pages(_) => Err(MdlError::NoAddress),
        }
    }
}

impl KernelMemory {
    /// Returns where `position` lies, which the `Mdl` has checked against its length.
    const fn at(&self, position: usize) -> NonNull<u8> {
        // SAFETY: inside the range that the constructor's caller vouched for.
        unsafe { self.base.add(position) }
    }
}

impl fmt::Debug for Mdl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Mdl")
            .field("len", &self.len)
            .field("chain_len", &self.chain_len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
