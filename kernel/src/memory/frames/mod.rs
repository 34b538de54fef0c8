//! Physical memory by frames of 4 KiB.
//!
//! Memory comes in [`Region`]s, any number of them, at any address, at any time: what the machine has at boot and what the host
//! adds later. Each region pays for its own [`Bitmap`] with its first frames (one bit per frame: 1/32768 of the region), so the
//! bookkeeping is in proportion to the memory that is there, wherever it lies. The list of regions runs through the regions.
//!
//! Everything here is plain computation; `crate::memory` places it into physical memory and locks it.

mod bitmap;

pub use bitmap::{Bitmap, NotTaken};

use super::layout::PAGE_SIZE;
use core::fmt;

/// Frames that only page tables may take, so that memory can be added when none is left.
const RESERVE: u64 = 16;

/// The number of a frame: its physical address divided by 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame(pub u64);

impl Frame {
    /// The frame that holds a physical address.
    #[must_use]
    pub const fn containing(physical: u64) -> Self {
        Self(physical / PAGE_SIZE)
    }

    /// The physical address of the first byte.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 * PAGE_SIZE
    }
}

/// Frames in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRange {
    /// The first.
    pub first: Frame,
    /// How many.
    pub count: u64,
}

impl FrameRange {
    /// The whole frames inside a range of physical addresses; none if there is none.
    #[must_use]
    pub const fn inside(start: u64, length: u64) -> Option<Self> {
        let first = start.div_ceil(PAGE_SIZE);
        let end = start.saturating_add(length) / PAGE_SIZE;
        if first < end {
            Some(Self {
                first: Frame(first),
                count: end - first,
            })
        } else {
            None
        }
    }

    /// The number after the last frame's.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first.0 + self.count
    }

    const fn overlaps(self, other: Self) -> bool {
        self.first.0 < other.end() && other.first.0 < self.end()
    }
}

/// Figures in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// All memory that the allocator knows.
    pub total: u64,
    /// Of it: free.
    pub free: u64,
    /// Of it: handed to the host by the balloon.
    pub ballooned: u64,
    /// Of it: added while running.
    pub hot_added: u64,
    /// Of it: the allocator's own.
    pub bookkeeping: u64,
}

/// A stretch of physical memory.
pub struct Region {
    range: FrameRange,
    bitmap: Bitmap,
    next: Option<&'static mut Self>,
}

impl Region {
    /// Frames that the bookkeeping of a region takes: the region's header and its bitmap.
    #[must_use]
    pub const fn bookkeeping(frames: u64) -> u64 {
        let bytes = size_of::<Self>() as u64 + frames.div_ceil(64) * 8;
        bytes.div_ceil(PAGE_SIZE)
    }

    /// A region whose first `taken` frames are not free, with `words` for its bitmap.
    #[must_use]
    pub fn new(range: FrameRange, taken: u64, words: &'static mut [u64]) -> Self {
        let to_count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            range,
            bitmap: Bitmap::new(words, to_count(range.count), to_count(taken)),
            next: None,
        }
    }

    /// The region's number of the frame.
    fn index(&self, frame: Frame) -> Option<usize> {
        let index = frame.0.checked_sub(self.range.first.0)?;
        if index < self.range.count {
            usize::try_from(index).ok()
        } else {
            None
        }
    }

    const fn frame(&self, index: usize) -> Frame {
        Frame(self.range.first.0 + index as u64)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("range", &self.range)
            .field("free", &self.bitmap.free_count())
            .finish_non_exhaustive()
    }
}

/// Who asks for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Anything.
    Ordinary,
    /// A page table: may use the last frames.
    PageTable,
}

/// All regions.
#[derive(Debug)]
pub struct Frames {
    first: Option<&'static mut Region>,
    free: u64,
    total: u64,
    ballooned: u64,
    hot_added: u64,
    bookkeeping: u64,
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl Frames {
    /// No memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: None,
            free: 0,
            total: 0,
            ballooned: 0,
            hot_added: 0,
            bookkeeping: 0,
        }
    }

    /// Figures.
    #[must_use]
    pub const fn statistics(&self) -> Statistics {
        Statistics {
            total: self.total * PAGE_SIZE,
            free: self.free * PAGE_SIZE,
            ballooned: self.ballooned * PAGE_SIZE,
            hot_added: self.hot_added * PAGE_SIZE,
            bookkeeping: self.bookkeeping * PAGE_SIZE,
        }
    }

    /// Whether a range touches memory that is known already.
    #[must_use]
    pub fn is_known(&self, range: FrameRange) -> bool {
        let mut next = self.first.as_deref();
        while let Some(region) = next {
            if region.range.overlaps(range) {
                return true;
            }
            next = region.next.as_deref();
        }
        false
    }

    /// Takes a region, which must not overlap another.
    pub const fn add(&mut self, region: &'static mut Region) {
        self.total += region.range.count;
        self.free += region.bitmap.free_count() as u64;
        self.bookkeeping += region.range.count - region.bitmap.free_count() as u64;
        region.next = self.first.take();
        self.first = Some(region);
    }

    /// Takes a region that was not there at boot.
    pub const fn add_hot(&mut self, region: &'static mut Region) {
        self.hot_added += region.range.count;
        self.add(region);
    }

    /// Takes one frame. Its content is whatever it was.
    pub fn allocate(&mut self, purpose: Purpose) -> Option<Frame> {
        self.keep_reserve(purpose, 1)?;
        self.find(1, |region| {
            region.bitmap.allocate().map(|index| (region.frame(index), 1))
        })
        .map(|range| range.first)
    }

    /// Takes frames in a row. Their content is whatever it was.
    pub fn allocate_exact(&mut self, count: u64) -> Option<FrameRange> {
        self.keep_reserve(Purpose::Ordinary, count)?;
        let wanted = usize::try_from(count).ok()?;
        self.find(wanted, |region| {
            region
                .bitmap
                .allocate_exact(wanted)
                .map(|index| (region.frame(index), wanted))
        })
    }

    /// Takes frames for the balloon: one run, as long as it can be at the place that is tried first, at most `limit`.
    pub fn balloon(&mut self, limit: u64) -> Option<FrameRange> {
        let limit = limit.min(self.free.saturating_sub(RESERVE));
        let limit = usize::try_from(limit).ok()?;
        let range = self.find(1, |region| {
            region
                .bitmap
                .allocate_up_to(limit)
                .map(|(index, count)| (region.frame(index), count))
        })?;
        self.ballooned += range.count;
        Some(range)
    }

    /// Takes back frames that the balloon had.
    ///
    /// # Errors
    ///
    /// [`NotTaken`] if the balloon cannot have had them all.
    pub fn deflate(&mut self, range: FrameRange) -> Result<(), NotTaken> {
        if range.count > self.ballooned {
            return Err(NotTaken);
        }
        self.free(range)?;
        self.ballooned -= range.count;
        Ok(())
    }

    /// Gives frames back, which must lie in one region.
    ///
    /// # Errors
    ///
    /// [`NotTaken`] if one of them is not taken; then none is given back.
    pub fn free(&mut self, range: FrameRange) -> Result<(), NotTaken> {
        let mut next = self.first.as_deref_mut();
        while let Some(region) = next {
            if let Some(index) = region.index(range.first) {
                region
                    .bitmap
                    .free(index, usize::try_from(range.count).map_err(|_| NotTaken)?)?;
                self.free += range.count;
                return Ok(());
            }
            next = region.next.as_deref_mut();
        }
        Err(NotTaken)
    }

    const fn keep_reserve(&self, purpose: Purpose, count: u64) -> Option<()> {
        let available = match purpose {
            Purpose::Ordinary => self.free.saturating_sub(RESERVE),
            Purpose::PageTable => self.free,
        };
        if count <= available { Some(()) } else { None }
    }

    /// Asks the regions that have `least` frames, one after the other.
    fn find(
        &mut self,
        least: usize,
        mut take: impl FnMut(&mut Region) -> Option<(Frame, usize)>,
    ) -> Option<FrameRange> {
        let mut next = self.first.as_deref_mut();
        while let Some(region) = next {
            if region.bitmap.free_count() >= least
                && let Some((first, count)) = take(region)
            {
                self.free -= count as u64;
                return Some(FrameRange {
                    first,
                    count: count as u64,
                });
            }
            next = region.next.as_deref_mut();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(first: u64, count: u64) -> &'static mut Region {
        let words = vec![0; usize::try_from(count.div_ceil(64)).unwrap()].leak();
        let range = FrameRange {
            first: Frame(first),
            count,
        };
        Box::leak(Box::new(Region::new(range, Region::bookkeeping(count), words)))
    }

    fn small_machine() -> Frames {
        let mut frames = Frames::new();
        frames.add(region(0x100, 7000));
        frames
    }

    #[test]
    fn bookkeeping_is_in_proportion() {
        assert_eq!(Region::bookkeeping(8192), 1, "4 KiB for 32 MiB with room to spare");
        assert_eq!(Region::bookkeeping(1 << 28), 8193, "32 MiB for 1 TiB");
    }

    #[test]
    fn memory_added_at_32_gib_is_used() {
        let mut frames = small_machine();
        let before = frames.statistics();
        frames.add_hot(region(0x80_0000, 65536));
        let after = frames.statistics();
        assert_eq!(after.total - before.total, 256 << 20);
        assert_eq!(after.hot_added, 256 << 20);
        assert_eq!(after.bookkeeping - before.bookkeeping, 3 * 4096);
        assert!(frames.allocate_exact(60000).unwrap().first.0 >= 0x80_0000);
        assert!(frames.is_known(FrameRange {
            first: Frame(0x80_ffff),
            count: 5
        }));
        assert!(!frames.is_known(FrameRange {
            first: Frame(0x81_0000),
            count: 5
        }));
    }

    #[test]
    fn the_balloon_can_take_nearly_all_and_give_it_back() {
        let mut frames = small_machine();
        let before = frames.statistics();
        let mut held = Vec::new();
        while let Some(range) = frames.balloon(500) {
            held.push(range);
        }
        assert_eq!(frames.statistics().free, RESERVE * 4096);
        assert_eq!(frames.statistics().ballooned, before.free - RESERVE * 4096);
        assert_eq!(frames.allocate(Purpose::Ordinary), None);
        let table = frames
            .allocate(Purpose::PageTable)
            .expect("page tables may use the reserve");
        frames.free(FrameRange { first: table, count: 1 }).unwrap();
        for range in held.iter().rev() {
            frames.deflate(*range).unwrap();
        }
        assert_eq!(frames.statistics(), before);
        assert_eq!(frames.deflate(held[0]), Err(NotTaken));
    }

    #[test]
    fn foreign_frames_are_not_taken_back() {
        let mut frames = small_machine();
        assert_eq!(
            frames.free(FrameRange {
                first: Frame(3),
                count: 1
            }),
            Err(NotTaken)
        );
        assert_eq!(
            frames.free(FrameRange {
                first: Frame(0x100 + 6999),
                count: 2
            }),
            Err(NotTaken)
        );
        assert_eq!(FrameRange::inside(0x1001, 0x1ffe), None);
        assert_eq!(
            FrameRange::inside(0x1001, 0x1fff),
            Some(FrameRange {
                first: Frame(2),
                count: 1
            })
        );
    }
}
