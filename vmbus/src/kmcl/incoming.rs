//! Packets that come in: [`IncomingPacket`] (KMCL: `VMBPACKETCOMPLETION`), and what becomes of them. The memory that they describe is in
//! `external`.

use core::fmt;
use core::sync::atomic::Ordering;

use super::counters::{add, add_alone, subtract_alone};
use super::endpoint::Core;
use super::receive::{IncomingBody, Ready, Slot};
use super::{Channel, Context, Error, Level, Refused};
use crate::fallible::Shared;

mod external;
pub use external::ExternalData;

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

    /// Returns what came; `None` while the packet is being given up.
    fn body(&self) -> Option<&IncomingBody> {
        self.body.as_deref()
    }

    fn body_and_core(&mut self) -> Option<(&mut IncomingBody, &Core<C>)> {
        Some((self.body.as_deref_mut()?, self.channel.core()))
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
        self.body().map_or(&[], |body| body.payload())
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
        self.body().is_some_and(|body| body.wants_completion)
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
        self.body().map_or(Level::Dispatch, |body| body.level)
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
        self.body().map_or(0, |body| body.transaction_id)
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
        let is_awaited = outgoing.returned.wake_reader();
        let last = outgoing.keeper_if_all_is_home(&self.counters);
        match free {
            Some(free) if self.lends_handles() => {
                drop(outgoing);
                // The other lock costs next to nothing where calls come one at a time, and memory that is used again at once is still
                // in the cache.
                self.incoming().put_back(free);
            }
            Some(free) => {
                outgoing.returned.put(free);
                drop(outgoing);
            }
            None => drop(outgoing),
        }
        if is_awaited || (self.ending.load(Ordering::Acquire) != 0 && self.is_idle()) {
            self.schedule();
        }
        last
    }
}
