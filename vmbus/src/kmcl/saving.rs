//! Saving a server's end of a channel and restoring it in another server, while the client's end lives on: [`Save`].
//!
//! KMCL saves a server's channels with the virtual machine that their clients run in. Here the client is part of the same
//! kernel, and what is saved goes to the next server of the same offer: one that is restarted or replaced, say. The first one
//! pauses, saves ([`Channel::save_begin`]) and leaves ([`Channel::hand_over`]); the next one, enabled with the same class and
//! instance, finds the channel open and paused, restores ([`Channel::restore_from_buffer`]) and starts. The client notices
//! nothing but the pause.
//!
//! What is saved: the packets of the server that wait for their completions, each with the driver's part, and the packets of
//! the client that have left the ring and were not delivered. It comes in chunks, each with its length, so that buffers of any
//! size do that take the longest one. A saved state is an allegation like all that comes from outside: what cannot be is
//! refused with [`Error::Corrupt`].

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::Ordering;

use super::counters::add;
use super::endpoint::{Core, Phase};
use super::outgoing::InFlight;
use super::packet::Waiter;
use super::receive::Ready;
use super::slab::RequestId;
use super::{Channel, Context, DisabledChannel, Error, Gone, Level, NtStatus, OutgoingPacket, Refused, Side};
use crate::Deadline;
use crate::fallible::{try_box, try_vec_of};
use crate::protocol::packet::PacketType;

/// How far saving or restoring has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Progress {
    /// Neither.
    None = 0,
    /// There is a [`Save`].
    Saving = 1,
    /// Everything is saved.
    Saved = 2,
    /// The channel is an earlier server's; nothing is restored yet.
    Inherited = 3,
    /// The beginning is restored.
    Restoring = 4,
}

/// What a call of [`Save::save_continue`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The rest (`STATUS_SUCCESS`).
    All {
        /// Bytes of the buffer that were written.
        filled: usize,
    },
    /// Something, and more remains (`STATUS_BUFFER_OVERFLOW`).
    More {
        /// Bytes of the buffer that were written.
        filled: usize,
        /// What the next call needs to make progress, in bytes.
        required: usize,
    },
}

impl Saved {
    /// Returns the status that KMCL documents for this.
    #[must_use]
    pub const fn ntstatus(&self) -> NtStatus {
        match self {
            Self::All { .. } => NtStatus::SUCCESS,
            Self::More { .. } => NtStatus::BUFFER_OVERFLOW,
        }
    }

    /// Returns how many bytes of the buffer were written.
    #[must_use]
    pub const fn filled(&self) -> usize {
        match self {
            Self::All { filled } | Self::More { filled, .. } => *filled,
        }
    }
}

/// What a call of [`Channel::restore_from_buffer`] restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the channel starts only when all is restored"]
pub enum Restored {
    /// All there is (`STATUS_SUCCESS`).
    All,
    /// This part; there are more chunks (`STATUS_MORE_PROCESSING_REQUIRED`).
    More,
}

impl Restored {
    /// Returns the status that KMCL documents for this.
    #[must_use]
    pub const fn ntstatus(&self) -> NtStatus {
        match self {
            Self::All => NtStatus::SUCCESS,
            Self::More => NtStatus::MORE_PROCESSING_REQUIRED,
        }
    }
}

/// A packet that waits for its completion, as the save callback sees it.
#[derive(Clone, Copy, Debug)]
pub struct PacketInUse<'a> {
    /// The number that the driver stored with it.
    pub pointer: usize,
    /// Its bytes for the driver's use.
    pub inline_context: &'a [u8],
}

pub(crate) type SavePacket<C> = dyn Fn(&Channel<C>, PacketInUse<'_>, &mut [u8]) -> Result<usize, Error> + Send + Sync;
pub(crate) type RestorePacket<C> = dyn Fn(&Channel<C>, &[u8], &[u8]) -> Result<(), Error> + Send + Sync;

impl<C: Context> DisabledChannel<C> {
    /// Sets the callbacks for each packet that is saved and restored (`VmbServerChannelInitSetSaveRestorePacketCallbacks`); as
    /// closures they carry what the `Ex` form adds.
    ///
    /// `save` writes the driver's part of a packet and returns its length. It is called with an empty buffer first; a driver
    /// that has something to save answers [`Error::BufferTooSmall`] with what it takes, and is called again with that much.
    /// `restore` gets the channel's own part and the driver's: it takes a packet ([`Channel::packet_allocate`]), calls
    /// [`OutgoingPacket::set_completion_routine`], and then [`OutgoingPacket::restore`] with the channel's part. Without
    /// callbacks packets are restored without a routine.
    #[must_use]
    pub fn init_set_save_restore_packet_callbacks(
        mut self,
        save: impl Fn(&Channel<C>, PacketInUse<'_>, &mut [u8]) -> Result<usize, Error> + Send + Sync + 'static,
        restore: impl Fn(&Channel<C>, &[u8], &[u8]) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        let save = try_box(save).map(|boxed| -> Box<SavePacket<C>> { boxed });
        self.callbacks.save_packet = self.keep(save);
        let restore = try_box(restore).map(|boxed| -> Box<RestorePacket<C>> { boxed });
        self.callbacks.restore_packet = self.keep(restore);
        self
    }
}

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

/// Marks the beginning of a saved state, and its version.
const MAGIC: u64 = u64::from_le_bytes(*b"kmclsav1");
/// Length and kind in front of each chunk.
const HEAD: usize = 8;
const BEGINNING: u32 = 1;
const REQUEST: u32 = 2;
const PACKET: u32 = 3;
const END: u32 = 4;
/// The channel's part of a packet: id and the driver's number.
const LIBRARY_PART: usize = 16;

/// What became of a chunk.
enum Chunk {
    Written(usize, Next),
    NoRoom(usize),
}

/// Writes one chunk.
struct Writer<'b> {
    rest: &'b mut [u8],
    len: usize,
}

impl<'b> Writer<'b> {
    /// Begins a chunk with a body of `len` bytes, padded; or tells what it takes.
    fn new(buffer: &'b mut [u8], kind: u32, len: usize) -> Result<Self, usize> {
        let len = (HEAD + len).next_multiple_of(8);
        let field = u32::try_from(len).map_err(|_| usize::MAX)?;
        let rest = buffer.get_mut(..len).ok_or(len)?;
        rest.fill(0);
        let mut writer = Self { rest, len };
        writer.put(&field.to_le_bytes());
        writer.put(&kind.to_le_bytes());
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) {
        // Each chunk has the length of what is put into it.
        if let Some((target, rest)) = core::mem::take(&mut self.rest).split_at_mut_checked(bytes.len()) {
            target.copy_from_slice(bytes);
            self.rest = rest;
        }
    }
}

/// Reads what a [`Writer`] has written, and believes none of it.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn bytes(&mut self, len: usize) -> Result<&'b [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Error::Corrupt)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.bytes(N)?.try_into().map_err(|_| Error::Corrupt)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes the next chunk apart: its kind and its body.
    fn chunk(&mut self) -> Result<Option<(u32, Self)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let len = self.u32()? as usize;
        let kind = self.u32()?;
        let body = len.checked_sub(HEAD).ok_or(Error::Corrupt)?;
        Ok(Some((kind, Self(self.bytes(body)?))))
    }
}

impl<C: Context> Core<C> {
    pub(crate) fn progress(&self) -> Progress {
        match self.saving.load(Ordering::Acquire) {
            1 => Progress::Saving,
            2 => Progress::Saved,
            3 => Progress::Inherited,
            4 => Progress::Restoring,
            _ => Progress::None,
        }
    }

    pub(crate) fn set_progress(&self, progress: Progress) {
        self.saving.store(progress as u8, Ordering::Release);
    }

    /// Refuses to start while the channel is saved, or is not wholly restored. A saved one goes on as if it had not been.
    pub(crate) fn may_start(&self) -> Result<(), Error> {
        match self.progress() {
            Progress::None => Ok(()),
            Progress::Saved => {
                self.set_progress(Progress::None);
                Ok(())
            }
            _ => Err(Error::WrongState),
        }
    }

    fn is_paused_server(&self) -> Result<(), Error> {
        if let Some(gone) = self.gone() {
            return Err(gone.into());
        }
        if self.side == Side::Server && self.phase() == Phase::Paused {
            Ok(())
        } else {
            Err(Error::WrongState)
        }
    }

    /// Returns true if something is neither with the client nor in a form that can be saved: it waits in line for room in the
    /// ring, or has a routine to be called, or lends memory.
    fn cannot_save(&self) -> bool {
        let incoming = self.incoming.lock(self.platform);
        if incoming.ready.iter().any(|ready| matches!(ready, Ready::Completed(..))) {
            return true;
        }
        drop(incoming);
        let outgoing = self.outgoing.lock(self.platform);
        let lends = outgoing.table.find(|request| request.body.lent.is_some());
        outgoing.has_line() || outgoing.has_placed() || lends.is_some()
    }
}

impl<C: Context> Channel<C> {
    /// Begins to save a server that is paused (`VmbChannelSaveBegin`). Its end is not read until [`Save`] is dropped or, once all
    /// is saved, until the channel starts again or is [handed over](Self::hand_over).
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
        core.incoming.lock(core.platform).sealed = true;
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

    /// Restores what an earlier server has saved, or a part of it that consists of whole chunks
    /// (`VmbChannelRestoreFromBuffer`): the buffers of [`Save::save_continue`] one after the other, or all in one.
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
        let mut incoming = self.incoming.lock(self.platform);
        let mut slot = incoming.take_slot().ok_or(Error::TooManyPackets)?;
        if !slot.become_saved(content, list_len) {
            incoming.put_back(slot);
            let limit = self.settings.maximum_packet_size;
            return Err(Error::PacketTooLarge { len, limit });
        }
        slot.transaction_id = id;
        slot.packet_type = packet_type;
        slot.wants_completion = wants_completion;
        incoming.held += 1;
        incoming.make_ready(Ready::Packet(slot));
        Ok(())
    }
}

impl<C: Context> OutgoingPacket<C> {
    /// Becomes the packet that an earlier server had sent (`VmbPacketRestore`), from `library`, the channel's part that the
    /// restore callback got: from now on it waits for its completion. Set the completion routine before.
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
        let entered = core.outgoing.lock(core.platform).table.insert_at(id, request);
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

impl<C: Context> Save<C> {
    /// Writes as many chunks as fit into `buffer`, from where the last call stopped (`VmbChannelSaveContinue`).
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
                Chunk::Written(len, then) => (filled, next) = (filled + len, then),
                Chunk::NoRoom(required) if filled == 0 => return Err(Error::BufferTooSmall { required }),
                Chunk::NoRoom(required) => break Saved::More { filled, required },
            }
        };
        self.next = next;
        Ok(saved)
    }

    /// Ends the saving (`VmbChannelSaveEnd`), as dropping does.
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
        let mut inline = try_vec_of(core.settings.inline_packet_context_size, |_| 0)?;
        let (id, pointer, behind) = {
            let mut outgoing = core.outgoing.lock(core.platform);
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
        let mut driver = try_vec_of(driver_len, |_| 0)?;
        let driver_len = match save {
            Some(save) if driver_len > 0 => save(&self.channel, in_use, &mut driver)?,
            _ => 0,
        };
        let driver = driver.get(..driver_len).ok_or(Error::Corrupt)?;
        let field = u32::try_from(driver_len).map_err(|_| Error::Corrupt)?;
        let mut writer = match Writer::new(buffer, REQUEST, 8 + LIBRARY_PART + driver_len) {
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
        let incoming = core.incoming.lock(core.platform);
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
        let mut writer = match Writer::new(buffer, PACKET, 24 + content.len()) {
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
        Ok(Chunk::Written(writer.len, Next::Packet(index + 1)))
    }
}

impl<C: Context> Drop for Save<C> {
    fn drop(&mut self) {
        let core = self.channel.core();
        if core.progress() == Progress::Saving {
            core.set_progress(Progress::None);
            if core.gone() != Some(Gone::Disabled) {
                core.incoming.lock(core.platform).sealed = false;
            }
            core.schedule();
        }
    }
}

impl fmt::Display for Saved {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All { filled } => write!(formatter, "all, {filled} bytes"),
            Self::More { filled, required } => write!(formatter, "{filled} bytes, and {required} or more remain"),
        }
    }
}
