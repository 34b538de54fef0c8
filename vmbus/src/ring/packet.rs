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

    /// The first word of the descriptor; the second is the id. Both lengths are multiples of 8 and at most [`MAX_LENGTH`].
    #[inline]
    pub(super) const fn encode(self, data_offset: u32, length: u32) -> u64 {
        self.packet_type.0 as u64
            | (data_offset as u64 / 8) << 16
            | (length as u64 / 8) << 32
            | (self.flags.bits() as u64) << 48
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
    /// Type, data offset, length and flags, 16 bits each.
    first: u64,
    pub(super) transaction_id: u64,
}

impl Descriptor {
    /// Two words of a ring, unchecked.
    #[inline(always)]
    pub(super) const fn new([first, transaction_id]: [u64; 2]) -> Self {
        Self { first, transaction_id }
    }

    /// Whether this is a packet as most are, valid in all but its length: in-band or a completion, with the payload right behind
    /// the descriptor.
    #[inline(always)]
    pub(super) const fn is_usual(self) -> bool {
        /// Everything but the length and the one flag.
        const FIXED: u64 = 0xfffe_0000_ffff_ffff;
        const IN_BAND: u64 = 2 << 16 | PacketType::IN_BAND.0 as u64;
        const COMPLETION: u64 = 2 << 16 | PacketType::COMPLETION.0 as u64;
        let fixed = self.first & FIXED;
        (fixed == IN_BAND || fixed == COMPLETION) && self.length() >= DESCRIPTOR
    }

    /// Checks everything that a descriptor can tell: the packet and its trailer lie within `available` bytes, the payload
    /// within the packet; type and flags exist.
    #[inline(always)]
    pub(super) fn check(self, available: u32) -> Result<Self, Corruption> {
        if self.is_usual() && self.total() <= available {
            return Ok(self);
        }
        self.check_unusual(available)
    }

    #[inline(never)]
    fn check_unusual(self, available: u32) -> Result<Self, Corruption> {
        let raw: PacketDescriptor = zerocopy::transmute!([self.first, self.transaction_id]);
        let (data_offset8, length8) = (raw.data_offset8.get(), raw.length8.get());
        if self.data_offset() < DESCRIPTOR || data_offset8 > length8 {
            return Err(Corruption::DataOffset { data_offset8, length8 });
        }
        // At most 16 bits times 8, plus 8: fits.
        if self.total() > available {
            return Err(Corruption::Length { length8, available });
        }
        if !PacketFlags::all().contains(self.flags()) {
            return Err(Corruption::Flags { raw: raw.flags.get() });
        }
        match self.packet_type() {
            PacketType::IN_BAND | PacketType::COMPLETION | PacketType::GPA_DIRECT | PacketType::TRANSFER_PAGES => {
                Ok(self)
            }
            raw => Err(Corruption::PacketType { raw }),
        }
    }

    /// One of the four 16-bit fields: the one that starts at this bit.
    #[inline(always)]
    const fn field<const BIT: u32>(self) -> u16 {
        (self.first >> BIT & 0xffff) as u16
    }

    #[inline]
    pub(super) const fn packet_type(self) -> PacketType {
        PacketType(self.field::<0>())
    }

    #[inline]
    const fn data_offset(self) -> u32 {
        (self.field::<16>() as u32).wrapping_mul(8)
    }

    /// Bytes without the trailer.
    #[inline]
    const fn length(self) -> u32 {
        (self.field::<32>() as u32).wrapping_mul(8)
    }

    #[inline]
    pub(super) const fn flags(self) -> PacketFlags {
        PacketFlags::from_bits_retain(self.field::<48>())
    }

    /// Bytes between descriptor and payload.
    #[inline]
    pub(super) const fn external(self) -> u32 {
        self.data_offset().wrapping_sub(DESCRIPTOR)
    }

    /// Bytes of the payload, padding included.
    #[inline]
    pub(super) const fn payload(self) -> u32 {
        self.length().wrapping_sub(self.data_offset())
    }

    /// Bytes behind the descriptor: page list and payload.
    #[inline]
    pub(super) const fn body(self) -> u32 {
        self.length().wrapping_sub(DESCRIPTOR)
    }

    /// All bytes that the packet takes in the ring.
    #[inline]
    pub(super) const fn total(self) -> u32 {
        self.length().wrapping_add(TRAILER)
    }

    /// Whether the packet's type has a page list.
    #[inline]
    pub(super) const fn has_page_list(self) -> bool {
        matches!(self.packet_type(), PacketType::GPA_DIRECT | PacketType::TRANSFER_PAGES)
    }
}

/// A packet that has arrived: a private copy, checked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    descriptor: Descriptor,
    /// What stood behind the descriptor.
    body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A packet whose type has no page list.
    #[inline(always)]
    pub(super) const fn new(descriptor: Descriptor, body: &'a [u8]) -> Self {
        Self { descriptor, body }
    }

    /// A packet with a page list, which is checked.
    #[cold]
    #[inline(never)]
    pub(super) fn with_page_list(descriptor: Descriptor, body: &'a [u8]) -> Result<Self, Corruption> {
        let packet = Self { descriptor, body };
        External::parse(packet.packet_type(), packet.page_list())?;
        Ok(packet)
    }

    #[inline]
    fn page_list(&self) -> &'a [u8] {
        self.body.get(..self.descriptor.external() as usize).unwrap_or_default()
    }

    /// One of the four types that [`PacketType`] names.
    #[must_use]
    #[inline]
    pub const fn packet_type(&self) -> PacketType {
        self.descriptor.packet_type()
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
        self.descriptor.flags().contains(PacketFlags::COMPLETION_REQUESTED)
    }

    /// The payload with its padding: a multiple of 8 bytes. How many of them count, the payload itself must tell.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.body.get(self.descriptor.external() as usize..).unwrap_or_default()
    }

    /// The memory outside the ring that goes with the packet.
    #[must_use]
    pub fn external(&self) -> External<'a> {
        // Checked when the packet was taken: there is no error any more.
        External::parse(self.packet_type(), self.page_list()).unwrap_or(External::None)
    }
}
