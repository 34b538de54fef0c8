//! Packets that come in: [`IncomingPacket`] (KMCL: `VMBPACKETCOMPLETION`) and the memory that they describe,
//! [`ExternalData`].

use core::fmt;

use core::sync::atomic::Ordering;

use zerocopy::little_endian::U64;

use super::counters::{add, add_alone, subtract_alone};
use super::endpoint::Core;
use super::receive::{IncomingBody, Ready, Slot};
use super::{Channel, Context, Error, Level, Refused};
use crate::fallible::Shared;
use crate::memory::{Mdl, Pfn};
use crate::protocol::packet::PacketType;
use crate::ring::{External, GpaRanges};

/// A packet of the peer, to be completed exactly once (KMCL: `VMBPACKETCOMPLETION`).
///
/// It is a value: whoever has it may keep it, send it to another task, and complete it when and in whatever order it likes.
/// One that is dropped is completed with no bytes, counted as `dropped` and logged, so that the peer does not hang.
///
/// # Examples
///
/// ```
/// use vmbus::kmcl::{Channel, IncomingPacket};
/// fn on_packet(_: &Channel<()>, packet: IncomingPacket<()>) {
///     let first = packet.payload().first().copied().unwrap_or(0);
///     if let Err(refused) = packet.complete(&[first; 8]) {
///         log::warn!("no answer: {refused}");
///     }
/// }
/// ```
///
/// Completing twice is no error but cannot be written:
///
/// ```compile_fail,E0382
/// use vmbus::kmcl::{Channel, IncomingPacket};
/// fn on_packet(_: &Channel<()>, packet: IncomingPacket<()>) {
///     let _ = packet.complete(&[]);
///     let _ = packet.complete(&[]);
/// }
/// ```
pub struct IncomingPacket<C: Context> {
    body: Option<Slot>,
    channel: Channel<C>,
}

impl<C: Context> IncomingPacket<C> {
    pub(crate) fn new(body: Slot, channel: &Channel<C>) -> Self {
        Self {
            body: Some(body),
            channel: channel.for_packet_of_pool(),
        }
    }

    fn core(&self) -> &Core<C> {
        self.channel.core()
    }

    /// Returns the channel that the packet came on.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     log::debug!("a packet on {}", packet.channel().id());
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn channel(&self) -> &Channel<C> {
        &self.channel
    }

    /// Returns the payload as the peer sent it, padded to a multiple of 8 bytes: how many of them count, it must tell itself.
    /// A private copy that nobody changes any more.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     let Some((kind, rest)) = packet.payload().split_at_checked(4) else {
    ///         return packet.fail();
    ///     };
    ///     log::debug!("{kind:?}, {} more bytes", rest.len());
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], |body| body.payload())
    }

    /// Returns true if the packet describes memory (KMCL: flag 1 of `EvtVmbChannelProcessPacket`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     if packet.has_external_data() {
    ///         log::debug!("{:?}", packet.external_data());
    ///     }
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn has_external_data(&self) -> bool {
        self.body
            .as_ref()
            .is_some_and(|body| body.packet_type == PacketType::GPA_DIRECT)
    }

    /// Returns true if the sender waits for a completion.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     let answer = if packet.wants_completion() { expensive() } else { [0; 8] };
    ///     drop(packet.complete(&answer));
    /// }
    /// # fn expensive() -> [u8; 8] { [1; 8] }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn wants_completion(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.wants_completion)
    }

    /// Returns the level at which the packet was delivered.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     match packet.level() {
    ///         Level::Passive => { /* may block */ }
    ///         Level::Dispatch => { /* may not */ }
    ///     }
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn level(&self) -> Level {
        self.body.as_ref().map_or(Level::Dispatch, |body| body.level)
    }

    /// Returns the packet's bytes for the driver's use, as many as `init_set_client_context_size` asked for, zero at first
    /// (`VmbChannelPacketGetClientContext`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// let both = Loopback::with(|server| {
    ///     server
    ///         .init_set_client_context_size(8)
    ///         .init_set_process_packet_callback(|_, mut packet| packet.client_context().fill(1))
    /// })?;
    /// # both.open()?.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 8])?;
    /// # Ok::<(), Error>(())
    /// ```
    pub fn client_context(&mut self) -> &mut [u8] {
        self.body.as_mut().map_or(&mut [], |body| &mut body.context)
    }

    /// Returns the memory that the packet describes, to read and write (`VmbChannelPacketGetExternalData`):
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let answer = match packet.external_data().and_then(|data| data.write_at(0, b"result")) {
    ///         Ok(()) => NtStatus::SUCCESS,
    ///         Err(error) => error.ntstatus(),
    ///     };
    ///     drop(packet.complete(&answer.0.to_le_bytes()));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let memory = Some(both.memory(b"external")?);
    /// # let sent = channel.send_synchronous_request(b"question", memory, Deadline::seconds(1), &mut [1; 8])?;
    /// # let mut bytes = [0; 8];
    /// # sent.mdl.unwrap().read_at(0, &mut bytes).unwrap();
    /// # assert_eq!(&bytes, b"resultal");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// It stays until the packet is completed, and ends with it:
    ///
    /// ```compile_fail,E0505
    /// # use vmbus::kmcl::{Channel, IncomingPacket};
    /// fn on_packet(_: &Channel<()>, mut packet: IncomingPacket<()>) {
    ///     let Ok(data) = packet.external_data() else { return };
    ///     let _ = packet.complete(&[]);
    ///     let _ = data.len();
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoExternalData`]; [`Error::Pending`]: return from the callback without completing the packet, by
    /// [`wait_for_external_data`](Self::wait_for_external_data), and it is delivered again; [`Error::NotLent`] if the peer
    /// does not lend what it describes; [`Error::InvalidExternalData`] if it is beyond the channel's limits.
    pub fn external_data(&mut self) -> Result<ExternalData<'_>, Error> {
        self.pin(false)
    }

    /// Returns the memory that the packet describes, only to read (`VMBUS_CHANNEL_PACKET_EXTERNAL_DATA_FLAG_READ_ONLY`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let mut first = [0; 4];
    ///     if let Ok(data) = packet.external_data_read_only() {
    ///         let _ = data.read_at(0, &mut first);
    ///     }
    ///     drop(packet.complete(&first));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # assert_eq!(sent.len, 8);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`external_data`](Self::external_data).
    pub fn external_data_read_only(&mut self) -> Result<ExternalData<'_>, Error> {
        self.pin(true)
    }

    fn pin(&mut self, read_only: bool) -> Result<ExternalData<'_>, Error> {
        let core = self.channel.core();
        let Some(body) = &mut self.body else {
            return Err(Error::NoExternalData);
        };
        if body.is_pending {
            return Err(Error::Pending);
        }
        if body.pinned.is_none() {
            body.pinned = Some(core.external_of(body)?);
        }
        body.pinned
            .as_ref()
            .map(|mdl| ExternalData { mdl, read_only })
            .ok_or(Error::NoExternalData)
    }

    /// Makes the external data look as if it had to be brought in first, until the packet is delivered again: for a server in
    /// this kernel that is to behave like one whose memory is paged.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     if packet.level() == Level::Dispatch {
    ///         packet.pretend_pending();
    ///     }
    ///     if packet.external_data().err() == Some(Error::Pending) {
    ///         // Comes again at `PASSIVE`, with the data there.
    ///         let _ = packet.wait_for_external_data();
    ///         return;
    ///     }
    ///     drop(packet.complete(b"answer"));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let packet = channel.packet_allocate()?;
    /// # packet.send(b"question", Some(both.memory(b"external")?), SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # assert_eq!(channel.counters().outgoing_outstanding, 1);
    /// # both.server().process_at_passive();
    /// # both.host().process();
    /// # assert_eq!(channel.counters().outgoing_outstanding, 0);
    /// # Ok::<(), Error>(())
    /// ```
    #[cfg(feature = "host")]
    pub fn pretend_pending(&mut self) {
        if let Some(body) = &mut self.body {
            body.is_pending = true;
        }
    }

    /// Returns the transfer page ranges that the packet names, each with offset and length, once all are known to lie within a
    /// buffer of `buffer_len` bytes; and the number of the buffer, an allegation.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// /// Length of the buffer that both ends know.
    /// const LEN: u64 = 65536;
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     match packet.transfer_pages(LEN) {
    ///         Ok((set, ranges)) => log::debug!("{} ranges of buffer {set}", ranges.count()),
    ///         Err(error) => log::warn!("{error}"),
    ///     }
    /// }
    /// # let other = Loopback::new(on_packet)?;
    /// # other.open()?.send_transfer_pages(7, &[(0, 10)], b"received")?;
    /// # other.host().process();
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoExternalData`] if the packet names none, [`Error::Corrupt`] if a range lies outside.
    pub fn transfer_pages(&self, buffer_len: u64) -> Result<(u16, impl Iterator<Item = (u32, u32)> + '_), Error> {
        let body = self.body.as_ref().ok_or(Error::NoExternalData)?;
        match body.external() {
            Ok(External::TransferPages(pages)) => {
                Ok((pages.set_id(), pages.within(buffer_len).map_err(|_| Error::Corrupt)?))
            }
            Ok(_) => Err(Error::NoExternalData),
            Err(_) => Err(Error::Corrupt),
        }
    }

    /// Completes the packet (`VmbChannelPacketComplete`): sends `answer` back if the peer asked for a completion, and gives up
    /// its memory. A completion that finds the ring full waits in line.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     let status = 0_u32;
    ///     if let Err(refused) = packet.complete(&status.to_le_bytes()) {
    ///         log::warn!("not answered: {refused}");
    ///     }
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 64])?;
    /// # assert_eq!(sent.len, 8);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The packet comes back if the answer is longer than the channel's maximum packet size; nothing was sent.
    pub fn complete(mut self, answer: &[u8]) -> Result<(), Refused<Self>> {
        let limit = self.core().settings.maximum_packet_size;
        if answer.len() > limit {
            return Err(Refused {
                error: Error::PacketTooLarge {
                    len: answer.len(),
                    limit,
                },
                given: self,
            });
        }
        if let Some(body) = self.body.take() {
            let last = self.core().complete(body, answer);
            // The channel may end with its last packet: nothing looks at it from here on.
            drop(last);
        }
        if self.channel.is_lent() {
            // Nothing is left in it to be dropped.
            core::mem::forget(self);
        }
        Ok(())
    }

    /// Fails a packet that cannot be understood (`VmbChannelPacketFail`): nothing more is delivered on this channel until it
    /// is opened again. The sender gets an empty completion.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     match packet.payload() {
    ///         [1, ..] => drop(packet.complete(&[0; 8])),
    ///         // Nobody knows what it says, or what follows.
    ///         _ => packet.fail(),
    ///     }
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut [0; 64])?;
    /// # assert_eq!(both.server().counters().failed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn fail(mut self) {
        if let Some(body) = self.body.take() {
            let core = self.core();
            add(&core.counters.failed, 1);
            core.incoming().stopped = true;
            let last = core.complete(body, &[]);
            drop(last);
        }
    }

    /// Returns the number that the peer gave the packet: an allegation, good for nothing but its completion.
    #[cfg(feature = "host")]
    pub(crate) fn transaction_id(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.transaction_id)
    }

    /// Gives up the packet without any completion, as a server does whose channel ends or that plays a broken one.
    #[cfg(feature = "host")]
    pub(crate) fn abandon(mut self) {
        if let Some(mut body) = self.body.take() {
            body.wants_completion = false;
            let last = self.core().complete(body, &[]);
            drop(last);
        }
    }

    /// Gives up the packet without any completion, and delivers nothing more on this channel until it is opened again.
    #[cfg(feature = "host")]
    pub(crate) fn abandon_and_stop(self) {
        {
            let core = self.core();
            add(&core.counters.failed, 1);
            core.incoming().stopped = true;
        }
        self.abandon();
    }

    /// Puts the packet back, to be delivered again at `PASSIVE` (`VmbChannelPacketDeferToPassive`); later packets do not
    /// overtake it. Only from the packet callback itself.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     if packet.level() == Level::Dispatch {
    ///         // What is to be done may block.
    ///         let _ = packet.defer_to_passive();
    ///         return;
    ///     }
    ///     drop(packet.complete(&[0; 8]));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let client = both.open()?;
    /// # client.send(b"notice")?;
    /// # both.host().process();
    /// # assert!(both.server().needs_passive());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The packet comes back, if this is not the channel's packet callback.
    pub fn defer_to_passive(self) -> Result<(), Refused<Self>> {
        self.again(true)
    }

    /// Puts the packet back, to be delivered again when its external data is there: the answer to [`Error::Pending`]. Only from
    /// the packet callback itself.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     if packet.external_data().err() == Some(Error::Pending) {
    ///         let _ = packet.wait_for_external_data();
    ///         return;
    ///     }
    ///     drop(packet.complete(&[0; 8]));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The packet comes back, if this is not the channel's packet callback.
    pub fn wait_for_external_data(self) -> Result<(), Refused<Self>> {
        self.again(true)
    }

    fn again(mut self, needs_passive: bool) -> Result<(), Refused<Self>> {
        if self.core().inside().is_none() {
            return Err(Refused {
                error: Error::WrongState,
                given: self,
            });
        }
        if let Some(mut body) = self.body.take() {
            let core = self.core();
            body.needs_passive = needs_passive;
            body.is_pending = false;
            let mut incoming = core.incoming();
            incoming.held = incoming.held.wrapping_add(1);
            subtract_alone(&core.counters.incoming_outstanding, 1);
            incoming.put_first(Ready::Packet(body));
            drop(incoming);
            // The batch that delivered it finds it again.
            core.stirred.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl<C: Context> Drop for IncomingPacket<C> {
    #[inline]
    fn drop(&mut self) {
        // It has none as a rule: it was completed.
        if let Some(body) = self.body.take() {
            self.complete_dropped(body);
        }
    }
}

impl<C: Context> IncomingPacket<C> {
    #[cold]
    #[inline(never)]
    fn complete_dropped(&self, body: Slot) {
        let core = self.channel.core();
        add(&core.counters.dropped, 1);
        log::debug!(target: "vmbus::kmcl", "{}: a packet was dropped uncompleted", core.settings.name.as_str());
        let last = core.complete(body, &[]);
        drop(last);
    }
}

impl<C: Context> fmt::Debug for IncomingPacket<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("IncomingPacket")
            .field("channel", &self.channel)
            .field("len", &self.payload().len())
            .field("has_external_data", &self.has_external_data())
            .finish_non_exhaustive()
    }
}

/// Memory that a packet describes, until the packet is completed. The peer may write to it at the same time.
#[derive(Debug)]
pub struct ExternalData<'p> {
    mdl: &'p Mdl,
    read_only: bool,
}

impl ExternalData<'_> {
    /// Returns the length in bytes.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let len = packet.external_data().map_or(0, |data| data.len() as u64);
    ///     drop(packet.complete(&len.to_le_bytes()));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # assert_eq!(sent.len, 8);
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
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let is_there = packet.external_data().is_ok_and(|data| !data.is_empty());
    /// #     assert!(is_there);
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
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
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let mut first = [0; 8];
    ///     if let Ok(data) = packet.external_data() {
    ///         let _ = data.read_at(0, &mut first);
    ///     }
    /// #     assert_eq!(&first, b"external");
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
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
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let written = packet.external_data().and_then(|data| data.write_at(0, b"result"));
    ///     let status = written.map_or_else(|error| error.ntstatus(), |()| NtStatus::SUCCESS);
    ///     drop(packet.complete(&status.0.to_le_bytes()));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # let mut bytes = [0; 8];
    /// # sent.mdl.unwrap().read_at(0, &mut bytes).unwrap();
    /// # assert_eq!(&bytes, b"resultal");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`] if the data was asked for only to read; [`Error::OutOfRange`].
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.mdl.write_at(offset, source).map_err(|_| Error::OutOfRange)
    }

    /// Returns the number of parts of the chain.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let parts = packet.external_data().map_or(0, |data| data.chain_len());
    /// #     assert_eq!(parts, 1);
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn chain_len(&self) -> usize {
        self.mdl.chain_len()
    }
}

impl<C: Context> Core<C> {
    /// Completes a packet that was delivered. What keeps the channel comes back if this was the last thing that it was kept for.
    #[must_use]
    fn complete(&self, mut body: Slot, answer: &[u8]) -> Option<Shared<Self>> {
        // The peer's memory is given up before the peer is told.
        if body.pinned.is_some() {
            body.pinned = None;
        }
        let mut outgoing = self.outgoing();
        let free = outgoing.complete(body, answer, &self.counters);
        add_alone(&self.counters.incoming_completed, 1);
        let is_awaited = outgoing.wake_reader();
        let last = outgoing.keeper_if_all_is_home(&self.counters);
        match free {
            Some(free) if self.lends_handles() => {
                drop(outgoing);
                // The other lock costs next to nothing where calls come one at a time, and memory that is used again at once is still
                // in the cache.
                self.incoming().put_back(free);
            }
            Some(free) => {
                outgoing.return_slot(free);
                drop(outgoing);
            }
            None => drop(outgoing),
        }
        if is_awaited || (self.ending.load(Ordering::Acquire) != 0 && self.is_idle()) {
            self.schedule();
        }
        last
    }

    /// Finds the memory that a packet describes: what the peer lends with it, and it must be what the packet says.
    fn external_of(&self, body: &IncomingBody) -> Result<Mdl, Error> {
        let Ok(External::GpaDirect(ranges)) = body.external() else {
            return Err(Error::NoExternalData);
        };
        let len = usize::try_from(ranges.total_bytes()).unwrap_or(usize::MAX);
        let count = ranges.count() as usize;
        if len > self.settings.maximum_external_data || count > self.settings.maximum_chain_length {
            return Err(Error::InvalidExternalData { len, ranges: count });
        }
        // Asked under our lock: only a server asks, and only the client's locks are taken behind it, in which nobody asks back.
        let outgoing = self.outgoing();
        let lent = outgoing
            .transport
            .as_ref()
            .and_then(|transport| transport.lent_by_peer(body.transaction_id));
        drop(outgoing);
        let lent = lent.ok_or(Error::NotLent)?;
        if lent.len() != len {
            return Err(Error::NotLent);
        }
        if !has_pages(&lent, &ranges) {
            return Err(Error::NotLent);
        }
        Ok(lent)
    }
}

/// Returns true if these are the pages of the memory.
#[inline]
fn has_pages(memory: &Mdl, ranges: &GpaRanges<'_>) -> bool {
    // What is lent is one piece as a rule, and so one range.
    if ranges.count() == 1
        && let (Some((pages, _)), Some(range)) = (memory.run(), ranges.iter().next())
    {
        let same = |(page, pfn): (&Pfn, &U64)| page.get() == pfn.get();
        return pages.len() == range.pfns.len() && pages.iter().zip(range.pfns).all(same);
    }
    let described = ranges.iter().flat_map(|range| range.pfns.iter().map(|pfn| pfn.get()));
    memory.page_spans().map(|span| span.pfn.get()).eq(described)
}
