//! Packets: what is sent, and what has arrived.

use super::error::Corruption;
use super::external::{External, ExternalToSend};
use crate::protocol::packet::{PacketDescriptor, PacketFlags, PacketType};

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;
/// Bytes of a trailer.
pub(super) const TRAILER: u32 = 8;
/// The most bytes that a descriptor's 16-bit length can tell, in units of 8.
pub(super) const MAX_LENGTH: u32 = u16::MAX as u32 * 8;

/// What a packet is, apart from what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the packet carries.
    pub packet_type: PacketType,
    /// Whether the sender waits for a completion.
    pub flags: PacketFlags,
    /// The sender's number for the packet; a completion repeats it.
    pub transaction_id: u64,
}

impl Header {
    /// Payload, nobody waits for an answer.
    #[must_use]
    #[inline]
    pub const fn in_band(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::IN_BAND,
            flags: PacketFlags::empty(),
            transaction_id,
        }
    }

    /// Payload, and the peer is to complete the packet.
    #[must_use]
    #[inline]
    pub const fn in_band_with_completion(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::IN_BAND,
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
        }
    }

    /// The answer to the packet with this id.
    #[must_use]
    #[inline]
    pub const fn completion(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::COMPLETION,
            flags: PacketFlags::empty(),
            transaction_id,
        }
    }

    /// Payload and pages, which are the peer's to use until it completes the packet.
    #[must_use]
    #[inline]
    pub const fn gpa_direct(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::GPA_DIRECT,
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
        }
    }

    /// Payload and ranges of a shared buffer, which are the peer's to use until it completes the packet.
    #[must_use]
    #[inline]
    pub const fn transfer_pages(transaction_id: u64) -> Self {
        Self {
            packet_type: PacketType::TRANSFER_PAGES,
            flags: PacketFlags::COMPLETION_REQUESTED,
            transaction_id,
        }
    }

    /// The descriptor as two words; both lengths are multiples of 8 and at most [`MAX_LENGTH`].
    #[inline]
    pub(super) const fn encode(self, data_offset: u32, length: u32) -> [u64; 2] {
        let first = self.packet_type.0 as u64
            | (data_offset as u64 / 8) << 16
            | (length as u64 / 8) << 32
            | (self.flags.bits() as u64) << 48;
        [first, self.transaction_id]
    }
}

/// A packet to be staged in one go, its payload gathered from pieces.
#[derive(Clone, Copy, Debug)]
pub struct PacketToSend<'a> {
    /// The sender's number for the packet.
    pub header: Header,
    /// Memory outside the ring that goes with it; `None` unless the header's type says otherwise.
    pub external: ExternalToSend<'a>,
    /// The payload.
    pub pieces: &'a [&'a [u8]],
}

/// A descriptor that the peer wrote, copied once and checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) packet_type: PacketType,
    pub(super) flags: PacketFlags,
    pub(super) transaction_id: u64,
    /// Bytes between descriptor and payload.
    pub(super) external: u32,
    /// Bytes of the payload, padding included.
    pub(super) payload: u32,
}

impl Descriptor {
    /// Checks everything that a descriptor can tell: the packet and its trailer lie within `available` bytes, the payload
    /// within the packet; type and flags exist.
    #[inline]
    pub(super) fn decode(words: [u64; 2], available: u32) -> Result<Self, Corruption> {
        let raw: PacketDescriptor = zerocopy::transmute!(words);
        let (data_offset8, length8) = (raw.data_offset8.get(), raw.length8.get());
        let (data_offset, length) = (
            u32::from(data_offset8).wrapping_mul(8),
            u32::from(length8).wrapping_mul(8),
        );
        if data_offset < DESCRIPTOR || data_offset > length {
            return Err(Corruption::DataOffset { data_offset8, length8 });
        }
        // At most 16 bits times 8, plus 8: fits.
        if length.wrapping_add(TRAILER) > available {
            return Err(Corruption::Length { length8, available });
        }
        let packet_type = PacketType(raw.packet_type.get());
        let flags = PacketFlags::from_bits_retain(raw.flags.get());
        if !PacketFlags::all().contains(flags) {
            return Err(Corruption::Flags { raw: flags.bits() });
        }
        match packet_type {
            PacketType::IN_BAND | PacketType::COMPLETION | PacketType::GPA_DIRECT | PacketType::TRANSFER_PAGES => {}
            raw => return Err(Corruption::PacketType { raw }),
        }
        Ok(Self {
            packet_type,
            flags,
            transaction_id: raw.transaction_id.get(),
            // Checked above: descriptor <= data offset <= length.
            external: data_offset.wrapping_sub(DESCRIPTOR),
            payload: length.wrapping_sub(data_offset),
        })
    }

    /// Bytes behind the descriptor: page list and payload.
    #[inline]
    pub(super) const fn body(&self) -> u32 {
        self.external.wrapping_add(self.payload)
    }

    /// All bytes that the packet takes in the ring.
    #[inline]
    pub(super) const fn total(&self) -> u32 {
        self.body().wrapping_add(DESCRIPTOR).wrapping_add(TRAILER)
    }
}

/// A packet that has arrived: a private copy, checked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub(super) descriptor: Descriptor,
    pub(super) external: External<'a>,
    pub(super) payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Takes a copied packet apart: `body` is what stood behind the descriptor.
    #[inline]
    pub(super) fn parse(descriptor: Descriptor, body: &'a [u8]) -> Result<Self, Corruption> {
        let (external, payload) = body
            .split_at_checked(descriptor.external as usize)
            .unwrap_or((body, &[]));
        let external = match descriptor.packet_type {
            PacketType::GPA_DIRECT | PacketType::TRANSFER_PAGES => External::parse(descriptor.packet_type, external)?,
            _ => External::None,
        };
        Ok(Self {
            descriptor,
            external,
            payload,
        })
    }

    /// One of the four types that [`PacketType`] names.
    #[must_use]
    #[inline]
    pub const fn packet_type(&self) -> PacketType {
        self.descriptor.packet_type
    }

    /// The sender's number for the packet. Where this is a completion, an allegation that we sent a packet with this number.
    #[must_use]
    #[inline]
    pub const fn transaction_id(&self) -> u64 {
        self.descriptor.transaction_id
    }

    /// Whether the sender waits for a completion with this packet's transaction id.
    #[must_use]
    #[inline]
    pub const fn is_completion_requested(&self) -> bool {
        self.descriptor.flags.contains(PacketFlags::COMPLETION_REQUESTED)
    }

    /// The payload with its padding: a multiple of 8 bytes. How many of them count, the payload itself must tell.
    #[must_use]
    #[inline]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The memory outside the ring that goes with the packet.
    #[must_use]
    #[inline]
    pub const fn external(&self) -> External<'a> {
        self.external
    }
}
