//! Memory that a channel's two ends share for longer than one packet: [`Gpadl`] on the client's side, [`MappedGpadl`] on the
//! server's.

use core::fmt;

use super::transport::{GpadlAccess, Transport};
use super::{Channel, Context, Error, Gone, Refused};
use crate::Deadline;
use crate::fallible::Shared;
use crate::memory::{DmaBuffer, Mdl};
use crate::protocol::GpadlId;

use alloc::boxed::Box;

/// Memory that a client shares with its server (KMCL: a GPADL handle), which the driver names to the server by
/// [`handle`](Self::handle) in a packet of its own.
///
/// It holds the memory. When dropped instead of [deleted](Self::delete), the memory stays shared until the channel ends.
pub struct Gpadl<C: Context> {
    id: GpadlId,
    mdl: Mdl,
    channel: Channel<C>,
}

impl<C: Context> Gpadl<C> {
    /// Returns the number by which the server maps the memory.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let memory = both.memory(&[7; 4096])?;
    /// let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// // The driver tells the server itself.
    /// channel.send(&gpadl.handle().to_le_bytes())?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn handle(&self) -> u32 {
        self.id.0
    }

    /// Returns the memory.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(&[7; 4096])?;
    /// let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// let mut first = [0; 4];
    /// gpadl.mdl().read_at(0, &mut first).unwrap();
    /// assert_eq!(first, [7; 4]);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn mdl(&self) -> &Mdl {
        &self.mdl
    }

    /// Withdraws the memory (`VmbChannelDeleteGpadl`) and returns it; waits while the server has it mapped.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(&[7; 4096])?;
    /// # let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// match gpadl.delete(Deadline::seconds(1)) {
    ///     Ok(memory) => assert_eq!(memory.len(), 4096),
    ///     // The server has it mapped still.
    ///     Err(refused) => log::warn!("{}", refused.error),
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The memory stays shared: [`Error::TimedOut`] if the server kept it mapped; [`Error::WouldDeadlock`] from the channel's
    /// own callback.
    pub fn delete(self, deadline: Deadline) -> Result<Mdl, Refused<Self>> {
        let core = self.channel.core();
        if core.may_wait_for_callbacks().is_err() {
            return Err(Refused {
                error: Error::WouldDeadlock,
                given: self,
            });
        }
        let Ok(transport) = self.channel.transport() else {
            // The channel has ended, and all that it shared with it.
            return Ok(self.mdl);
        };
        match transport.delete_gpadl(self.id, deadline) {
            Ok(()) | Err(Error::Gone(_) | Error::UnknownGpadl) => Ok(self.mdl),
            Err(error) => Err(Refused { error, given: self }),
        }
    }
}

impl<C: Context> fmt::Debug for Gpadl<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Gpadl")
            .field("id", &self.id)
            .field("mdl", &self.mdl)
            .finish_non_exhaustive()
    }
}

/// A client's memory, mapped by the server (`VmbChannelMapGpadl`); unmapped when dropped (`VmbChannelUnmapGpadl`).
pub struct MappedGpadl {
    id: GpadlId,
    mdl: Mdl,
    access: GpadlAccess,
    transport: Shared<Box<dyn Transport>>,
}

impl MappedGpadl {
    /// Returns the length in bytes.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(&[7; 100])?;
    /// # let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// let mapped = both.server().map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly)?;
    /// assert_eq!(mapped.len(), 100);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn len(&self) -> usize {
        self.mdl.len()
    }

    /// Returns true if there are no bytes.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(&[7; 100])?;
    /// # let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// # let mapped = both.server().map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly)?;
    /// assert!(!mapped.is_empty());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.mdl.is_empty()
    }

    /// Copies bytes out; each is read once.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(&[7; 100])?;
    /// # let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// # let mapped = both.server().map_gpadl(gpadl.handle(), GpadlAccess::ReadOnly)?;
    /// let mut bytes = [0; 4];
    /// mapped.read_at(96, &mut bytes)?;
    /// assert_eq!(bytes, [7; 4]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`].
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), Error> {
        self.mdl.read_at(offset, target).map_err(|_| Error::OutOfRange)
    }

    /// Copies bytes in.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(&[7; 100])?;
    /// # let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// # let mapped = both.server().map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite)?;
    /// mapped.write_at(96, b"done")?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`] if it was mapped only to read; [`Error::OutOfRange`].
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), Error> {
        if self.access == GpadlAccess::ReadOnly {
            return Err(Error::ReadOnly);
        }
        self.mdl.write_at(offset, source).map_err(|_| Error::OutOfRange)
    }
}

impl Drop for MappedGpadl {
    fn drop(&mut self) {
        // The client may have gone, and its memory with it.
        let _ = self.transport.unmap_gpadl(self.id);
    }
}

impl fmt::Debug for MappedGpadl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MappedGpadl")
            .field("id", &self.id)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<C: Context> Channel<C> {
    fn transport(&self) -> Result<Shared<Box<dyn Transport>>, Error> {
        let core = self.core();
        if let Some(gone) = core.gone() {
            return Err(gone.into());
        }
        core.outgoing
            .lock(core.platform)
            .transport
            .clone()
            .ok_or(Error::Gone(Gone::Closed))
    }

    /// Shares `len` bytes of `mdl` from `offset` on with the server (`VmbChannelCreateGpadlFromMdl`); a `len` of 0 means to the
    /// end of the chain. When this returns, the server can map the memory at once; the driver tells it the handle.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let memory = both.memory(&[7; 8192])?;
    /// // From byte 100 of it to the end.
    /// let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadOnly, &memory, 100, 0, Deadline::seconds(1))?;
    /// channel.send(&gpadl.handle().to_le_bytes())?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing is shared: [`Error::InvalidExternalData`] if the range is empty or leaves the memory; [`Error::WrongState`] on a
    /// server; [`Error::WouldDeadlock`] from the channel's own callback; [`Error::Gone`]; [`Error::TimedOut`], after which the
    /// memory is held until the host can no longer have it.
    pub fn create_gpadl_from_mdl(
        &self,
        access: GpadlAccess,
        mdl: &Mdl,
        offset: usize,
        len: usize,
        deadline: Deadline,
    ) -> Result<Gpadl<C>, Error> {
        self.core().may_wait_for_callbacks()?;
        let invalid = Error::InvalidExternalData { len, ranges: 0 };
        let mdl = mdl.range(offset, len).map_err(|_| invalid)?;
        if mdl.is_empty() {
            return Err(invalid);
        }
        let id = self.transport()?.create_gpadl(&mdl, access, deadline)?;
        Ok(Gpadl {
            id,
            mdl,
            channel: self.uncounted(),
        })
    }

    /// Shares a whole buffer with the server (`VmbChannelCreateGpadlFromBuffer`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// use vmbus::memory::DmaBuffer;
    /// let buffer = DmaBuffer::allocate(both.platform(), 16 * 1024)?;
    /// let gpadl = channel.create_gpadl_from_buffer(GpadlAccess::ReadWrite, buffer, Deadline::seconds(1))?;
    /// channel.send(&gpadl.handle().to_le_bytes())?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`create_gpadl_from_mdl`](Self::create_gpadl_from_mdl).
    pub fn create_gpadl_from_buffer(
        &self,
        access: GpadlAccess,
        buffer: DmaBuffer,
        deadline: Deadline,
    ) -> Result<Gpadl<C>, Error> {
        self.create_gpadl_from_mdl(access, &buffer.into(), 0, 0, deadline)
    }

    /// Maps memory that the client shares (`VmbChannelMapGpadl`); at most once at a time.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// # let memory = both.memory(b"client's")?;
    /// # let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, Deadline::seconds(1))?;
    /// # let (server, handle) = (both.server(), gpadl.handle());
    /// let mapped = server.map_gpadl(handle, GpadlAccess::ReadWrite)?;
    /// mapped.write_at(0, b"server's")?;
    /// // Unmapped, so that the client may withdraw it.
    /// drop(mapped);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownGpadl`]; [`Error::AlreadyMapped`]; [`Error::ReadOnly`] if it is shared only to be read, and more was
    /// asked for; [`Error::WrongState`] on a client; [`Error::Gone`].
    pub fn map_gpadl(&self, handle: u32, access: GpadlAccess) -> Result<MappedGpadl, Error> {
        let (id, transport) = (GpadlId(handle), self.transport()?);
        let mdl = transport.map_gpadl(id, access)?;
        Ok(MappedGpadl {
            id,
            mdl,
            access,
            transport,
        })
    }
}
