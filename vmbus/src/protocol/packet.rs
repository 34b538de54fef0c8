//! Wire types of the packets that travel in a ring.
//!
//! A packet is a [`PacketDescriptor`], then what its type adds to it (page lists), then the payload, zero-padded to a
//! multiple of 8, then a [`PacketTrailer`]:
//!
//! ```text
//!  0       2             4         6       8                  16                data_offset8*8      length8*8      +8
//!  | type  | data offset | length  | flags | transaction id   | pages or ranges | payload, padding  | trailer      |
//! ```
//!
//! Neighbours: [`crate::ring`] moves these bytes and checks what arrives. Source: the public headers of Linux (`hyperv.h`),
//! FreeBSD (`vmbus_reg.h`) and mu_msvm (`VmbusPacketFormat.h`), and the checks that OpenVMM makes as a host.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The unit of ring sizes and of the page lists in packets, in bytes.
pub const PAGE_SIZE: u32 = 4096;

/// Everything in a ring starts at, and is padded to, a multiple of this many bytes.
pub const PACKET_ALIGNMENT: u32 = 8;

/// What a packet carries (`VM_PKT_*`): an open number, since the peer may write any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PacketType(pub u16);

impl PacketType {
    /// Payload in the ring itself (`VM_PKT_DATA_INBAND`).
    pub const IN_BAND: Self = Self(6);
    /// Payload, and ranges of a buffer that both sides know (`VM_PKT_DATA_USING_XFER_PAGES`).
    pub const TRANSFER_PAGES: Self = Self(7);
    /// Payload, and pages of the sender's memory (`VM_PKT_DATA_USING_GPA_DIRECT`).
    pub const GPA_DIRECT: Self = Self(9);
    /// The answer to a packet that asked for one (`VM_PKT_COMP`).
    pub const COMPLETION: Self = Self(0xb);
}

bitflags::bitflags! {
    /// Flags of a packet; use `from_bits_retain` for those that a peer wrote.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PacketFlags: u16 {
        /// The sender waits for a completion with the same transaction id
        /// (`VMBUS_DATA_PACKET_FLAG_COMPLETION_REQUESTED`).
        const COMPLETION_REQUESTED = 1;
    }
}

/// The first 16 bytes of each packet (`vmpacket_descriptor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PacketDescriptor {
    /// The number of a [`PacketType`].
    pub packet_type: U16,
    /// Where the payload starts, from the start of the descriptor, in units of 8 bytes.
    pub data_offset8: U16,
    /// Length of descriptor, page list, payload and padding, in units of 8 bytes; the trailer is not part of it.
    pub length8: U16,
    /// The bits of [`PacketFlags`].
    pub flags: U16,
    /// Chosen by the sender; a completion repeats it.
    pub transaction_id: U64,
}
const _: () = assert!(size_of::<PacketDescriptor>() == 16);

/// The last 8 bytes of each packet, behind what `length8` counts.
///
/// Nobody needs them: they are written for the peer, and never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PacketTrailer {
    /// Zero.
    pub reserved: U32,
    /// The ring offset at which the packet starts: the write index before it was written.
    pub packet_offset: U32,
}
const _: () = assert!(size_of::<PacketTrailer>() == 8);

/// What follows the descriptor of a [`PacketType::GPA_DIRECT`] packet; then come the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpaDirectHeader {
    /// Zero when sent; real peers leave garbage in it.
    pub reserved: U32,
    /// How many ranges follow; at least one.
    pub range_count: U32,
}
const _: () = assert!(size_of::<GpaDirectHeader>() == 8);

/// One range of guest-physical pages (`GPA_RANGE`); as many 64-bit page frame numbers follow as the range touches pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GpaRangeHeader {
    /// Length of the range in bytes.
    pub byte_count: U32,
    /// Where the range starts in its first page.
    pub byte_offset: U32,
}
const _: () = assert!(size_of::<GpaRangeHeader>() == 8);

/// What follows the descriptor of a [`PacketType::TRANSFER_PAGES`] packet; then come the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TransferPageHeader {
    /// Which shared buffer the ranges lie in.
    pub set_id: U16,
    /// Zero when sent; real peers leave garbage in it.
    pub reserved: U16,
    /// How many ranges follow.
    pub range_count: U32,
}
const _: () = assert!(size_of::<TransferPageHeader>() == 8);

/// One range of a shared buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TransferPageRange {
    /// Length in bytes.
    pub byte_count: U32,
    /// Start, from the start of the buffer, in bytes.
    pub byte_offset: U32,
}
const _: () = assert!(size_of::<TransferPageRange>() == 8);
