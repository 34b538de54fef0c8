//! Memory: physical frames, page tables, the heap, mapped ranges.
//!
//! - [`layout`] says where everything lies; [`frames`], [`paging`] and [`ranges`] are plain computation, tested on the development
//!   machine; this module places them into the machine and locks them;
//! - [`allocate_frame`] and its siblings hand out frames; [`balloon_take`] and [`balloon_give_back`] do so for the host's balloon;
//!   [`add`] takes memory that the host adds;
//! - [`pages::Pages`] owns zeroed pages at consecutive virtual addresses, whose physical addresses can be told: what is shared with
//!   the host;
//! - [`stack::Stack`] is a stack with an unmapped page below it; [`heap`] is the global allocator.
//!
//! Lock order: mapped ranges, heap, page tables, frames.
#![expect(unsafe_code, reason = "places page tables and bookkeeping into physical memory")]

pub mod frames;
pub mod heap;
pub mod layout;
pub mod pages;
pub mod paging;
pub mod ranges;
pub mod stack;
#[cfg(target_os = "none")]
mod start;

use crate::sync::IrqMutex;
use boot::physical::Unreadable;
use boot::{MemoryMap, PhysicalMemory};
use core::sync::atomic::{AtomicU64, Ordering};
use frames::{Frame, FrameRange, Frames, NotTaken, Purpose, Region, Statistics};
use layout::{PAGE_SIZE, Span};
use paging::{Access, MapError, Mapper, Tables};
use ranges::Ranges;
use x86_64::structures::paging::{PageTable, PageTableFlags};

/// Why memory could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// No free frames.
    #[error("out of memory")]
    OutOfMemory,
    /// No free virtual addresses.
    #[error("out of virtual addresses")]
    OutOfAddresses,
    /// The page tables refused.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The range is known already, or lies beyond the direct map.
    #[error("the memory at frame {0:#x} cannot be added")]
    CannotAdd(u64),
    /// The machine has no memory that the kernel could start with.
    #[error("no usable memory between 1 MiB and 4 GiB")]
    NoMemory,
}

static FRAMES: IrqMutex<Frames> = IrqMutex::new(Frames::new());
static PAGE_TABLES: IrqMutex<Option<Mapper<DirectTables>>> = IrqMutex::new(None);
/// Where the kernel's page tables start, once the processor uses them; 0 before.
static ROOT: AtomicU64 = AtomicU64::new(0);
static RANGES: IrqMutex<Ranges> = IrqMutex::new(Ranges::new(Span {
    start: layout::MAPPED_RANGES,
    length: layout::MAPPED_RANGES_SIZE,
}));

#[cfg(target_os = "none")]
pub(crate) use start::start;

/// Page tables reached through the direct map.
#[derive(Debug)]
struct DirectTables;

impl Tables for DirectTables {
    fn allocate(&mut self) -> Option<u64> {
        let frame = FRAMES.lock().allocate(Purpose::PageTable)?;
        zero(frame);
        Some(frame.address())
    }

    fn table(&mut self, address: u64) -> &mut PageTable {
        // SAFETY:
        // 1. The address came from `allocate` here or from `EarlyTables`: a frame that is in the direct map and that nobody else
        //    was given.
        // 2. Only the mapper, behind its lock, makes references to tables, one at a time, bound to the mapper's borrow.
        unsafe { &mut *direct_pointer::<PageTable>(address) }
    }
}

const fn direct_pointer<T>(physical: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(layout::to_usize(layout::DIRECT_MAP + physical))
}

/// Fills a frame with zeros.
const fn zero(frame: Frame) {
    // SAFETY: The frame was just taken from the allocator, so nobody else uses it, and all its frames are in the direct map.
    unsafe { direct_pointer::<[u64; 512]>(frame.address()).write_bytes(0, 1) };
}

/// Puts a region's bookkeeping into its own first frames. None if it is too small to be worth it.
fn place_region(range: FrameRange) -> Option<&'static mut Region> {
    let taken = Region::bookkeeping(range.count);
    if range.count <= taken {
        return None;
    }
    let start = range.first.address();
    let words = usize::try_from(range.count.div_ceil(64)).ok()?;
    let bitmap = direct_pointer::<u64>(start + size_of::<Region>() as u64);
    const { assert!(size_of::<Region>().is_multiple_of(align_of::<u64>())) };
    // SAFETY: The words, initialised here, lie in the region's first frames, behind the header; the frames are memory in the
    // direct map that nobody was given, and the region never gives them out.
    unsafe { bitmap.write_bytes(0, words) };
    // SAFETY: As above; this is the only reference, made once.
    let words = unsafe { core::slice::from_raw_parts_mut(bitmap, words) };
    let header = direct_pointer::<Region>(start);
    // SAFETY: The header lies at the start of the first frame, which nobody else uses.
    unsafe { header.write(Region::new(range, taken, words)) };
    // SAFETY: Initialised above, aligned to a page, and never given out.
    Some(unsafe { &mut *header })
}

/// Takes a frame with whatever content it has.
#[must_use]
pub fn allocate_frame() -> Option<Frame> {
    FRAMES.lock().allocate(Purpose::Ordinary)
}

/// Takes frames in a row with whatever content they have.
#[must_use]
pub fn allocate_frames(count: u64) -> Option<FrameRange> {
    FRAMES.lock().allocate_exact(count)
}

/// Gives frames back.
///
/// # Errors
///
/// [`NotTaken`] if one of them is not taken; then none is given back.
///
/// # Safety
///
/// Nobody uses the frames any more.
pub unsafe fn free_frames(range: FrameRange) -> Result<(), NotTaken> {
    FRAMES.lock().free(range)
}

/// Takes frames that the host shall have: one run of at most `limit` frames. None if there are no more to give.
///
/// The frames are not touched until they come back. How much is left to the kernel is the caller's decision: [`statistics`].
#[must_use]
pub fn balloon_take(limit: u64) -> Option<FrameRange> {
    FRAMES.lock().balloon(limit)
}

/// Runs `work` while the locks of mapped ranges, page tables and frames are held.
#[cfg(any(test, feature = "selftest"))]
pub(crate) fn with_locks_held(work: impl FnOnce()) {
    let _held = (RANGES.lock(), PAGE_TABLES.lock(), FRAMES.lock());
    work();
}

/// Takes back frames that the host had.
///
/// # Errors
///
/// [`NotTaken`] if they cannot have been the host's: nothing is changed then.
pub fn balloon_give_back(range: FrameRange) -> Result<(), NotTaken> {
    FRAMES.lock().deflate(range)
}

/// The fewest frames that [`add`] takes. A host that scattered single ones over the address space would take more of the kernel's
/// memory, for the page tables, than it gives.
const SMALLEST_ADDITION: u64 = 512;

/// Takes memory that appeared while running, at any address, and returns how many bytes of it the kernel can use.
///
/// # Errors
///
/// [`MemoryError`] if it is known already, too small or out of reach; then no memory is added.
///
/// # Safety
///
/// There is memory in the whole range, and nobody else uses it.
pub unsafe fn add(range: FrameRange) -> Result<u64, MemoryError> {
    let refused = MemoryError::CannotAdd(range.first.0);
    let end = range.first.0.checked_add(range.count).ok_or(refused)?;
    if range.count < SMALLEST_ADDITION || end > layout::DIRECT_MAP_SIZE / PAGE_SIZE {
        return Err(refused);
    }
    if FRAMES.lock().is_known(range) || touches_boot_memory(range) {
        return Err(refused);
    }
    let start = range.first.address();
    with_page_tables(|mapper| {
        mapper.map(
            layout::DIRECT_MAP + start,
            start,
            range.count * PAGE_SIZE,
            Access::ReadWrite,
        )
    })?;
    let region = place_region(range).ok_or(refused)?;
    let mut frames = FRAMES.lock();
    // Asked again under the lock that adds: two callers may have come with the same range.
    if frames.is_known(range) {
        return Err(refused);
    }
    frames.add_hot(region);
    Ok((range.count - Region::bookkeeping(range.count)) * PAGE_SIZE)
}

/// The memory map at boot.
fn memory_map() -> Option<&'static MemoryMap> {
    crate::start::info().map(|info| &info.memory_map)
}

/// Whether the memory map at boot says anything of the range.
fn touches_boot_memory(range: FrameRange) -> bool {
    let (start, end) = (range.first.address(), range.end() * PAGE_SIZE);
    memory_map().is_some_and(|map| {
        map.regions()
            .iter()
            .any(|region| region.start < end && start < region.end())
    })
}

/// Figures of the frame allocator.
#[must_use]
pub fn statistics() -> Statistics {
    FRAMES.lock().statistics()
}

/// The physical address behind a virtual one.
#[must_use]
pub fn translate<T: ?Sized>(pointer: *const T) -> Option<u64> {
    let address = pointer.addr() as u64;
    // Most of what is asked for lies in the direct map, which is an offset.
    let direct = Span {
        start: layout::DIRECT_MAP,
        length: layout::DIRECT_MAP_SIZE,
    };
    if direct.contains(address) {
        return Some(address - layout::DIRECT_MAP);
    }
    with_page_tables(|mapper| Ok(mapper.translate(address))).ok()?
}

/// What the page at a virtual address allows; none if it is not mapped.
#[must_use]
pub fn page_flags(address: u64) -> Option<PageTableFlags> {
    with_page_tables(|mapper| Ok(mapper.flags(address))).ok()?
}

/// Whether there is a page at a virtual address. For exceptions and panics: no lock is taken, so that a backtrace can be had while
/// this module holds its own. False before the kernel has its page tables.
pub(crate) fn is_mapped_in_emergency(address: u64) -> bool {
    let root = ROOT.load(Ordering::Acquire);
    let read = |at: u64| {
        if at >= layout::DIRECT_MAP_SIZE {
            return None;
        }
        // SAFETY: Entries lie in tables that the mapper made, all of which are in the direct map. One that is being changed is read
        // before or after its change, and is whole in either case: a table is zeroed before an entry leads to it.
        Some(unsafe { direct_pointer::<u64>(at).read_volatile() })
    };
    root != 0 && paging::translate_by(root, address, read).is_some()
}

/// Maps registers of a device, not cached, and returns where.
///
/// # Errors
///
/// [`MemoryError`] if there is no room.
pub fn map_device(physical: u64, length: u64) -> Result<*mut u8, MemoryError> {
    map_for(physical, length, Access::Device)
}

/// Maps memory that is not the kernel's, for one kind of access and for good, and returns where.
///
/// # Errors
///
/// [`MemoryError`] if there is no room.
pub fn map_for(physical: u64, length: u64, access: Access) -> Result<*mut u8, MemoryError> {
    let start = layout::page_down(physical);
    let length = layout::page_up(physical.saturating_add(length)) - start;
    let at = RANGES.lock().allocate(length).ok_or(MemoryError::OutOfAddresses)?;
    with_page_tables(|mapper| mapper.map(at, start, length, access))?;
    Ok(core::ptr::with_exposed_provenance_mut(layout::to_usize(
        at + (physical - start),
    )))
}

fn with_page_tables<R>(act: impl FnOnce(&mut Mapper<DirectTables>) -> Result<R, MapError>) -> Result<R, MapError> {
    PAGE_TABLES.lock().as_mut().map_or(Err(MapError::NoMemory), act)
}

/// Unmaps a range of the mapped ranges; tells the frame behind each page.
fn unmap(from: u64, length: u64, mut frame: impl FnMut(Frame)) {
    let done = with_page_tables(|mapper| {
        mapper.unmap(from, length, |page, physical| {
            if cfg!(target_os = "none") {
                x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(page));
            }
            frame(Frame::containing(physical));
        })
    });
    debug_assert!(done.is_ok(), "only ranges that were mapped are unmapped");
}

/// Physical memory through the direct map, for reading tables that firmware left: what the memory map names and the first MiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct FirmwareMemory;

impl PhysicalMemory for FirmwareMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let length = into.len() as u64;
        let end = address.checked_add(length).ok_or(Unreadable(address))?;
        let map = memory_map().ok_or(Unreadable(address))?;
        let listed = end <= layout::LOW_MEMORY
            || map
                .regions()
                .iter()
                .any(|region| region.start <= address && end <= region.end());
        if !listed || end > layout::DIRECT_MAP_SIZE {
            return Err(Unreadable(address));
        }
        let (start, end) = (layout::page_down(address), layout::page_up(end));
        for page in (start..end).step_by(layout::to_usize(PAGE_SIZE)) {
            // Tables may lie in memory that is reserved, which is not mapped beforehand.
            with_page_tables(|mapper| match mapper.translate(layout::DIRECT_MAP + page) {
                Some(_) => Ok(()),
                None => mapper.map(layout::DIRECT_MAP + page, page, PAGE_SIZE, Access::Read),
            })
            .map_err(|_| Unreadable(address))?;
        }
        // SAFETY: The pages are mapped, firmware's tables do not change, and `into` is memory of our own elsewhere.
        unsafe { core::ptr::copy_nonoverlapping(direct_pointer::<u8>(address), into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}
