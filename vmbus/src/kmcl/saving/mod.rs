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

mod chunk;
mod restore;
mod save;

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::Ordering;

pub use self::save::Save;
use super::endpoint::{Core, Phase};
use super::receive::Ready;
use super::{Channel, Context, DisabledChannel, Error, NtStatus, Side};
use crate::fallible::try_box;

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
    ///
    /// ```
    /// use vmbus::kmcl::{NtStatus, Saved};
    /// let saved = Saved::More { filled: 512, required: 64 };
    /// assert_eq!(saved.ntstatus(), NtStatus::BUFFER_OVERFLOW);
    /// ```
    #[must_use]
    pub const fn ntstatus(&self) -> NtStatus {
        match self {
            Self::All { .. } => NtStatus::SUCCESS,
            Self::More { .. } => NtStatus::BUFFER_OVERFLOW,
        }
    }

    /// Returns how many bytes of the buffer were written.
    ///
    /// ```
    /// # use vmbus::kmcl::Saved;
    /// assert_eq!(Saved::All { filled: 64 }.filled(), 64);
    /// ```
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
    ///
    /// ```
    /// use vmbus::kmcl::{NtStatus, Restored};
    /// assert_eq!(Restored::More.ntstatus(), NtStatus::MORE_PROCESSING_REQUIRED);
    /// ```
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
    /// [`set_completion_routine`](super::OutgoingPacket::set_completion_routine), and then
    /// [`restore`](super::OutgoingPacket::restore) with the channel's part. Without
    /// callbacks packets are restored without a routine.
    ///
    /// ```
    /// # use vmbus::kmcl::*;
    /// # fn example(server: DisabledChannel) -> DisabledChannel {
    /// /// What is known of a packet: where it came from.
    /// fn save(_: &Channel, packet: PacketInUse<'_>, buffer: &mut [u8]) -> Result<usize, Error> {
    ///     let state = packet.pointer.to_le_bytes();
    ///     let required = state.len();
    ///     let target = buffer.get_mut(..required).ok_or(Error::BufferTooSmall { required })?;
    ///     target.copy_from_slice(&state);
    ///     Ok(required)
    /// }
    ///
    /// fn restore(channel: &Channel, library: &[u8], state: &[u8]) -> Result<(), Error> {
    ///     let mut packet = channel.packet_allocate()?;
    ///     packet.set_completion_routine(|_, packet, status| log::info!("{}: {status:?}", packet.pointer()));
    ///     log::debug!("{state:?}");
    ///     Ok(packet.restore(library)?)
    /// }
    ///
    /// server.init_set_save_restore_packet_callbacks(save, restore)
    /// # }
    /// ```
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

    pub(super) fn is_paused_server(&self) -> Result<(), Error> {
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
    pub(super) fn cannot_save(&self) -> bool {
        let incoming = self.incoming();
        if incoming.ready.iter().any(|ready| matches!(ready, Ready::Completed(..))) {
            return true;
        }
        drop(incoming);
        let outgoing = self.outgoing();
        let lends = outgoing.table.find(|request| request.body.lent.is_some());
        outgoing.has_line() || outgoing.stock.has_placed() || lends.is_some()
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
