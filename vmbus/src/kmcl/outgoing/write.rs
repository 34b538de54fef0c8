//! How a packet is put into the ring, whatever it is.

use crate::kmcl::Context;
use crate::kmcl::counters::{LiveCounters, add_alone};
use crate::kmcl::external::Lent;
use crate::kmcl::packet::Body;
use crate::kmcl::slab::RequestId;
use crate::kmcl::transport::RingPages;
use crate::protocol::packet::{PacketFlags, PacketType};
use crate::ring::{Header, Producer, WriteError};

/// What a packet without page list is, in one register.
#[derive(Clone, Copy)]
pub(super) struct Kind(u32);

impl Kind {
    pub(super) const REQUEST: Self = Self::of(Header::in_band_with_completion(0));
    pub(super) const NOTICE: Self = Self::of(Header::in_band(0));
    pub(super) const COMPLETION: Self = Self::of(Header::completion(0));

    const fn of(header: Header) -> Self {
        Self(header.packet_type.0 as u32 | (header.flags.bits() as u32) << 16)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    pub(super) const fn header(self, transaction_id: u64) -> Header {
        Header {
            packet_type: PacketType(self.0 as u16),
            flags: PacketFlags::from_bits_retain((self.0 >> 16) as u16),
            transaction_id,
        }
    }
}

pub(super) const fn request_header<C: Context>(body: &Body<C>, id: RequestId) -> Header {
    Header {
        packet_type: body.packet_type(),
        flags: PacketFlags::COMPLETION_REQUESTED,
        transaction_id: id.0,
    }
}

pub(super) fn count_sent(counters: &LiveCounters, len: usize) {
    add_alone(&counters.packets_sent, 1);
    add_alone(&counters.bytes_sent, len as u64);
}

/// Writes one packet to the ring, not yet visible.
#[inline(always)]
pub(super) fn write(
    ring: &mut Producer<RingPages>,
    header: Header,
    payload: &[u8],
    lent: Option<&Lent>,
    counters: &LiveCounters,
) -> Result<(), WriteError> {
    match lent {
        None => ring.send(header, payload)?,
        Some(lent) => write_lending(ring, header, payload, lent)?,
    }
    count_sent(counters, payload.len());
    Ok(())
}

#[inline(never)]
pub(super) fn write_lending(
    ring: &mut Producer<RingPages>,
    header: Header,
    payload: &[u8],
    lent: &Lent,
) -> Result<(), WriteError> {
    debug_assert_eq!(header.packet_type, PacketType::GPA_DIRECT);
    let mut reservation = ring.reserve(header, lent.list_len(), payload.len())?;
    lent.write(&mut reservation)?;
    reservation.write(payload)?;
    reservation.finish();
    Ok(())
}
