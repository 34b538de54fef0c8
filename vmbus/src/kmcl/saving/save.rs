//! Saving: [`Channel::save_begin`], [`Save`] and [`Channel::hand_over`].

use core::sync::atomic::Ordering;

use super::chunk::{BEGINNING, END, LIBRARY_PART, MAGIC, PACKET, REQUEST, Writer};
use super::{Channel, Context, Core, DisabledChannel, Error, PacketInUse, Progress, Ready, Saved};
use crate::Deadline;
use crate::fallible::try_vec_zeroed;
use crate::kmcl::{Level, Refused};

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Beginning,
    /// The packets of ours from this place in the table on.
    Request(usize),
    /// The client's packets from this one on.
    Packet(usize),
    End,
    Nothing,
}

/// A channel that is being saved (KMCL: between `VmbChannelSaveBegin` and `VmbChannelSaveEnd`, which is its drop).
///
/// ```
/// use vmbus::Deadline;
/// use vmbus::kmcl::{Channel, DisabledChannel, Error, Restored, Saved};
/// # fn example(old: Channel, new: DisabledChannel) -> Result<Channel, Error> {
/// let soon = Deadline::seconds(1);
/// old.pause(soon)?;
/// let mut state = [0; 4096];
/// let saved = old.save_begin()?.save_continue(&mut state)?;
/// assert!(matches!(saved, Saved::All { .. }), "otherwise, more buffers");
/// old.hand_over(soon)?;
/// let new = new.enable(soon)?;
/// if new.restore_from_buffer(&state[..saved.filled()])? == Restored::All {
///     new.start(soon)?;
/// }
/// # Ok(new)
/// # }
/// ```
#[derive(Debug)]
pub struct Save<C: Context> {
    channel: Channel<C>,
    next: Next,
}

/// What became of a chunk.
enum Chunk {
    Written(usize, Next),
    NoRoom(usize),
}

impl<C: Context> Channel<C> {
    /// Begins to save a server that is paused (`VmbChannelSaveBegin`). Its end is not read until [`Save`] is dropped or, once all
    /// is saved, until the channel starts again or is [handed over](Self::hand_over).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let client = both.open()?;
    /// let server = both.server();
    /// server.pause(Deadline::seconds(1))?;
    /// let mut state = [0; 512];
    /// let saved = server.save_begin()?.save_continue(&mut state)?;
    /// assert!(matches!(saved, Saved::All { .. }));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] on a client, on a channel that is not paused or is being saved already, and while something
    /// waits in line for room in the ring, which the client has to make first; [`Error::WouldDeadlock`] from the channel's own
    /// callback; [`Error::Gone`].
    pub fn save_begin(&self) -> Result<Save<C>, Error> {
        let core = self.core();
        core.may_wait_for_callbacks()?;
        core.is_paused_server()?;
        let begun = core.saving.compare_exchange(
            Progress::None as u8,
            Progress::Saving as u8,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        begun.map_err(|_| Error::WrongState)?;
        // From here on its drop undoes it.
        let save = Save {
            channel: self.uncounted(),
            next: Next::Beginning,
        };
        core.incoming().sealed = true;
        // What has come before that is delivered: routines, that is, because packets are not.
        Core::process(self, Level::Passive);
        if core.cannot_save() {
            return Err(Error::WrongState);
        }
        Ok(save)
    }

    /// Leaves the open channel to the next server that is enabled with the same class and instance, once it is saved. The
    /// client is not told; what it sends waits for that server. The closed callback is not called, because the channel is not.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*};
    /// # fn example(server: Channel) -> Result<(), Error> {
    /// // Saved before. The next server of the same class and instance finds the channel open.
    /// let disabled = server.hand_over(Deadline::seconds(1))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The handle comes back: [`Error::WrongState`] if not all was [saved](Save::save_continue); [`Error::WouldDeadlock`] from the
    /// channel's own callback; [`Error::TimedOut`] if another callback did not end in time; [`Error::Gone`].
    pub fn hand_over(self, deadline: Deadline) -> Result<DisabledChannel<C>, Refused<Self>> {
        match self.try_hand_over(deadline) {
            Ok(disabled) => Ok(disabled),
            Err(error) => Err(Refused { error, given: self }),
        }
    }

    fn try_hand_over(&self, deadline: Deadline) -> Result<DisabledChannel<C>, Error> {
        let core = self.core();
        core.may_wait_for_callbacks()?;
        let entered = core.enter_by(core.until(deadline))?;
        core.is_paused_server()?;
        if core.progress() != Progress::Saved {
            return Err(Error::WrongState);
        }
        let disabled = DisabledChannel::again(core)?;
        core.leave();
        drop(entered);
        Ok(disabled)
    }
}

impl<C: Context> Save<C> {
    /// Writes as many chunks as fit into `buffer`, from where the last call stopped (`VmbChannelSaveContinue`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let client = both.open()?;
    /// # let server = both.server();
    /// # server.pause(Deadline::seconds(1))?;
    /// let mut save = server.save_begin()?;
    /// let mut state = Vec::new();
    /// let mut buffer = vec![0; 16];
    /// loop {
    ///     match save.save_continue(&mut buffer) {
    ///         Ok(saved) => {
    ///             state.extend_from_slice(&buffer[..saved.filled()]);
    ///             if let Saved::All { .. } = saved {
    ///                 break;
    ///             }
    ///         }
    ///         Err(Error::BufferTooSmall { required }) => buffer.resize(required, 0),
    ///         Err(error) => return Err(error),
    ///     }
    /// }
    /// save.save_end();
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::BufferTooSmall`] with what is needed if not even the next chunk fits; what the save callback answers;
    /// [`Error::WouldDeadlock`] from the channel's own callback; [`Error::OutOfMemory`]; [`Error::Gone`]. The next call goes on
    /// where this one began.
    pub fn save_continue(&mut self, buffer: &mut [u8]) -> Result<Saved, Error> {
        let core = self.channel.core();
        core.may_wait_for_callbacks()?;
        core.is_paused_server()?;
        if !matches!(core.progress(), Progress::Saving | Progress::Saved) {
            return Err(Error::WrongState);
        }
        let (mut next, mut filled) = (self.next, 0);
        let saved = loop {
            if matches!(next, Next::Nothing) {
                core.set_progress(Progress::Saved);
                break Saved::All { filled };
            }
            match self.chunk(next, buffer.get_mut(filled..).unwrap_or_default())? {
                Chunk::Written(len, then) => (filled, next) = (filled.saturating_add(len), then),
                Chunk::NoRoom(required) if filled == 0 => return Err(Error::BufferTooSmall { required }),
                Chunk::NoRoom(required) => break Saved::More { filled, required },
            }
        };
        self.next = next;
        Ok(saved)
    }

    /// Ends the saving (`VmbChannelSaveEnd`), as dropping does.
    ///
    /// ```
    /// # use vmbus::kmcl::*;
    /// # fn example(server: &Channel) -> Result<(), Error> {
    /// let save = server.save_begin()?;
    /// // Another time.
    /// save.save_end();
    /// # Ok(())
    /// # }
    /// ```
    pub fn save_end(self) {}

    /// Writes the next chunk.
    fn chunk(&self, next: Next, buffer: &mut [u8]) -> Result<Chunk, Error> {
        match next {
            Next::Beginning => {
                let mut writer = match Writer::new(buffer, BEGINNING, 8 + 16) {
                    Ok(writer) => writer,
                    Err(required) => return Ok(Chunk::NoRoom(required)),
                };
                writer.put(&MAGIC.to_le_bytes());
                writer.put(&self.channel.interface_instance().to_wire());
                Ok(Chunk::Written(writer.len, Next::Request(0)))
            }
            Next::Request(index) => self.request(index, buffer),
            Next::Packet(index) => self.packet(index, buffer),
            Next::End | Next::Nothing => Ok(match Writer::new(buffer, END, 0) {
                Ok(writer) => Chunk::Written(writer.len, Next::Nothing),
                Err(required) => Chunk::NoRoom(required),
            }),
        }
    }

    /// Writes a packet of ours that waits for its completion.
    fn request(&self, index: usize, buffer: &mut [u8]) -> Result<Chunk, Error> {
        let core = self.channel.core();
        let mut inline = try_vec_zeroed(core.settings.inline_packet_context_size)?;
        let (id, pointer, behind) = {
            let mut outgoing = core.outgoing();
            let Some((id, behind)) = outgoing.table.next_used(index) else {
                drop(outgoing);
                return self.packet(0, buffer);
            };
            let Some(request) = outgoing.table.get_mut(id) else {
                return Err(Error::WrongState);
            };
            inline.copy_from_slice(&request.body.inline);
            (id, request.body.pointer, behind)
        };
        let in_use = PacketInUse {
            pointer,
            inline_context: &inline,
        };
        let save = core.callbacks.save_packet.as_deref();
        let driver_len = match save.map(|save| save(&self.channel, in_use, &mut [])) {
            None | Some(Ok(_)) => 0,
            Some(Err(Error::BufferTooSmall { required })) => required,
            Some(Err(error)) => return Err(error),
        };
        let mut driver = try_vec_zeroed(driver_len)?;
        let driver_len = match save {
            Some(save) if driver_len > 0 => save(&self.channel, in_use, &mut driver)?,
            _ => 0,
        };
        let driver = driver.get(..driver_len).ok_or(Error::Corrupt)?;
        let field = u32::try_from(driver_len).map_err(|_| Error::Corrupt)?;
        let mut writer = match Writer::new(buffer, REQUEST, driver_len.saturating_add(8 + LIBRARY_PART)) {
            Ok(writer) => writer,
            Err(required) => return Ok(Chunk::NoRoom(required)),
        };
        writer.put(&field.to_le_bytes());
        writer.put(&[0; 4]);
        writer.put(&id.0.to_le_bytes());
        writer.put(&(pointer as u64).to_le_bytes());
        writer.put(driver);
        Ok(Chunk::Written(writer.len, Next::Request(behind)))
    }

    /// Writes a packet of the client's that was taken from the ring and not delivered.
    fn packet(&self, index: usize, buffer: &mut [u8]) -> Result<Chunk, Error> {
        let core = self.channel.core();
        let incoming = core.incoming();
        let Some(Ready::Packet(slot)) = incoming.ready.get(index) else {
            drop(incoming);
            return self.chunk(Next::End, buffer);
        };
        let (content, list_len) = slot.content();
        let too_long = |_| Error::Corrupt;
        let (list_field, len_field) = (
            u32::try_from(list_len).map_err(too_long)?,
            u32::try_from(content.len()).map_err(too_long)?,
        );
        let mut writer = match Writer::new(buffer, PACKET, content.len().saturating_add(24)) {
            Ok(writer) => writer,
            Err(required) => return Ok(Chunk::NoRoom(required)),
        };
        writer.put(&slot.transaction_id.to_le_bytes());
        writer.put(&slot.packet_type.0.to_le_bytes());
        writer.put(&u16::from(slot.wants_completion).to_le_bytes());
        writer.put(&list_field.to_le_bytes());
        writer.put(&len_field.to_le_bytes());
        writer.put(&[0; 4]);
        writer.put(content);
        Ok(Chunk::Written(writer.len, Next::Packet(index.saturating_add(1))))
    }
}

impl<C: Context> Drop for Save<C> {
    fn drop(&mut self) {
        let core = self.channel.core();
        if core.progress() == Progress::Saving {
            core.set_progress(Progress::None);
            core.incoming().sealed = false;
            core.schedule();
        }
    }
}
