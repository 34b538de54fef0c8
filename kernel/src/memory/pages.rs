//! [`Pages`]: zeroed pages of 4 KiB at consecutive virtual addresses, with known physical addresses. What the host may touch
//! comes from here.
#![expect(unsafe_code, reason = "owns memory through pointers")]

use super::frames::{Frame, FrameRange};
use super::layout::{self, PAGE_SIZE};
use super::paging::Access;
use super::{MemoryError, RANGES};
use alloc::vec::Vec;
use core::ptr::NonNull;

/// Pages, given back when dropped.
///
/// A run of frames that lie in a row is used where it lies in the direct map, which costs no mapping; if memory is too broken up
/// for one, single frames are mapped in a row.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    count: usize,
}

// SAFETY: `Pages` owns its memory; the pointer is only handed out.
unsafe impl Send for Pages {}
// SAFETY: A shared `Pages` gives no access to the memory but through raw pointers, whose users answer for it.
unsafe impl Sync for Pages {}

impl Pages {
    /// Takes `count` pages of zeros.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if there is no memory.
    pub fn allocate(count: usize) -> Result<Self, MemoryError> {
        if count == 0 {
            return Err(MemoryError::OutOfMemory);
        }
        if let Some(range) = super::allocate_frames(count as u64) {
            for frame in range.first.0..range.end() {
                super::zero(Frame(frame));
            }
            let start = NonNull::new(super::direct_pointer(range.first.address())).ok_or(MemoryError::OutOfMemory)?;
            return Ok(Self { start, count });
        }
        if count == 1 {
            return Err(MemoryError::OutOfMemory);
        }
        let mut frames = Vec::new();
        frames.try_reserve_exact(count).map_err(|_| MemoryError::OutOfMemory)?;
        let give_back = |frames: Vec<Frame>| {
            for first in frames {
                // SAFETY: Taken below and used by nobody.
                let given = unsafe { super::free_frames(FrameRange { first, count: 1 }) };
                debug_assert!(given.is_ok());
            }
        };
        while frames.len() < count {
            match super::allocate_frame() {
                Some(frame) => {
                    super::zero(frame);
                    frames.push(frame);
                }
                None => {
                    give_back(frames);
                    return Err(MemoryError::OutOfMemory);
                }
            }
        }
        match map_frames(frames.iter().copied(), count, Access::ReadWrite) {
            Ok(start) => Ok(Self { start, count }),
            Err(error) => {
                give_back(frames);
                Err(error)
            }
        }
    }

    /// Takes `count` pages of zeros that can be executed, and not written by us: for what a hypervisor writes.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if there is no memory.
    pub fn allocate_code(count: usize) -> Result<Self, MemoryError> {
        let range = super::allocate_frames(count as u64).ok_or(MemoryError::OutOfMemory)?;
        let frames = range.first.0..range.end();
        frames.clone().for_each(|frame| super::zero(Frame(frame)));
        match map_frames(frames.map(Frame), count, Access::ReadExecute) {
            Ok(start) => Ok(Self { start, count }),
            Err(error) => {
                // SAFETY: Taken above and used by nobody.
                let given = unsafe { super::free_frames(range) };
                debug_assert!(given.is_ok());
                Err(error)
            }
        }
    }

    /// Reads the first word of a page.
    #[must_use]
    pub fn read(&self, page: usize) -> u64 {
        // SAFETY: The page is ours, mapped, and aligned; others may write to it, so the access is volatile.
        unsafe { self.word(page).read_volatile() }
    }

    /// Writes the first word of a page.
    pub fn write(&self, page: usize, value: u64) {
        // SAFETY: As for reading.
        unsafe { self.word(page).write_volatile(value) };
    }

    fn word(&self, page: usize) -> NonNull<u64> {
        assert!(page < self.count, "there is no page {page}");
        // SAFETY: Inside the pages, as just checked.
        unsafe { self.start.add(page * layout::to_usize(PAGE_SIZE)) }.cast()
    }

    /// The first byte.
    #[must_use]
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// How many pages.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The physical address of one of the pages.
    #[must_use]
    pub fn physical(&self, page: usize) -> Option<u64> {
        if page >= self.count {
            return None;
        }
        super::translate(self.start.as_ptr().wrapping_add(page * layout::to_usize(PAGE_SIZE)))
    }

    /// Lets go of the pages without giving them back; [`Pages::from_raw`] takes them again.
    #[must_use]
    pub const fn into_raw(self) -> (NonNull<u8>, usize) {
        let raw = (self.start, self.count);
        core::mem::forget(self);
        raw
    }

    /// Takes pages that [`Pages::into_raw`] let go.
    ///
    /// # Safety
    ///
    /// Both come from one call of `into_raw`, and are taken once.
    #[must_use]
    pub const unsafe fn from_raw(start: NonNull<u8>, count: usize) -> Self {
        Self { start, count }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let address = self.start.as_ptr().addr() as u64;
        let length = self.count as u64 * PAGE_SIZE;
        let free = |range: FrameRange| {
            // SAFETY: The pages are ours, and whoever dropped them says that nobody uses them any more.
            let given = unsafe { super::free_frames(range) };
            debug_assert!(given.is_ok());
        };
        if address < layout::MAPPED_RANGES {
            free(FrameRange {
                first: Frame::containing(address - layout::DIRECT_MAP),
                count: self.count as u64,
            });
        } else {
            super::unmap(address, length, |first| free(FrameRange { first, count: 1 }));
            RANGES.lock().free(address, length);
        }
    }
}

/// Pages of others, mapped in a row at a second place; unmapped when dropped. The frames stay their owner's.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    count: usize,
}

// SAFETY: A mapping is addresses only; whoever uses the pointer answers for the memory.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the pages at these physical addresses in this order. A page may come twice: a ring that is mapped twice in a row
    /// needs no wrap-around.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if there is no room.
    pub fn of(physical: impl Iterator<Item = u64> + Clone) -> Result<Self, MemoryError> {
        let count = physical.clone().count();
        let start = map_frames(physical.map(Frame::containing), count, Access::ReadWrite)?;
        Ok(Self { start, count })
    }

    /// The first byte.
    #[must_use]
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// Lets go of the mapping without removing it; [`Mapping::from_raw`] takes it again.
    #[must_use]
    pub const fn into_raw(self) -> (NonNull<u8>, usize) {
        let raw = (self.start, self.count);
        core::mem::forget(self);
        raw
    }

    /// Takes a mapping that [`Mapping::into_raw`] let go.
    ///
    /// # Safety
    ///
    /// Both come from one call of `into_raw`, and are taken once.
    #[must_use]
    pub const unsafe fn from_raw(start: NonNull<u8>, count: usize) -> Self {
        Self { start, count }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (address, length) = (self.start.as_ptr().addr() as u64, self.count as u64 * PAGE_SIZE);
        super::unmap(address, length, |_| ());
        RANGES.lock().free(address, length);
    }
}

/// Maps frames at consecutive addresses.
fn map_frames(frames: impl Iterator<Item = Frame>, count: usize, access: Access) -> Result<NonNull<u8>, MemoryError> {
    let length = count as u64 * PAGE_SIZE;
    let start = RANGES.lock().allocate(length).ok_or(MemoryError::OutOfAddresses)?;
    let mut done = 0;
    for frame in frames {
        let mapped = super::with_page_tables(|mapper| mapper.map(start + done, frame.address(), PAGE_SIZE, access));
        if let Err(error) = mapped {
            super::unmap(start, done, |_| ());
            RANGES.lock().free(start, length);
            return Err(error.into());
        }
        done += PAGE_SIZE;
    }
    NonNull::new(core::ptr::with_exposed_provenance_mut(layout::to_usize(start))).ok_or(MemoryError::OutOfAddresses)
}
