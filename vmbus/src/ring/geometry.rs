//! Positions in a ring, and the only arithmetic on them.
//!
//! ```text
//!            read                  write                       Positions are < size and multiples of 8.
//!  0          v                      v                  size   used = distance(read, write)
//!  |..........|XXXXXXXXXXXXXXXXXXXXXX|...................|     free = size - 8 - used: write never catches up with read,
//!                                                              because equal positions mean "empty".
//!        write        read
//!  |XXXXXXX|...........|XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX|     The same, wrapped.
//! ```

use super::error::{Corruption, InvalidRing};
use super::memory::RingMemory;
use crate::protocol::packet::{PACKET_ALIGNMENT, PAGE_SIZE};

/// The number of data bytes of a ring: whole pages, at least one, and small enough that sums of two positions fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    size: u32,
}

impl Geometry {
    /// The largest ring that this crate handles; hosts stop long before.
    pub(super) const MAX_SIZE: u32 = 1 << 30;

    pub(super) const fn new(size: u32) -> Result<Self, InvalidRing> {
        if size < PAGE_SIZE || size > Self::MAX_SIZE || !size.is_multiple_of(PAGE_SIZE) {
            return Err(InvalidRing::Size { size });
        }
        Ok(Self { size })
    }

    /// The geometry of a ring's memory, which has checked its size when it was made.
    pub(super) fn of<M: RingMemory>(memory: &M) -> Self {
        Self { size: memory.size() }
    }

    /// A write index of the peer, if it is a position.
    pub(super) const fn check_write_index(self, raw: u32) -> Result<u32, Corruption> {
        if self.contains(raw) {
            Ok(raw)
        } else {
            Err(Corruption::WriteIndex { raw, size: self.size })
        }
    }

    /// A read index of the peer, if it is a position.
    pub(super) const fn check_read_index(self, raw: u32) -> Result<u32, Corruption> {
        if self.contains(raw) {
            Ok(raw)
        } else {
            Err(Corruption::ReadIndex { raw, size: self.size })
        }
    }

    /// Data bytes.
    #[inline]
    pub(super) const fn size(self) -> u32 {
        self.size
    }

    /// How much fits into an empty ring: all but the gap that tells full from empty.
    #[inline]
    pub(super) const fn capacity(self) -> u32 {
        self.size.wrapping_sub(PACKET_ALIGNMENT)
    }

    /// Whether a number that the peer wrote can be a position.
    #[inline]
    pub(super) const fn contains(self, raw: u32) -> bool {
        raw < self.size && raw.is_multiple_of(PACKET_ALIGNMENT)
    }

    /// How far it is from one position to another, going up and around.
    #[inline]
    pub(super) const fn distance(self, from: u32, to: u32) -> u32 {
        // Both are positions, so the difference lies within -size..size, and the sum below size.
        let difference = to.wrapping_sub(from);
        if to < from {
            difference.wrapping_add(self.size)
        } else {
            difference
        }
    }

    /// The position `len` bytes, at most the ring's size, behind `position`.
    #[inline]
    pub(super) const fn advance(self, position: u32, len: u32) -> u32 {
        // Both are at most MAX_SIZE: the sum fits.
        let next = position.wrapping_add(len);
        if next >= self.size {
            next.wrapping_sub(self.size)
        } else {
            next
        }
    }
}

/// Rounds up to the next multiple of 8; saturates at the largest one.
#[inline]
pub(super) const fn padded(len: usize) -> usize {
    len.saturating_add(7) & !7
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: Geometry = match Geometry::new(4096 * 3) {
        Ok(ring) => ring,
        Err(_) => panic!("three pages are a ring"),
    };

    #[test]
    fn sizes_are_whole_pages_within_limits() {
        for size in [
            0,
            8,
            4095,
            4097,
            4096 * 3 + 8,
            Geometry::MAX_SIZE + 4096,
            u32::MAX,
            !4095,
        ] {
            assert_eq!(Geometry::new(size), Err(InvalidRing::Size { size }));
        }
        for size in [4096, 4096 * 3, 1 << 20, Geometry::MAX_SIZE] {
            assert_eq!(Geometry::new(size).unwrap().capacity(), size - 8);
        }
    }

    #[test]
    fn positions_are_below_the_size_and_aligned() {
        for raw in 0..4096 * 3 + 64 {
            assert_eq!(RING.contains(raw), raw < 4096 * 3 && raw % 8 == 0, "{raw}");
        }
        assert!(!RING.contains(u32::MAX));
        assert!(!RING.contains(!7));
    }

    #[test]
    fn advance_and_distance_are_inverse() {
        let step = if cfg!(miri) { 1000 } else { 40 };
        for from in (0..4096 * 3).step_by(step) {
            for len in (0..4096 * 3).step_by(step) {
                let to = RING.advance(from, len);
                assert!(RING.contains(to));
                assert_eq!(RING.distance(from, to), len);
            }
            assert_eq!(RING.advance(from, 4096 * 3), from);
        }
    }

    #[test]
    fn padding_rounds_up_and_saturates() {
        assert_eq!([0, 1, 7, 8, 9].map(padded), [0, 8, 8, 8, 16]);
        assert_eq!(padded(usize::MAX), !7);
    }
}
