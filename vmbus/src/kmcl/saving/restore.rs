//! Restoring: [`Channel::restore_from_buffer`] and [`OutgoingPacket::restore`].

use super::chunk::{BEGINNING, END, LIBRARY_PART, MAGIC, PACKET, REQUEST, Reader};
use super::{Channel, Context, Core, Error, Progress, Ready, Restored};
use crate::kmcl::counters::add;
use crate::kmcl::outgoing::InFlight;
use crate::kmcl::packet::Waiter;
use crate::kmcl::slab::RequestId;
use crate::kmcl::{OutgoingPacket, Refused};
use crate::protocol::packet::PacketType;

impl<C: Context> Channel<C> {
    /// Restores what an earlier server has saved, or a part of it that consists of whole chunks
    /// (`VmbChannelRestoreFromBuffer`): the buffers of [`Save::save_continue`](super::Save::save_continue) one after the other, or all in one.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*};
    /// # fn example(server: &Channel, saved: &[u8]) -> Result<(), Error> {
    /// // Enabled with the class and instance of the server that was saved.
    /// if server.restore_from_buffer(saved)? == Restored::All {
    ///     server.start(Deadline::seconds(1))?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if this is not a server that has taken over a channel, or all is restored; [`Error::Corrupt`] for
    /// what cannot be, or is another channel's; [`Error::TooManyPackets`] if this server has fewer packets than the one that
    /// saved; [`Error::PacketTooLarge`]; what the restore callback answers; [`Error::WouldDeadlock`] from the channel's own
    /// callback; [`Error::Gone`]. What was restored before the error stays, and the channel does not start.
    pub fn restore_from_buffer(&self, buffer: &[u8]) -> Result<Restored, Error> {
        let core = self.core();
        core.may_wait_for_callbacks()?;
        core.is_paused_server()?;
        let mut reader = Reader(buffer);
        while let Some((kind, mut body)) = reader.chunk()? {
            match (core.progress(), kind) {
                (Progress::Inherited, BEGINNING) => {
                    if body.u64()? != MAGIC || body.array()? != self.interface_instance().to_wire() {
                        return Err(Error::Corrupt);
                    }
                    core.set_progress(Progress::Restoring);
                }
                (Progress::Restoring, REQUEST) => {
                    let driver_len = body.u32()? as usize;
                    let _ = body.u32()?;
                    let library = body.bytes(LIBRARY_PART)?;
                    let driver = body.bytes(driver_len)?;
                    match &core.callbacks.restore_packet {
                        Some(callback) => callback(self, library, driver)?,
                        None => self.packet_allocate()?.restore(library)?,
                    }
                }
                (Progress::Restoring, PACKET) => core.restore_incoming(&mut body)?,
                (Progress::Restoring, END) => {
                    core.set_progress(Progress::None);
                    return if reader.0.is_empty() {
                        Ok(Restored::All)
                    } else {
                        Err(Error::Corrupt)
                    };
                }
                (Progress::Inherited | Progress::Restoring, _) => return Err(Error::Corrupt),
                _ => return Err(Error::WrongState),
            }
        }
        match core.progress() {
            Progress::Inherited | Progress::Restoring => Ok(Restored::More),
            _ => Err(Error::WrongState),
        }
    }
}

impl<C: Context> Core<C> {
    /// Puts a packet in line for delivery that the earlier server had taken from the ring.
    fn restore_incoming(&self, body: &mut Reader<'_>) -> Result<(), Error> {
        let id = body.u64()?;
        let packet_type = PacketType(u16::from_le_bytes(body.array()?));
        let wants_completion = u16::from_le_bytes(body.array()?) != 0;
        let list_len = body.u32()? as usize;
        let len = body.u32()? as usize;
        let _ = body.u32()?;
        let content = body.bytes(len)?;
        if list_len > len || !list_len.is_multiple_of(8) {
            return Err(Error::Corrupt);
        }
        let mut incoming = self.incoming();
        self.refill(&mut incoming);
        let mut slot = incoming.take_slot().ok_or(Error::TooManyPackets)?;
        if !slot.become_saved(content, list_len) {
            incoming.put_back(slot);
            let limit = self.settings.maximum_packet_size;
            return Err(Error::PacketTooLarge { len, limit });
        }
        slot.transaction_id = id;
        slot.packet_type = packet_type;
        slot.wants_completion = wants_completion;
        incoming.held = incoming.held.wrapping_add(1);
        incoming.make_ready(Ready::Packet(slot));
        Ok(())
    }
}

impl<C: Context> OutgoingPacket<C> {
    /// Becomes the packet that an earlier server had sent (`VmbPacketRestore`), from `library`, the channel's part that the
    /// restore callback got: from now on it waits for its completion. Set the completion routine before.
    ///
    /// ```
    /// # use vmbus::kmcl::*;
    /// fn restore(channel: &Channel, library: &[u8], _: &[u8]) -> Result<(), Error> {
    ///     Ok(channel.packet_allocate()?.restore(library)?)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The packet comes back: [`Error::WrongState`] if the channel is not being restored; [`Error::Corrupt`] if `library` is not
    /// such a part, or is restored already; [`Error::TooManyPackets`] if this server has fewer packets than the one that saved.
    pub fn restore(mut self, library: &[u8]) -> Result<(), Refused<Self>> {
        match self.try_restore(library) {
            Ok(()) => Ok(()),
            Err(error) => Err(Refused { error, given: self }),
        }
    }

    fn try_restore(&mut self, library: &[u8]) -> Result<(), Error> {
        let channel = self.channel().uncounted();
        let core = channel.core();
        if core.progress() != Progress::Restoring {
            return Err(Error::WrongState);
        }
        let mut reader = Reader(library);
        let id = RequestId(reader.u64()?);
        let pointer = usize::try_from(reader.u64()?).map_err(|_| Error::Corrupt)?;
        if !reader.0.is_empty() {
            return Err(Error::Corrupt);
        }
        if id.index() >= core.settings.maximum_packet_count as usize {
            return Err(Error::TooManyPackets);
        }
        let mut body = self.body.take().ok_or(Error::WrongState)?;
        body.pointer = pointer;
        body.in_line = false;
        let request = InFlight {
            body,
            waiter: Waiter::Routine,
        };
        let entered = core.outgoing().table.insert_at(id, request);
        match entered {
            Ok(()) => {
                add(&core.counters.outgoing_outstanding, 1);
                Ok(())
            }
            Err(request) => {
                self.body = Some(request.body);
                Err(Error::Corrupt)
            }
        }
    }
}
