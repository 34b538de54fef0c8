//! What a channel sends without waiting for it: packets of the driver's, and where they and their memory come from.
//! Requests that are waited for are in `request`.

use super::Channel;
use crate::kmcl::outgoing::IfFull;
use crate::kmcl::packet::Body;
use crate::kmcl::settings::MAX_RANGES;
use crate::kmcl::{Context, Error, OutgoingPacket};
use crate::memory::DmaBuffer;
use crate::protocol::packet::{PacketFlags, PacketType, TransferPageRange};
use crate::ring::{ExternalToSend, Header};

impl<C: Context> Channel<C> {
    /// Sends a packet that nobody has to answer, with everything in the ring. Waits in line if the ring is full.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.send(b"notice")?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing was sent: [`Error::PacketTooLarge`], [`Error::TooManyPackets`], [`Error::WrongState`] on a channel that is paused
    /// after its first start, [`Error::Corrupt`] if the peer has broken the ring, which ends the channel soon, [`Error::Gone`].
    pub fn send(&self, payload: &[u8]) -> Result<(), Error> {
        self.core().send_plain(payload, IfFull::Queue)
    }

    /// Sends a packet that names ranges, each with offset and length, of the buffer `set_id` that both ends know (transfer
    /// pages). Does not wait in line: the ring has to have room.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// // 10 bytes from the start of buffer 7, and 10 from its byte 90 on.
    /// both.server().send_transfer_pages(7, &[(0, 10), (90, 10)], b"received")?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing was sent: [`Error::RingFull`], [`Error::InvalidExternalData`] for more than 32 ranges, and as for
    /// [`send`](Self::send).
    pub fn send_transfer_pages(&self, set_id: u16, ranges: &[(u32, u32)], payload: &[u8]) -> Result<(), Error> {
        let core = self.core();
        core.may_send(payload.len())?;
        let mut list = [TransferPageRange {
            byte_count: 0.into(),
            byte_offset: 0.into(),
        }; MAX_RANGES];
        let Some(used) = list.get_mut(..ranges.len()) else {
            return Err(Error::InvalidExternalData {
                len: 0,
                ranges: ranges.len(),
            });
        };
        for (entry, (offset, len)) in used.iter_mut().zip(ranges) {
            entry.byte_offset = (*offset).into();
            entry.byte_count = (*len).into();
        }
        let external = ExternalToSend::TransferPages { set_id, ranges: used };
        let header = Header {
            packet_type: PacketType::TRANSFER_PAGES,
            flags: PacketFlags::empty(),
            transaction_id: 0,
        };
        let sent = core
            .outgoing()
            .try_send_raw(header, &[payload], external, &core.counters)?;
        if sent { Ok(()) } else { Err(Error::RingFull) }
    }

    /// Sends a completion that no incoming packet stands behind, if the ring has room: for a server that plays a broken one.
    #[cfg(feature = "host")]
    pub(crate) fn send_stray_completion(&self, transaction_id: u64, payload: &[u8]) -> Result<bool, Error> {
        let core = self.core();
        let header = Header::completion(transaction_id);
        core.outgoing
            .lock(core.platform)
            .try_send_raw(header, &[payload], ExternalToSend::None, &core.counters)
    }

    /// Sends any packet, whatever it says.
    #[cfg(test)]
    #[cfg(feature = "host")]
    pub(crate) fn send_raw_for_tests(&self, header: Header, pieces: &[&[u8]], external: ExternalToSend<'_>) -> bool {
        let core = self.core();
        core.outgoing
            .lock(core.platform)
            .try_send_raw(header, pieces, external, &core.counters)
            .unwrap()
    }

    /// Takes a packet object from the channel's pool (`VmbPacketAllocate`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let packet = channel.packet_allocate()?;
    /// packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION)?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TooManyPackets`] if all are in use.
    pub fn packet_allocate(&self) -> Result<OutgoingPacket<C>, Error> {
        let (body, is_kept) = self.core().take_packet()?;
        Ok(if is_kept {
            OutgoingPacket::new(body, self)
        } else {
            OutgoingPacket::counted(body, self)
        })
    }

    /// Returns how many bytes a packet object takes (`VmbChannelSizeofPacket`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// log::info!("{} bytes for each packet object", channel.sizeof_packet());
    /// # assert!(channel.sizeof_packet() > 1024);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn sizeof_packet(&self) -> usize {
        Body::<C>::size(&self.core().settings)
    }

    /// Makes a packet object that is not of the channel's pool (`VmbPacketInitialize`): its memory is the caller's, that is,
    /// it is allocated here and freed when the packet is dropped. Set a completion routine before sending, or it is freed then.
    /// As many of them can be on their way at a time as the channel has packets of its own.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// // For what must not fail because the pool is empty.
    /// let mut packet = channel.packet_initialize()?;
    /// packet.set_completion_routine(|_, packet, _| log::info!("{:02x?}", packet.completion()));
    /// packet.send(b"question", None, SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn packet_initialize(&self) -> Result<OutgoingPacket<C>, Error> {
        let body = Body::new(&self.core().settings, false)?;
        Ok(OutgoingPacket::new(body, self))
    }

    /// Takes a buffer of `len` bytes from those that were reserved (`VmbChannelAllocateBounceBuffer`), to copy through it what
    /// does not lie in a buffer of its own. It goes back when it, and all requests that lend it, are dropped. It holds what its
    /// last user left in it.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let channel = both.client()?.init_set_bounce_buffer_sizes(4, 4096).enable(Deadline::seconds(1))?;
    /// let buffer = channel.allocate_bounce_buffer(6)?;
    /// buffer.write_at(0, b"to lend".split_at(6).0).unwrap();
    /// channel.send_synchronous_request(b"write", Some(buffer.into()), Deadline::seconds(1), &mut [0; 8])?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TooManyPackets`] if all are in use; [`Error::InvalidExternalData`] if it is longer than they are.
    pub fn allocate_bounce_buffer(&self, len: usize) -> Result<DmaBuffer, Error> {
        let core = self.core();
        let invalid = Error::InvalidExternalData { len, ranges: 1 };
        if len > core.settings.bounce_buffer_size {
            return Err(invalid);
        }
        let buffers = core.bounce.lock(core.platform);
        let free = buffers
            .iter()
            .find(|buffer| buffer.is_sole_owner())
            .ok_or(Error::TooManyPackets)?;
        free.slice(0, len).map_err(|_| invalid)
    }
}
