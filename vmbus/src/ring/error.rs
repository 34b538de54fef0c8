//! What can go wrong with a ring: "not now", "never", and what the peer did.

use crate::protocol::packet::PacketType;

/// Why memory cannot be a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRing {
    /// The data must be one or more whole pages, up to 1 GiB.
    #[error("{size:#x} bytes cannot be the data of a ring")]
    Size {
        /// The number of bytes.
        size: u32,
    },
    /// Control and data pages must start at page boundaries.
    #[error("a ring's pages must be page-aligned, not at {address:#x}")]
    Alignment {
        /// Where the pages are mapped.
        address: usize,
    },
    /// The ring was in use before, and what it holds makes no sense.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
}

/// What a peer wrote that cannot be; the numbers are as the peer wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// The peer's write index lies outside the ring, or is no multiple of 8.
    #[error("write index {raw:#x} does not lie in a ring of {size:#x} bytes")]
    WriteIndex {
        /// The index.
        raw: u32,
        /// The ring's size.
        size: u32,
    },
    /// The peer's write index took back packets, or ran over some that we have not read.
    #[error("write index {raw:#x} went back: {known:#x} bytes were unread, now {claimed:#x}")]
    WriteIndexBackwards {
        /// The index.
        raw: u32,
        /// Bytes that were known to be in the ring.
        known: u32,
        /// Bytes that the index now says are in the ring.
        claimed: u32,
    },
    /// The peer's read index lies outside the ring, or is no multiple of 8.
    #[error("read index {raw:#x} does not lie in a ring of {size:#x} bytes")]
    ReadIndex {
        /// The index.
        raw: u32,
        /// The ring's size.
        size: u32,
    },
    /// The peer's read index took back room that it had given, or passed what we have written.
    #[error("read index {raw:#x} went back or too far: it leaves {claimed:#x} bytes unread of at most {known:#x}")]
    ReadIndexBackwards {
        /// The index.
        raw: u32,
        /// The most that the peer could have left unread.
        known: u32,
        /// What the index says that it left.
        claimed: u32,
    },
    /// The ring holds fewer bytes than the smallest packet.
    #[error("{available} bytes in the ring are no packet")]
    Fragment {
        /// Bytes in the ring.
        available: u32,
    },
    /// The payload starts inside the descriptor or behind the end.
    #[error("payload at {data_offset8}*8 in a packet of {length8}*8 bytes")]
    DataOffset {
        /// The descriptor's data offset, in units of 8 bytes.
        data_offset8: u16,
        /// The descriptor's length, in units of 8 bytes.
        length8: u16,
    },
    /// The packet and its trailer reach past what the ring holds.
    #[error("a packet of {length8}*8 bytes where the ring holds {available}")]
    Length {
        /// The descriptor's length, in units of 8 bytes.
        length8: u16,
        /// Bytes in the ring.
        available: u32,
    },
    /// The packet is longer than what was agreed on for this channel.
    #[error("a packet of {length} bytes where {limit} were agreed on")]
    TooLong {
        /// Length of the packet, without the trailer.
        length: u32,
        /// The agreed limit.
        limit: u32,
    },
    /// No such packet type.
    #[error("packet type {:#x}", raw.0)]
    PacketType {
        /// The type.
        raw: PacketType,
    },
    /// Flags that do not exist.
    #[error("packet flags {raw:#x}")]
    Flags {
        /// The flags.
        raw: u16,
    },
    /// The packet's type needs more room in front of the payload than there is.
    #[error("{available} bytes cannot hold the page list header")]
    ExternalHeader {
        /// Bytes between descriptor and payload.
        available: u32,
    },
    /// No ranges, or more than the packet can hold.
    #[error("{count} ranges in a page list of {available} bytes")]
    RangeCount {
        /// The number of ranges.
        count: u32,
        /// Bytes that they lie in.
        available: u32,
    },
    /// A range is empty, starts behind its first page, or has more pages than the packet lists.
    #[error("range {index} cannot be: {byte_count:#x} bytes at {byte_offset:#x} of its first page")]
    GpaRange {
        /// Which range.
        index: u32,
        /// Its length.
        byte_count: u32,
        /// Its offset in the first page.
        byte_offset: u32,
    },
    /// A range reaches past the end of the buffer that it should lie in.
    #[error("range {index} lies outside the buffer: {byte_count:#x} bytes at {byte_offset:#x}")]
    TransferRange {
        /// Which range.
        index: u32,
        /// Its length.
        byte_count: u32,
        /// Its offset in the buffer.
        byte_offset: u32,
    },
}

/// Why a packet could not be staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Not now: the ring lacks room, which [`Producer::wait_for_room`](super::Producer::wait_for_room) can wait for.
    #[error("the ring is full: {needed} bytes needed")]
    Full {
        /// Bytes that the packet takes in the ring.
        needed: u32,
    },
    /// Never: the packet does not fit into this ring, or its lengths not into a descriptor.
    #[error("a packet of {needed} bytes can never be sent here, {limit} is the most")]
    TooLarge {
        /// Bytes that the packet would take in the ring; the largest number stands for all larger ones.
        needed: u32,
        /// Bytes that the largest packet takes.
        limit: u32,
    },
    /// Never: a page list has no ranges, or a range not as many page numbers as it touches pages.
    #[error("page list: range {index} cannot be described")]
    PageList {
        /// The first bad range, or 0 if there is none at all.
        index: u32,
    },
    /// Never: more was written to a reservation than it reserved.
    #[error("{excess} bytes more than reserved")]
    OutOfBounds {
        /// Bytes too many; the largest number stands for all larger ones.
        excess: u32,
    },
    /// Never again: the peer broke the ring.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
}

/// Why there is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not now: the ring is empty.
    #[error("the ring is empty")]
    Empty,
    /// Never again: the peer broke the ring.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
}

// Small enough to be returned in registers.
const _: () = assert!(size_of::<Result<(), WriteError>>() <= 16 && size_of::<Result<(), ReadError>>() <= 16);
