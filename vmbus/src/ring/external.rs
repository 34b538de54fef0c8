//! Memory outside the ring that goes with a packet: page lists.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::error::Corruption;
use crate::protocol::packet::{
    GpaDirectHeader, GpaRangeHeader, PAGE_SIZE, PacketType, TransferPageHeader, TransferPageRange,
};

/// The memory that came with a packet, described in a private, checked copy.
#[derive(Clone, Copy, Debug)]
pub enum External<'a> {
    /// None: all there is lies in the ring.
    None,
    /// Pages of the sender.
    GpaDirect(GpaRanges<'a>),
    /// Ranges of a buffer that both sides know.
    TransferPages(TransferPages<'a>),
}

impl<'a> External<'a> {
    /// Checks and takes apart the page list of a packet, the bytes in front of its payload; only two types have one.
    ///
    /// # Errors
    ///
    /// [`Corruption`] if it is none for a packet of this type.
    pub(crate) fn parse(packet_type: PacketType, bytes: &'a [u8]) -> Result<Self, Corruption> {
        match packet_type {
            PacketType::GPA_DIRECT => Ok(Self::GpaDirect(GpaRanges::parse(bytes)?)),
            PacketType::TRANSFER_PAGES => Ok(Self::TransferPages(TransferPages::parse(bytes)?)),
            _ => Ok(Self::None),
        }
    }
}

/// How many pages a range touches.
const fn pages_of(byte_count: u32, byte_offset: u32) -> u64 {
    // Two 32-bit numbers in 64 bits: cannot overflow.
    (byte_count as u64)
        .wrapping_add(byte_offset as u64)
        .div_ceil(PAGE_SIZE as u64)
}

/// The length of a slice that came out of a ring.
fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// The page ranges of a GPA-direct packet, at least one.
#[derive(Clone, Copy, Debug)]
pub struct GpaRanges<'a> {
    bytes: &'a [u8],
    count: u32,
}

/// One range of pages: not empty, starting in its first page, with exactly as many page numbers as it touches pages.
#[derive(Clone, Copy, Debug)]
pub struct GpaRange<'a> {
    /// Length in bytes; not 0.
    pub byte_count: u32,
    /// Start in the first page; below the page size.
    pub byte_offset: u32,
    /// The page frame numbers: allegations, which only whoever maps them can check.
    pub pfns: &'a [U64],
}

impl<'a> GpaRanges<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Corruption> {
        let available = length_of(bytes);
        let Ok((header, bytes)) = GpaDirectHeader::read_from_prefix(bytes) else {
            return Err(Corruption::ExternalHeader { available });
        };
        let count = header.range_count.get();
        // Each range takes at least a header and one page number. This also bounds the loop below.
        if count == 0 || u64::from(count).wrapping_mul(16) > bytes.len() as u64 {
            return Err(Corruption::RangeCount {
                count,
                available: length_of(bytes),
            });
        }
        let mut rest = bytes;
        for index in 0..count {
            let (range, after) = GpaRange::parse(rest);
            let Some(after) = after else {
                return Err(Corruption::GpaRange {
                    index,
                    byte_count: range.byte_count,
                    byte_offset: range.byte_offset,
                });
            };
            rest = after;
        }
        Ok(Self { bytes, count })
    }

    /// How many ranges there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The sum of all ranges' bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        // As many 32-bit numbers as fit into one packet: cannot overflow.
        self.iter()
            .fold(0, |sum, range| sum.wrapping_add(u64::from(range.byte_count)))
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = GpaRange<'a>> + use<'a> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| {
            let (range, after) = GpaRange::parse(rest);
            rest = after?;
            Some(range)
        })
    }
}

impl<'a> GpaRange<'a> {
    /// Takes one range from the front; what is left is `None` if the range is not a valid one.
    fn parse(bytes: &'a [u8]) -> (Self, Option<&'a [u8]>) {
        let Ok((header, rest)) = GpaRangeHeader::read_from_prefix(bytes) else {
            return (
                GpaRange {
                    byte_count: 0,
                    byte_offset: 0,
                    pfns: &[],
                },
                None,
            );
        };
        let (byte_count, byte_offset) = (header.byte_count.get(), header.byte_offset.get());
        let invalid = GpaRange {
            byte_count,
            byte_offset,
            pfns: &[],
        };
        if byte_count == 0 || byte_offset >= PAGE_SIZE {
            return (invalid, None);
        }
        let Ok(pages) = usize::try_from(pages_of(byte_count, byte_offset)) else {
            return (invalid, None);
        };
        match <[U64]>::ref_from_prefix_with_elems(rest, pages) {
            Ok((pfns, rest)) => (GpaRange { pfns, ..invalid }, Some(rest)),
            Err(_) => (invalid, None),
        }
    }
}

/// The ranges of a transfer-page packet.
#[derive(Clone, Copy, Debug)]
pub struct TransferPages<'a> {
    set_id: u16,
    ranges: &'a [TransferPageRange],
}

impl<'a> TransferPages<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, Corruption> {
        let available = length_of(bytes);
        let Ok((header, bytes)) = TransferPageHeader::read_from_prefix(bytes) else {
            return Err(Corruption::ExternalHeader { available });
        };
        let count = header.range_count.get();
        let bad_count = Corruption::RangeCount {
            count,
            available: length_of(bytes),
        };
        let wanted = usize::try_from(count).map_err(|_| bad_count)?;
        // The multiplication inside is a checked one.
        let (ranges, _) = <[TransferPageRange]>::ref_from_prefix_with_elems(bytes, wanted).map_err(|_| bad_count)?;
        Ok(Self {
            set_id: header.set_id.get(),
            ranges,
        })
    }

    /// Which buffer the ranges lie in: an allegation.
    #[must_use]
    pub const fn set_id(&self) -> u16 {
        self.set_id
    }

    /// How many ranges there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges as offset and length, once all of them are known to lie in a buffer of `buffer_len` bytes.
    ///
    /// # Errors
    ///
    /// [`Corruption::TransferRange`] for the first range that does not.
    pub fn within(&self, buffer_len: u64) -> Result<impl Iterator<Item = (u32, u32)> + use<'a>, Corruption> {
        for (index, range) in (0..).zip(self.ranges) {
            let (byte_count, byte_offset) = (range.byte_count.get(), range.byte_offset.get());
            // Two 32-bit numbers in 64 bits: cannot overflow.
            if u64::from(byte_offset).wrapping_add(u64::from(byte_count)) > buffer_len {
                return Err(Corruption::TransferRange {
                    index,
                    byte_count,
                    byte_offset,
                });
            }
        }
        Ok(self
            .ranges
            .iter()
            .map(|range| (range.byte_offset.get(), range.byte_count.get())))
    }
}

/// The memory that goes out with a packet.
#[derive(Clone, Copy, Debug)]
pub enum ExternalToSend<'a> {
    /// None: all there is goes through the ring.
    None,
    /// Pages that are the peer's to use until it completes the packet; at least one range.
    GpaDirect(&'a [GpaRangeToSend<'a>]),
    /// Ranges of a buffer that both sides know.
    TransferPages {
        /// Which buffer.
        set_id: u16,
        /// The ranges.
        ranges: &'a [TransferPageRange],
    },
}

/// One range of pages to send.
#[derive(Clone, Copy, Debug)]
pub struct GpaRangeToSend<'a> {
    /// Length in bytes; not 0.
    pub byte_count: u32,
    /// Start in the first page; below the page size.
    pub byte_offset: u32,
    /// The page frame numbers, one for each page that the range touches.
    pub pfns: &'a [u64],
}

impl ExternalToSend<'_> {
    /// Bytes of the page list, or the index of the first range that hosts would refuse.
    pub(super) fn length(&self) -> Result<usize, u32> {
        match self {
            Self::None => Ok(0),
            Self::TransferPages { ranges, .. } => Ok(size_of_val(*ranges).saturating_add(8)),
            Self::GpaDirect([]) => Err(0),
            Self::GpaDirect(ranges) => {
                let mut length = 8_usize;
                for (index, range) in (0..).zip(*ranges) {
                    let pages = pages_of(range.byte_count, range.byte_offset);
                    if range.byte_count == 0 || range.byte_offset >= PAGE_SIZE || range.pfns.len() as u64 != pages {
                        return Err(index);
                    }
                    length = length.saturating_add(8).saturating_add(size_of_val(range.pfns));
                }
                Ok(length)
            }
        }
    }
}
