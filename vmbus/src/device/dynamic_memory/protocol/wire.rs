//! The bytes of the messages: structures, sizes, and the few functions that touch them.

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BufferTooSmall, MAX_RANGES, ParseError};
use crate::device::dynamic_memory::PageRange;
use crate::memory::Pfn;

pub(super) const VERSION_REQUEST: u16 = 1;
pub(super) const VERSION_RESPONSE: u16 = 2;
pub(super) const CAPABILITIES_REPORT: u16 = 3;
pub(super) const CAPABILITIES_RESPONSE: u16 = 4;
pub(super) const STATUS_REPORT: u16 = 5;
pub(super) const BALLOON_REQUEST: u16 = 6;
pub(super) const BALLOON_RESPONSE: u16 = 7;
pub(super) const UNBALLOON_REQUEST: u16 = 8;
pub(super) const UNBALLOON_RESPONSE: u16 = 9;
pub(super) const HOT_ADD_REQUEST: u16 = 10;
pub(super) const HOT_ADD_RESPONSE: u16 = 11;
pub(super) const INFORMATION: u16 = 12;

/// The kind of information that tells the most memory the machine will have.
pub(super) const INFORMATION_MAX_PAGE_COUNT: u32 = 0;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) message_type: U16,
    pub(super) size_bytes: U16,
    pub(super) transaction: U32,
}
const _: () = assert!(size_of::<Header>() == 8);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VersionRequest {
    pub(super) version: U32,
    /// Bit 0: last attempt.
    pub(super) flags: U32,
}
const _: () = assert!(size_of::<VersionRequest>() == 8);

/// The body of the two responses of the handshake.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Flags {
    /// Bit 0: accepted.
    pub(super) flags: U64,
}
const _: () = assert!(size_of::<Flags>() == 8);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CapabilitiesReport {
    pub(super) capabilities: U64,
    pub(super) min_page_count: U64,
    pub(super) max_page_number: U64,
}
const _: () = assert!(size_of::<CapabilitiesReport>() == 24);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct StatusReport {
    pub(super) available: U64,
    pub(super) committed: U64,
    pub(super) page_file: U64,
    pub(super) zero_and_free: U64,
    pub(super) page_file_writes: U32,
    pub(super) io_difference: U32,
}
const _: () = assert!(size_of::<StatusReport>() == 40);

/// The fixed part of all bodies that have two 32-bit words.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct TwoWords {
    pub(super) first: U32,
    pub(super) second: U32,
}
const _: () = assert!(size_of::<TwoWords>() == 8);

impl TwoWords {
    pub(super) const fn new(first: u32, second: u32) -> Self {
        Self {
            first: U32::new(first),
            second: U32::new(second),
        }
    }
}

/// The fixed part of an information message: what is in it, and what it is about.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Information {
    pub(super) reserved: U32,
    /// The size of all that follows this field.
    pub(super) size_bytes: U32,
    pub(super) kind: U32,
    pub(super) data_bytes: U32,
}
const _: () = assert!(size_of::<Information>() == 16);

const START_BITS: u32 = 40;
const START_MASK: u64 = (1 << START_BITS) - 1;

/// A run of pages as it stands in a message: the first page in the low 40 bits, the count in the high 24.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct WireRange(U64);
const _: () = assert!(size_of::<WireRange>() == 8);

impl WireRange {
    /// The most pages that one range can have.
    pub const MAX_PAGES: u64 = (1 << 24) - 1;

    /// Makes a range; `None` if the first page or the count has too many bits, or the last page would.
    #[must_use]
    pub const fn new(start: Pfn, page_count: u64) -> Option<Self> {
        let start = start.get();
        if start > START_MASK || page_count > Self::MAX_PAGES || start.saturating_add(page_count) > START_MASK + 1 {
            return None;
        }
        Some(Self(U64::new(start | page_count << START_BITS)))
    }

    /// Makes a range from the number that stands in a message.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(U64::new(bits))
    }

    /// Returns the first page. An allegation.
    #[must_use]
    pub const fn start(self) -> Pfn {
        Pfn::new(self.0.get() & START_MASK)
    }

    /// Returns the number of pages, at most [`WireRange::MAX_PAGES`]. An allegation.
    #[must_use]
    pub const fn page_count(self) -> u64 {
        self.0.get() >> START_BITS
    }

    /// Returns the range, or `None` if it is empty.
    #[must_use]
    pub const fn pages(self) -> Option<PageRange> {
        PageRange::new(self.start(), self.page_count())
    }
}

impl fmt::Debug for WireRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} pages from {:#x}", self.page_count(), self.start().get())
    }
}

/// Returns the fixed part of a body and what follows it.
pub(super) fn split<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    message_type: u16,
    body: &[u8],
) -> Result<(&T, &[u8]), ParseError> {
    T::ref_from_prefix(body).map_err(|_| ParseError::TooShort {
        message_type,
        len: size_of::<Header>().saturating_add(body.len()),
        needed_bytes: size_of::<Header>().saturating_add(size_of::<T>()),
    })
}

/// Returns the first `claimed` ranges in `bytes`.
pub(super) fn ranges(claimed: u32, bytes: &[u8]) -> Result<&[WireRange], ParseError> {
    let too_many = ParseError::TooManyRanges {
        claimed,
        present: bytes
            .len()
            .checked_div(size_of::<WireRange>())
            .unwrap_or(0)
            .min(MAX_RANGES),
    };
    let count = usize::try_from(claimed).map_err(|_| too_many)?;
    if count > MAX_RANGES {
        return Err(too_many);
    }
    match <[WireRange]>::ref_from_prefix_with_elems(bytes, count) {
        Ok((ranges, _)) => Ok(ranges),
        Err(_) => Err(too_many),
    }
}

/// Reads what follows an information message's head.
pub(super) fn information(head: &Information, data: &[u8]) -> super::Information {
    let (kind, claimed_bytes) = (head.kind.get(), head.data_bytes.get());
    match U64::read_from_prefix(data) {
        Ok((count, _)) if kind == INFORMATION_MAX_PAGE_COUNT && claimed_bytes == 8 => {
            super::Information::MaxPageCount(count.get())
        }
        _ => super::Information::Other { kind, claimed_bytes },
    }
}

/// Writes header, body and the rest.
pub(super) fn emit<'b>(
    message_type: u16,
    transaction: u32,
    body: &[u8],
    rest: &[u8],
    buffer: &'b mut [u8],
) -> Result<&'b [u8], BufferTooSmall> {
    let body_start = size_of::<Header>();
    let rest_start = body_start.saturating_add(body.len());
    let needed_bytes = rest_start.saturating_add(rest.len());
    let too_small = BufferTooSmall { needed_bytes };
    let header = Header {
        message_type: message_type.into(),
        size_bytes: u16::try_from(needed_bytes).map_err(|_| too_small)?.into(),
        transaction: transaction.into(),
    };
    for (start, part) in [(0, header.as_bytes()), (body_start, body), (rest_start, rest)] {
        let end = start.saturating_add(part.len());
        buffer.get_mut(start..end).ok_or(too_small)?.copy_from_slice(part);
    }
    buffer.get(..needed_bytes).ok_or(too_small)
}
