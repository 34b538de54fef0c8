//! The messages of dynamic memory, as bytes and as values.
//!
//! Each travels as the payload of one in-band packet, without completion. All start with the same header:
//!
//! ```text
//! 0        2        4                 8
//! | type   | size   | transaction     | body ...      size in bytes, header included; little-endian
//! ```
//!
//! | number | message | from | size in bytes |
//! |---|---|---|---|
//! | 1, 2 | version request, response | guest, host | 16, 16 |
//! | 3, 4 | capabilities report, response | guest, host | 32, 16 |
//! | 5 | status report | guest | 48 |
//! | 6, 7 | balloon request, response | host, guest | 16, 16 + 8 a range |
//! | 8, 9 | unballoon request, response | host, guest | 16 + 8 a range, 8 |
//! | 10, 11 | hot add request, response | host, guest | 16 or 24 (with a region), 16 |
//! | 12 | information (from version 2 on) | host | 16 + its contents |
//!
//! Transaction numbers are made by the sender and mean nothing to the other side; a response need not carry the
//! request's.
//!
//! Structures and numbers are in `wire`, the value that a message is parsed into in `message`; the rest of the vocabulary
//! stands here.

mod message;
mod wire;

#[cfg(test)]
mod round_trips;
#[cfg(test)]
mod tests;

use core::fmt;

pub use message::{BufferTooSmall, Message, ParseError};
pub use wire::WireRange;

use super::PageRange;
use crate::memory::PAGE_SIZE;

/// The longest message that is sent or accepted, in bytes: what every known peer has room for.
pub const MAX_MESSAGE_BYTES: usize = PAGE_SIZE;

/// How many ranges fit in one message.
pub const MAX_RANGES: usize = (MAX_MESSAGE_BYTES - size_of::<wire::Header>() - 8) / size_of::<WireRange>();

/// A version of the protocol, as major and minor number. The names of the versions ("3") are not the numbers (2.0).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u32);

impl ProtocolVersion {
    /// The first version, of Windows 7's time (`DYNMEM_PROTOCOL_VERSION_1`): 0.3.
    pub const V1: Self = Self(3);
    /// The second version, of Windows 8's time (`DYNMEM_PROTOCOL_VERSION_2`): 1.0.
    pub const V2: Self = Self(1 << 16);
    /// The third version, of Windows 10's time (`DYNMEM_PROTOCOL_VERSION_3`): 2.0.
    pub const V3: Self = Self(2 << 16);

    /// The versions to try, newest first.
    pub const LADDER: [Self; 3] = [Self::V3, Self::V2, Self::V1];

    /// Returns the major number.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.0 >> 16
    }

    /// Returns the minor number.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.0 & 0xffff
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for ProtocolVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

bitflags::bitflags! {
    /// What the host answers to the capabilities report.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CapabilitiesAnswer: u64 {
        /// The capabilities are accepted. Without it, the conversation is over.
        const ACCEPTED = 1;
        /// The host would remove memory that was added. This crate does not offer that.
        const HOT_REMOVE = 1 << 1;
        /// The host does not want status reports.
        const SUPPRESS_STATUS = 1 << 2;
    }
}

/// What the guest can do (`dm_caps`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Pages can be taken and given back.
    pub const BALLOON: Self = Self(1);

    /// Memory can be added, in pieces aligned to `alignment`.
    #[must_use]
    pub const fn hot_add(alignment: HotAddAlignment) -> Self {
        Self(1 << 1 | (alignment.0 as u64) << 2)
    }

    /// Returns what is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Capabilities({:#x})", self.0)
    }
}

/// The alignment, and the unit, in which the guest wants memory to be added: a power of two of MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAddAlignment(u8);

impl HotAddAlignment {
    /// 128 MiB: what Linux asks for, and so what every host has been tried with.
    pub const MIB_128: Self = Self(7);

    /// Makes an alignment of 2^`log2_mib` MiB; `None` above 15, which the message has no room for.
    #[must_use]
    pub const fn from_log2_mib(log2_mib: u8) -> Option<Self> {
        if log2_mib < 16 { Some(Self(log2_mib)) } else { None }
    }

    /// Returns the alignment in pages of 4 KiB.
    #[must_use]
    pub const fn pages(self) -> u64 {
        256 << self.0
    }
}

/// The guest's memory as the host wants to know it, in pages of 4 KiB (`dm_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Status {
    /// Pages that could be had at once.
    pub available_pages: u64,
    /// What the guest needs, as the host reckons: pages in use, pages that the host holds, and the reserve.
    pub committed_pages: u64,
    /// The size of all page files.
    pub page_file_pages: u64,
    /// Pages that are free or free and cleared.
    pub zero_and_free_pages: u64,
    /// Pages written to page files.
    pub page_file_writes: u32,
    /// A measure of the file cache's use (`io_diff`).
    pub io_difference: u32,
}

/// What an information message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Information {
    /// The most memory that this machine will ever have, in pages.
    MaxPageCount(u64),
    /// Something that we do not know.
    Other {
        /// Its number.
        kind: u32,
        /// The size of its data in bytes, as the message claims.
        claimed_bytes: u32,
    },
}

/// The ranges in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ranges<'a>(&'a [WireRange]);

impl<'a> Ranges<'a> {
    /// Makes the list of these ranges; `None` if they do not fit in one message.
    #[must_use]
    pub const fn new(ranges: &'a [WireRange]) -> Option<Self> {
        if ranges.len() <= MAX_RANGES {
            Some(Self(ranges))
        } else {
            None
        }
    }

    /// Returns the ranges.
    #[must_use]
    pub const fn as_slice(self) -> &'a [WireRange] {
        self.0
    }
}

impl Ranges<'_> {
    /// Returns how many there are, as the message says it.
    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_RANGES, by construction")]
    const fn wire_count(self) -> u32 {
        self.0.len() as u32
    }
}

impl TryFrom<PageRange> for WireRange {
    type Error = PageRange;

    /// Converts, unless the range is beyond what the message can say.
    fn try_from(range: PageRange) -> Result<Self, PageRange> {
        Self::new(range.start(), range.page_count()).ok_or(range)
    }
}
