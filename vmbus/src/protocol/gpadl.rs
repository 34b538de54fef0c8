//! Messages about shared memory: a GPADL (guest-physical address descriptor list) names pages of the guest by a number.
//!
//! A GPADL is described by one header message with up to 26 page numbers and as many body messages, each with up to 28
//! further ones, as it takes. This crate shares one range of bytes for each GPADL, which is what every host accepts.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::message::{ChannelMessage, HEADER_LEN, MAX_MESSAGE_LEN, MessageBytes, ParseError};
use super::{ChannelId, GpadlId};

/// The most page numbers in a header message.
pub const HEADER_PAGES: usize = (MAX_MESSAGE_LEN - HEADER_LEN - size_of::<GpadlHeader>()) / 8;
/// The most page numbers in a body message.
pub const BODY_PAGES: usize = (MAX_MESSAGE_LEN - HEADER_LEN - size_of::<GpadlBody>()) / 8;
/// The most pages in a GPADL: the length of its description in bytes, 8 for each page and 8 for the range, is a
/// multiple of 8 in 16 bits.
pub const MAX_GPADL_PAGES: usize = (0xfff8 - 8) / 8;
const _: () = assert!(HEADER_PAGES == 26 && BODY_PAGES == 28 && MAX_GPADL_PAGES == 8190);

const PAGE_SIZE: u32 = 4096;

/// The bytes of a GPADL: `len_bytes` of them from `offset_bytes` into the first page on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpadlRange {
    offset_bytes: u32,
    len_bytes: u32,
}

/// A range cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a GPADL has 1 to 8190 pages and begins in the first; asked for {len_bytes} bytes at offset {offset_bytes}")]
pub struct BadRange {
    /// The offset in the first page.
    pub offset_bytes: usize,
    /// The length.
    pub len_bytes: usize,
}

impl GpadlRange {
    /// Makes a range.
    ///
    /// # Errors
    ///
    /// [`BadRange`] if it is empty, does not begin in the first page, or has more than [`MAX_GPADL_PAGES`] pages.
    pub fn new(offset_bytes: usize, len_bytes: usize) -> Result<Self, BadRange> {
        let bad = BadRange {
            offset_bytes,
            len_bytes,
        };
        let range = Self {
            offset_bytes: u32::try_from(offset_bytes).map_err(|_| bad)?,
            len_bytes: u32::try_from(len_bytes).map_err(|_| bad)?,
        };
        if range.offset_bytes >= PAGE_SIZE || range.len_bytes == 0 || range.page_count() > MAX_GPADL_PAGES {
            return Err(bad);
        }
        Ok(range)
    }

    /// Returns where the range begins in its first page.
    #[must_use]
    pub const fn offset_bytes(self) -> u32 {
        self.offset_bytes
    }

    /// Returns the range's length.
    #[must_use]
    pub const fn len_bytes(self) -> u32 {
        self.len_bytes
    }

    /// Returns how many pages the range touches.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^20 + 1 pages")]
    pub const fn page_count(self) -> usize {
        // Two numbers of 32 bits: the sum fits.
        (self.offset_bytes as u64)
            .wrapping_add(self.len_bytes as u64)
            .div_ceil(PAGE_SIZE as u64) as usize
    }

    /// Returns how many messages describe the range.
    #[must_use]
    pub const fn message_count(self) -> usize {
        let in_bodies = self.page_count().saturating_sub(HEADER_PAGES);
        in_bodies.div_ceil(BODY_PAGES).saturating_add(1)
    }
}

impl GpadlRange {
    /// Bytes of the whole description: length and offset, and a number for each page.
    const fn description_len(self) -> usize {
        self.page_count().saturating_add(1).saturating_mul(8)
    }
}

/// `GPADL_HEADER`: the first part of a description. Page numbers follow the fields.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpadlHeader {
    channel: U32,
    gpadl: U32,
    ranges_len_bytes: U16,
    range_count: U16,
    len_bytes: U32,
    offset_bytes: U32,
}
const _: () = assert!(size_of::<GpadlHeader>() == 20);

impl GpadlHeader {
    /// Makes the header message of a GPADL. `page` is asked for the number of each page that the header has room for.
    ///
    /// # Errors
    ///
    /// What `page` returns.
    pub fn describe<E>(
        channel: ChannelId,
        gpadl: GpadlId,
        range: GpadlRange,
        page: impl FnMut(usize) -> Result<u64, E>,
    ) -> Result<MessageBytes, E> {
        let pages = range.page_count();
        let header = Self {
            channel: channel.0.into(),
            gpadl: gpadl.0.into(),
            ranges_len_bytes: u16::try_from(range.description_len()).unwrap_or(u16::MAX).into(),
            range_count: U16::new(1),
            len_bytes: range.len_bytes.into(),
            offset_bytes: range.offset_bytes.into(),
        };
        append_pages(header.encode(), 0..pages.min(HEADER_PAGES), page)
    }

    /// Returns the channel.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the GPADL.
    #[must_use]
    pub const fn gpadl(&self) -> GpadlId {
        GpadlId(self.gpadl.get())
    }

    /// Returns the range, as the offering side reads it.
    ///
    /// # Errors
    ///
    /// [`ParseError::Inconsistent`] if there is not exactly one range, or its size contradicts the description's.
    pub fn range(&self) -> Result<GpadlRange, ParseError> {
        let inconsistent = |what, value| ParseError::Inconsistent {
            message_type: Self::TYPE,
            what,
            value,
        };
        if self.range_count.get() != 1 {
            return Err(inconsistent("the number of ranges", u64::from(self.range_count.get())));
        }
        let (offset, len) = (self.offset_bytes.get(), self.len_bytes.get());
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(len).ok())
            .and_then(|(offset, len)| GpadlRange::new(offset, len).ok())
            .ok_or_else(|| inconsistent("the number of bytes", u64::from(len)))?;
        if usize::from(self.ranges_len_bytes.get()) != range.description_len() {
            return Err(inconsistent(
                "the description's length",
                u64::from(self.ranges_len_bytes.get()),
            ));
        }
        Ok(range)
    }

    /// Returns the page numbers in the message `bytes`.
    pub fn pages(bytes: &[u8]) -> impl Iterator<Item = u64> {
        trailing_pages(bytes, Self::MIN_LEN)
    }
}

/// `GPADL_BODY`: a further part of a description. Page numbers follow the fields.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpadlBody {
    number: U32,
    gpadl: U32,
}

impl GpadlBody {
    /// Makes body message `number` (from 1 on) of a GPADL. `page` is asked for the number of each of its pages.
    ///
    /// # Errors
    ///
    /// What `page` returns.
    pub fn describe<E>(
        number: usize,
        gpadl: GpadlId,
        range: GpadlRange,
        page: impl FnMut(usize) -> Result<u64, E>,
    ) -> Result<MessageBytes, E> {
        let body = Self {
            number: u32::try_from(number).unwrap_or(u32::MAX).into(),
            gpadl: gpadl.0.into(),
        };
        let first = HEADER_PAGES.saturating_add(number.saturating_sub(1).saturating_mul(BODY_PAGES));
        let end = first.saturating_add(BODY_PAGES).min(range.page_count());
        append_pages(body.encode(), first..end, page)
    }

    /// Returns which body message of its GPADL it is, from 1 on.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number.get()
    }

    /// Returns the GPADL.
    #[must_use]
    pub const fn gpadl(&self) -> GpadlId {
        GpadlId(self.gpadl.get())
    }

    /// Returns the page numbers in the message `bytes`.
    pub fn pages(bytes: &[u8]) -> impl Iterator<Item = u64> {
        trailing_pages(bytes, Self::MIN_LEN)
    }
}

fn append_pages<E>(
    mut message: MessageBytes,
    indices: core::ops::Range<usize>,
    mut page: impl FnMut(usize) -> Result<u64, E>,
) -> Result<MessageBytes, E> {
    for index in indices {
        let appended = message.append(U64::new(page(index)?).as_bytes());
        debug_assert!(appended.is_ok(), "the counts are made for the room that there is");
    }
    Ok(message)
}

fn trailing_pages(bytes: &[u8], from: usize) -> impl Iterator<Item = u64> {
    let (numbers, _) = bytes.get(from..).unwrap_or_default().as_chunks::<8>();
    numbers.iter().map(|number| u64::from_le_bytes(*number))
}

/// `GPADL_CREATED`: the answer to a complete description.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpadlCreated {
    channel: U32,
    gpadl: U32,
    status: U32,
}

impl GpadlCreated {
    /// Makes an answer: status 0 is success.
    #[must_use]
    pub fn new(channel: ChannelId, gpadl: GpadlId, status: u32) -> Self {
        Self {
            channel: channel.0.into(),
            gpadl: gpadl.0.into(),
            status: status.into(),
        }
    }

    /// Returns the channel: an allegation, unchecked.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the GPADL: an allegation, unchecked.
    #[must_use]
    pub const fn gpadl(&self) -> GpadlId {
        GpadlId(self.gpadl.get())
    }

    /// Returns the status: 0 is success.
    #[must_use]
    pub const fn status(&self) -> u32 {
        self.status.get()
    }
}

/// `GPADL_TEARDOWN`: the guest wants the memory back.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpadlTeardown {
    channel: U32,
    gpadl: U32,
}

impl GpadlTeardown {
    /// Makes a request for the memory of `gpadl`.
    #[must_use]
    pub fn new(channel: ChannelId, gpadl: GpadlId) -> Self {
        Self {
            channel: channel.0.into(),
            gpadl: gpadl.0.into(),
        }
    }

    /// Returns the channel.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the GPADL.
    #[must_use]
    pub const fn gpadl(&self) -> GpadlId {
        GpadlId(self.gpadl.get())
    }
}

/// `GPADL_TORNDOWN`: the host has given up the memory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpadlTorndown {
    gpadl: U32,
}

impl GpadlTorndown {
    /// Makes an answer.
    #[must_use]
    pub fn new(gpadl: GpadlId) -> Self {
        Self { gpadl: gpadl.0.into() }
    }

    /// Returns the GPADL: an allegation, unchecked.
    #[must_use]
    pub const fn gpadl(&self) -> GpadlId {
        GpadlId(self.gpadl.get())
    }
}
