//! External data on its way out: how an [`Mdl`] becomes the page list of a GPA-direct packet.

use super::Error;
use super::settings::MAX_RANGES;
use crate::memory::{Mdl, WireExtent};
use crate::ring::{Reservation, RingMemory, WriteError};

/// Memory that a packet lends: the whole of what the caller gave, and the part that is described to the peer.
#[derive(Debug)]
pub(crate) struct Lent {
    described: Mdl,
    whole: Option<Mdl>,
    extent: WireExtent,
}

impl Lent {
    /// Checks `mdl[offset..]`, `len` bytes of it or all if 0, against the channel's limits; gives it back if it is beyond.
    pub(crate) fn new(mdl: Mdl, offset: usize, len: usize, limit: usize, ranges: usize) -> Result<Self, (Error, Mdl)> {
        let (described, whole) = if offset == 0 && (len == 0 || len == mdl.len()) {
            (mdl, None)
        } else {
            match mdl.range(offset, len) {
                Ok(described) => (described, Some(mdl)),
                Err(_) => return Err((Error::InvalidExternalData { len, ranges: 0 }, mdl)),
            }
        };
        let extent = described.wire_extent();
        if described.is_empty() || described.len() > limit || extent.ranges > ranges.min(MAX_RANGES) {
            let error = Error::InvalidExternalData {
                len: described.len(),
                ranges: extent.ranges,
            };
            return Err((error, whole.unwrap_or(described)));
        }
        Ok(Self {
            described,
            whole,
            extent,
        })
    }

    /// Returns what the caller gave.
    pub(crate) fn into_whole(self) -> Mdl {
        self.whole.unwrap_or(self.described)
    }

    /// Returns what the peer is told of.
    #[cfg(feature = "host")]
    pub(crate) const fn described(&self) -> &Mdl {
        &self.described
    }

    /// Returns the bytes of the page list.
    pub(crate) const fn list_len(&self) -> usize {
        // Both count what lies in memory.
        let words = self.extent.ranges.wrapping_add(self.extent.pages);
        words.wrapping_add(1).wrapping_mul(8)
    }

    /// Writes the page list: a count, then each range with its length, its offset in the first page, and its pages.
    pub(crate) fn write<M: RingMemory>(&self, reservation: &mut Reservation<'_, M>) -> Result<(), WriteError> {
        reservation.write_external(&((self.extent.ranges as u64) << 32).to_le_bytes())?;
        if let Some((pfns, first_offset)) = self.described.run() {
            reservation.write_external(&header(self.described.len(), first_offset))?;
            // Several at a time: each write has its price.
            for pfns in pfns.chunks(PFNS_AT_A_TIME) {
                let mut bytes = [0; 8 * PFNS_AT_A_TIME];
                let (places, _) = bytes.as_chunks_mut::<8>();
                for (place, pfn) in places.iter_mut().zip(pfns) {
                    *place = pfn.get().to_le_bytes();
                }
                reservation.write_external(bytes.get(..pfns.len().saturating_mul(8)).unwrap_or_default())?;
            }
            return Ok(());
        }
        if self.extent.ranges == 1 {
            let first_offset = self.described.page_spans().next().map_or(0, |span| span.offset);
            reservation.write_external(&header(self.described.len(), first_offset))?;
            for span in self.described.page_spans() {
                reservation.write_external(&span.pfn.get().to_le_bytes())?;
            }
            return Ok(());
        }
        // Lengths first: a range's header stands in front of its pages.
        let mut lengths = [0; MAX_RANGES];
        let mut ranges = lengths.iter_mut();
        let mut current: Option<&mut usize> = None;
        let mut last = None;
        for span in self.described.page_spans() {
            if !last.is_some_and(|last: crate::memory::PageSpan| last.continues_with(&span)) {
                current = ranges.next();
            }
            if let Some(length) = current.as_deref_mut() {
                *length = length.saturating_add(span.len);
            }
            last = Some(span);
        }
        let mut lengths = lengths.into_iter();
        last = None;
        for span in self.described.page_spans() {
            if !last.is_some_and(|last: crate::memory::PageSpan| last.continues_with(&span)) {
                reservation.write_external(&header(lengths.next().unwrap_or(0), span.offset))?;
            }
            reservation.write_external(&span.pfn.get().to_le_bytes())?;
            last = Some(span);
        }
        Ok(())
    }
}

/// Page numbers that are written to the ring together.
const PFNS_AT_A_TIME: usize = 16;

/// A range's header: byte count and byte offset, both below 2^32 by the channel's limits.
const fn header(len: usize, offset: usize) -> [u8; 8] {
    (len as u64 | (offset as u64) << 32).to_le_bytes()
}
