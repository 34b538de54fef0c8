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

mod wire;

#[cfg(test)]
mod tests;

use core::fmt;

use zerocopy::{FromBytes, IntoBytes};

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
    /// The first version, of Windows Server 2008 R2 (`DYNMEM_PROTOCOL_VERSION_1`): 0.3.
    pub const V1: Self = Self(3);
    /// The second version, of Windows Server 2012 (`DYNMEM_PROTOCOL_VERSION_2`): 1.0.
    pub const V2: Self = Self(1 << 16);
    /// The third version, of Windows Server 2016 (`DYNMEM_PROTOCOL_VERSION_3`): 2.0.
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

/// A message. `more` is true for all parts of a transaction but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// The guest proposes a version.
    VersionRequest {
        /// The version.
        version: ProtocolVersion,
        /// True if the guest will not try another one.
        is_last_attempt: bool,
    },
    /// The host accepts it or does not.
    VersionResponse {
        /// True if it does.
        is_accepted: bool,
    },
    /// The guest says what it can do.
    CapabilitiesReport {
        /// What it can do.
        capabilities: Capabilities,
        /// The fewest pages that it wants to live with. Hosts do not look at it.
        min_page_count: u64,
        /// The highest page number that it can use. Hosts do not look at it.
        max_page_number: u64,
    },
    /// The host answers that.
    CapabilitiesResponse(CapabilitiesAnswer),
    /// The guest reports its memory. No answer.
    StatusReport(Status),
    /// The host wants pages.
    BalloonRequest {
        /// How many.
        page_count: u32,
    },
    /// The guest names pages that the host now has. Without ranges: there are no more to be had.
    BalloonResponse {
        /// The pages.
        ranges: Ranges<'a>,
        /// True if more messages follow for the same request.
        more: bool,
    },
    /// The host gives pages back.
    UnballoonRequest {
        /// The pages.
        ranges: Ranges<'a>,
        /// True if more messages follow; only the last is answered.
        more: bool,
    },
    /// The guest has them.
    UnballoonResponse,
    /// The host has added memory.
    HotAddRequest {
        /// The pages that are there now.
        pages: WireRange,
        /// The range in which they lie and in which others may follow, if the host says so.
        region: Option<WireRange>,
    },
    /// The guest uses it.
    HotAddResponse {
        /// How many of the pages, from the first one on. Fewer than were offered: there is no use in offering more.
        page_count: u32,
        /// True if pages were added, and also if it was none and none ever can be; false if trying again may help.
        is_final: bool,
    },
    /// The host tells something.
    Information(Information),
}

/// Bytes from the host are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// There is not even a header.
    #[error("{len} bytes are no message")]
    NoHeader {
        /// How many bytes there are.
        len: usize,
    },
    /// The size in the header is smaller than the header or larger than what came.
    #[error("a message of type {message_type} claims {claimed_bytes} bytes, {len} came")]
    BadSize {
        /// The type in the header.
        message_type: u16,
        /// The size in the header.
        claimed_bytes: u16,
        /// How many bytes there are.
        len: usize,
    },
    /// The message is shorter than its type needs.
    #[error("a message of type {message_type} has {len} bytes, it needs {needed_bytes}")]
    TooShort {
        /// The type in the header.
        message_type: u16,
        /// The size in the header.
        len: usize,
        /// The least size of this type.
        needed_bytes: usize,
    },
    /// The message claims more ranges than it has room for.
    #[error("a message claims {claimed} ranges, there are bytes for {present}")]
    TooManyRanges {
        /// The claimed number.
        claimed: u32,
        /// How many fit in the bytes that came, or in any message.
        present: usize,
    },
    /// A type that we do not know. Not an error of the host: newer hosts may have more to say.
    #[error("messages of type {message_type} are not known")]
    UnknownType {
        /// The type in the header.
        message_type: u16,
    },
}

/// A message does not fit in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message needs {needed_bytes} bytes")]
pub struct BufferTooSmall {
    /// How many bytes it needs.
    pub needed_bytes: usize,
}

impl<'a> Message<'a> {
    /// Parses the payload of a packet into its transaction number and the message.
    ///
    /// What is guaranteed of the result: ranges are as many as really came. What they name is whatever the sender wrote.
    ///
    /// # Errors
    ///
    /// [`ParseError`]; never panics, whatever the bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<(u32, Self), ParseError> {
        let len = bytes.len();
        let Ok((header, _)) = wire::Header::ref_from_prefix(bytes) else {
            return Err(ParseError::NoHeader { len });
        };
        let message_type = header.message_type.get();
        let claimed_bytes = header.size_bytes.get();
        let Some(body) = bytes.get(size_of::<wire::Header>()..usize::from(claimed_bytes)) else {
            return Err(ParseError::BadSize {
                message_type,
                claimed_bytes,
                len,
            });
        };
        let message = Self::parse_body(message_type, body)?;
        Ok((header.transaction.get(), message))
    }

    fn parse_body(message_type: u16, body: &'a [u8]) -> Result<Self, ParseError> {
        Ok(match message_type {
            wire::VERSION_REQUEST => {
                let (body, _) = wire::split::<wire::VersionRequest>(message_type, body)?;
                Self::VersionRequest {
                    version: ProtocolVersion(body.version.get()),
                    is_last_attempt: body.flags.get() & 1 != 0,
                }
            }
            wire::VERSION_RESPONSE => {
                let (body, _) = wire::split::<wire::Flags>(message_type, body)?;
                Self::VersionResponse {
                    is_accepted: body.flags.get() & 1 != 0,
                }
            }
            wire::CAPABILITIES_REPORT => {
                let (body, _) = wire::split::<wire::CapabilitiesReport>(message_type, body)?;
                Self::CapabilitiesReport {
                    capabilities: Capabilities(body.capabilities.get()),
                    min_page_count: body.min_page_count.get(),
                    max_page_number: body.max_page_number.get(),
                }
            }
            wire::CAPABILITIES_RESPONSE => {
                let (body, _) = wire::split::<wire::Flags>(message_type, body)?;
                Self::CapabilitiesResponse(CapabilitiesAnswer::from_bits_retain(body.flags.get()))
            }
            wire::STATUS_REPORT => {
                let (body, _) = wire::split::<wire::StatusReport>(message_type, body)?;
                Self::StatusReport(Status {
                    available_pages: body.available.get(),
                    committed_pages: body.committed.get(),
                    page_file_pages: body.page_file.get(),
                    zero_and_free_pages: body.zero_and_free.get(),
                    page_file_writes: body.page_file_writes.get(),
                    io_difference: body.io_difference.get(),
                })
            }
            wire::BALLOON_REQUEST => {
                let (body, _) = wire::split::<wire::TwoWords>(message_type, body)?;
                Self::BalloonRequest {
                    page_count: body.first.get(),
                }
            }
            wire::BALLOON_RESPONSE => {
                let (body, rest) = wire::split::<wire::TwoWords>(message_type, body)?;
                let packed = body.second.get();
                Self::BalloonResponse {
                    ranges: Ranges(wire::ranges(packed >> 1, rest)?),
                    more: packed & 1 != 0,
                }
            }
            wire::UNBALLOON_REQUEST => {
                let (body, rest) = wire::split::<wire::TwoWords>(message_type, body)?;
                Self::UnballoonRequest {
                    ranges: Ranges(wire::ranges(body.second.get(), rest)?),
                    more: body.first.get() & 1 != 0,
                }
            }
            wire::UNBALLOON_RESPONSE => Self::UnballoonResponse,
            wire::HOT_ADD_REQUEST => {
                let (pages, rest) = wire::split::<WireRange>(message_type, body)?;
                Self::HotAddRequest {
                    pages: *pages,
                    region: WireRange::read_from_prefix(rest).ok().map(|(region, _)| region),
                }
            }
            wire::HOT_ADD_RESPONSE => {
                let (body, _) = wire::split::<wire::TwoWords>(message_type, body)?;
                Self::HotAddResponse {
                    page_count: body.first.get(),
                    is_final: body.second.get() != 0,
                }
            }
            wire::INFORMATION => {
                let (head, data) = wire::split::<wire::Information>(message_type, body)?;
                Self::Information(wire::information(head, data))
            }
            _ => return Err(ParseError::UnknownType { message_type }),
        })
    }

    /// Writes the message into `buffer` and returns the bytes written; reserved bits are zero.
    ///
    /// # Errors
    ///
    /// [`BufferTooSmall`]; [`MAX_MESSAGE_BYTES`] are always enough.
    pub fn emit<'b>(&self, transaction: u32, buffer: &'b mut [u8]) -> Result<&'b [u8], BufferTooSmall> {
        let flags = |flags: u64| wire::Flags { flags: flags.into() };
        match *self {
            Self::VersionRequest {
                version,
                is_last_attempt,
            } => {
                let body = wire::VersionRequest {
                    version: version.0.into(),
                    flags: u32::from(is_last_attempt).into(),
                };
                wire::emit(wire::VERSION_REQUEST, transaction, body.as_bytes(), &[], buffer)
            }
            Self::VersionResponse { is_accepted } => {
                let body = flags(u64::from(is_accepted));
                wire::emit(wire::VERSION_RESPONSE, transaction, body.as_bytes(), &[], buffer)
            }
            Self::CapabilitiesReport {
                capabilities,
                min_page_count,
                max_page_number,
            } => {
                let body = wire::CapabilitiesReport {
                    capabilities: capabilities.0.into(),
                    min_page_count: min_page_count.into(),
                    max_page_number: max_page_number.into(),
                };
                wire::emit(wire::CAPABILITIES_REPORT, transaction, body.as_bytes(), &[], buffer)
            }
            Self::CapabilitiesResponse(answer) => {
                let body = flags(answer.bits());
                wire::emit(wire::CAPABILITIES_RESPONSE, transaction, body.as_bytes(), &[], buffer)
            }
            Self::StatusReport(status) => {
                let body = wire::StatusReport {
                    available: status.available_pages.into(),
                    committed: status.committed_pages.into(),
                    page_file: status.page_file_pages.into(),
                    zero_and_free: status.zero_and_free_pages.into(),
                    page_file_writes: status.page_file_writes.into(),
                    io_difference: status.io_difference.into(),
                };
                wire::emit(wire::STATUS_REPORT, transaction, body.as_bytes(), &[], buffer)
            }
            Self::BalloonRequest { page_count } => {
                let body = wire::TwoWords::new(page_count, 0);
                wire::emit(wire::BALLOON_REQUEST, transaction, body.as_bytes(), &[], buffer)
            }
            Self::BalloonResponse { ranges, more } => {
                let body = wire::TwoWords::new(0, ranges.wire_count() << 1 | u32::from(more));
                wire::emit(
                    wire::BALLOON_RESPONSE,
                    transaction,
                    body.as_bytes(),
                    ranges.0.as_bytes(),
                    buffer,
                )
            }
            Self::UnballoonRequest { ranges, more } => {
                let body = wire::TwoWords::new(u32::from(more), ranges.wire_count());
                wire::emit(
                    wire::UNBALLOON_REQUEST,
                    transaction,
                    body.as_bytes(),
                    ranges.0.as_bytes(),
                    buffer,
                )
            }
            Self::UnballoonResponse => wire::emit(wire::UNBALLOON_RESPONSE, transaction, &[], &[], buffer),
            Self::HotAddRequest { pages, region } => {
                let rest = region.as_ref().map_or(&[][..], IntoBytes::as_bytes);
                wire::emit(wire::HOT_ADD_REQUEST, transaction, pages.as_bytes(), rest, buffer)
            }
            Self::HotAddResponse { page_count, is_final } => {
                let body = wire::TwoWords::new(page_count, u32::from(is_final));
                wire::emit(wire::HOT_ADD_RESPONSE, transaction, body.as_bytes(), &[], buffer)
            }
            Self::Information(information) => {
                let (kind, claimed_bytes, count) = match information {
                    Information::MaxPageCount(count) => (wire::INFORMATION_MAX_PAGE_COUNT, 8, Some(count)),
                    Information::Other { kind, claimed_bytes } => (kind, claimed_bytes, None),
                };
                let count = count.map(u64::to_le_bytes);
                let data: &[u8] = count.as_ref().map_or(&[], |bytes| bytes);
                let size = if data.is_empty() { 8 } else { 16 };
                let body = wire::Information {
                    reserved: 0.into(),
                    size_bytes: size.into(),
                    kind: kind.into(),
                    data_bytes: claimed_bytes.into(),
                };
                wire::emit(wire::INFORMATION, transaction, body.as_bytes(), data, buffer)
            }
        }
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
