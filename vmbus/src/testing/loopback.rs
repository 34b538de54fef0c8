//! [`Loopback`]: a channel with both ends in this process.

use core::fmt;

use super::FakePlatform;
use crate::Deadline;
use crate::Instant;
use crate::host::Host;
use crate::kmcl::{Channel, DisabledChannel, Error, IncomingPacket, Instance};
use crate::memory::{DmaBuffer, Mdl};
use crate::protocol::Guid;

/// Both ends of a channel in this process, for the tests and the examples of drivers: a host, and a server on it that does as
/// it is told. Time is the [`FakePlatform`]'s: it goes on only while somebody waits, so that no time-out takes long.
///
/// ```
/// use vmbus::testing::Loopback;
/// # use vmbus::Deadline;
/// let both = Loopback::new(|_, packet| drop(packet.complete(b"answer")))?;
/// let channel = both.open()?;
/// let mut answer = [0; 8];
/// let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut answer)?;
/// assert_eq!((sent.len, &answer), (8, b"answer\0\0"));
/// # Ok::<(), vmbus::kmcl::Error>(())
/// ```
pub struct Loopback {
    platform: &'static FakePlatform,
    host: Host,
    server: Channel,
}

impl Loopback {
    /// The class of the server's offer.
    pub const CLASS: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000100b");

    /// Makes a host with a server that calls `serve` for each packet.
    ///
    /// # Errors
    ///
    /// What making the server answers.
    pub fn new(serve: impl Fn(&Channel, IncomingPacket<()>) + Send + Sync + 'static) -> Result<Self, Error> {
        Self::with(|server| server.init_set_process_packet_callback(serve))
    }

    /// Makes a host with a server that answers each packet with its payload.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn echo() -> Result<Self, Error> {
        Self::new(|_, packet| {
            let payload = packet.payload().to_vec();
            // It is no longer than what came.
            let _ = packet.complete(&payload);
        })
    }

    /// Makes a host with a server that is initialised by `init`.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn with(init: impl FnOnce(DisabledChannel) -> DisabledChannel) -> Result<Self, Error> {
        let platform = FakePlatform::new();
        let clock = || Instant::from_reference_units(platform.look_at_clock());
        let host = Host::new(platform, clock)?;
        let server = Channel::allocate_server(&host)?.init_set_target(Self::CLASS, Instance::Any);
        let server = init(server).enable(Deadline::seconds(1))?;
        Ok(Self { platform, host, server })
    }

    /// Returns the platform under both ends.
    #[must_use]
    pub const fn platform(&self) -> &'static FakePlatform {
        self.platform
    }

    /// Returns the host. [`Host::process`] runs the callbacks that are due.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the server's end.
    #[must_use]
    pub const fn server(&self) -> &Channel {
        &self.server
    }

    /// Returns a client for the server's offer, not enabled yet.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn client(&self) -> Result<DisabledChannel, Error> {
        Ok(Channel::allocate_client(&self.host)?.init_set_target(Self::CLASS, Instance::Any))
    }

    /// Opens the channel; returns the client's end.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchOffer`] if there is a client already, and what enabling may answer.
    pub fn open(&self) -> Result<Channel, Error> {
        Ok(self.client()?.enable(Deadline::seconds(1))?)
    }

    /// Returns memory with these bytes, to be lent or shared.
    ///
    /// # Errors
    ///
    /// What allocation may answer, as far as the platform was told to fail.
    pub fn memory(&self, bytes: &[u8]) -> Result<Mdl, Error> {
        let buffer = DmaBuffer::allocate(self.platform, bytes.len())?;
        buffer.write_at(0, bytes).map_err(|_| Error::OutOfRange)?;
        Ok(buffer.into())
    }
}

impl fmt::Debug for Loopback {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Loopback")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
