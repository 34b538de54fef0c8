//! An enabled channel: [`Channel`].

use core::fmt;
use core::sync::atomic::Ordering;

use super::endpoint::{Core, Phase};
use super::gate::Inside;
use super::outgoing::IfFull;
use super::packet::Body;
use super::settings::MAX_RANGES;
use super::{Context, Counters, DisabledChannel, Error, Gone, Level, OutgoingPacket, Refused, Side};
use crate::fallible::{Borrowed, Handle, Shared};
use crate::memory::DmaBuffer;
use crate::protocol::packet::{PacketFlags, PacketType, TransferPageRange};
use crate::protocol::{ChannelId, Guid};
use crate::ring::{ExternalToSend, Header};
use crate::{Deadline, Instant, Platform};

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// An enabled channel (KMCL: an enabled `VMBCHANNEL`), as a driver holds it and gets it in callbacks.
///
/// Clones are handles of the same channel; when the last one is dropped, the channel is closed as well as can be without
/// waiting long. `C` is the driver's own data about the channel, see [`context`](Self::context).
///
/// Made by [`Channel::allocate_client`], initialised, and enabled:
///
/// ```
/// use vmbus::kmcl::{Channel, Instance};
/// use vmbus::{Bus, Deadline, protocol::Guid};
/// # fn example(bus: &Bus) -> Result<(), Box<dyn core::error::Error>> {
/// const CLASS: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
/// let channel = Channel::allocate_client(bus)?
///     .init_set_target(CLASS, Instance::Any)
///     .init_set_ring_buffer_page_count(8, 8)
///     .init_set_process_packet_callbacks(|_, packet| drop(packet.complete(&[])), |_, _| ())
///     .enable(Deadline::seconds(10))?;
/// let mut answer = [0; 64];
/// let sent = channel.send_synchronous_request(b"question", None, Deadline::seconds(1), &mut answer)?;
/// log::info!("{} bytes came back", sent.len);
/// channel.disable(Deadline::seconds(10))?;
/// # Ok(())
/// # }
/// ```
pub struct Channel<C: Context = ()> {
    /// Marked if this handle keeps the channel open. One word, so that a packet, which has one, is two.
    core: Handle<Core<C>>,
}

impl<C: Context> Channel<C> {
    /// Makes a handle that keeps the channel open.
    pub(crate) fn owner(core: &Shared<Core<C>>) -> Self {
        core.users.fetch_add(1, Ordering::Relaxed);
        Self {
            core: Handle::marked_owner(core.clone()),
        }
    }

    /// Makes a handle that does not keep the channel open, for callbacks and packets.
    pub(crate) fn borrowed(core: &Shared<Core<C>>) -> Self {
        Self {
            core: Handle::owner(core.clone()),
        }
    }

    pub(crate) fn uncounted(&self) -> Self {
        Self::borrowed(&self.shared())
    }

    pub(crate) const fn lent(core: Handle<Core<C>>) -> Self {
        Self { core }
    }

    #[inline]
    pub(crate) fn shared(&self) -> Borrowed<'_, Core<C>> {
        self.core.shared()
    }

    /// Whether this handle is a packet's that counts nothing: there is nothing to drop.
    #[inline]
    pub(crate) fn is_lent(&self) -> bool {
        self.core.is_lent()
    }

    #[inline]
    pub(crate) fn core(&self) -> &Core<C> {
        &self.core
    }

    /// Returns the driver's own data about the channel (`VmbChannelGetPointer`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// struct Disk { name: &'static str }
    /// let channel = Channel::allocate_client_with(both.host(), Disk { name: "system" })?
    ///     .init_set_target(Loopback::CLASS, Instance::Any)
    ///     .enable(Deadline::seconds(1))?;
    /// assert_eq!(channel.context().name, "system");
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn context(&self) -> &C {
        &self.core().context
    }

    /// Returns the name that the driver gave the channel.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let channel = both.client()?.init_set_friendly_name("disk 0").enable(Deadline::seconds(1))?;
    /// assert_eq!(channel.friendly_name(), "disk 0");
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn friendly_name(&self) -> &str {
        self.core().settings.name.as_str()
    }

    /// Returns which end of the channel this is.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// assert_eq!((channel.side(), both.server().side()), (Side::Client, Side::Server));
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn side(&self) -> Side {
        self.core().side
    }

    /// Returns true if packets are sent and delivered.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// assert!(channel.is_running());
    /// channel.pause(Deadline::seconds(1))?;
    /// assert!(!channel.is_running());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.core().phase() == Phase::Running && self.core().gone().is_none()
    }

    /// Returns the instance id of the offer (`VmbChannelGetInterfaceInstance`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// // `Instance::Any` was asked for: which one is it?
    /// log::info!("{}", channel.interface_instance());
    /// # assert_eq!(channel.interface_instance(), both.server().interface_instance());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn interface_instance(&self) -> Guid {
        self.core().offer.lock(self.core().platform).instance
    }

    /// Returns the number of the channel.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// assert_eq!(channel.id(), both.server().id());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.core().offer.lock(self.core().platform).channel
    }

    /// Returns how many MiB of MMIO space the offer asks the guest to set aside (`VmbChannelGetMmioSpace`, which returns the
    /// place as well: that is the operating system's to choose here).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let bytes = usize::from(channel.mmio_megabytes()) << 20;
    /// # assert_eq!(bytes, 0);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn mmio_megabytes(&self) -> u16 {
        self.core().offer.lock(self.core().platform).mmio_megabytes
    }

    /// Returns the bytes of the offer that its device defines.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let [first, ..] = channel.offer_user_defined();
    /// # assert_eq!(first, 0);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn offer_user_defined(&self) -> [u8; 120] {
        self.core().offer.lock(self.core().platform).user_defined.0
    }

    /// Returns the platform that the channel stands on: a driver gets memory to lend from it.
    ///
    /// ```
    /// # use vmbus::kmcl::Channel;
    /// # use vmbus::memory::{DmaBuffer, DmaError};
    /// fn page_to_lend(channel: &Channel) -> Result<DmaBuffer, DmaError> {
    ///     DmaBuffer::allocate(channel.platform(), 4096)
    /// }
    /// ```
    #[must_use]
    pub fn platform(&self) -> &'static dyn Platform {
        self.core().platform
    }

    /// Returns the time on the clock that the channel's deadlines are meant on.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::Channel};
    /// fn fixed(channel: &Channel, deadline: Deadline) -> Deadline {
    ///     deadline.fixed(channel.now()) // for several waits in a row
    /// }
    /// ```
    #[must_use]
    pub fn now(&self) -> Instant {
        self.core().now()
    }

    /// Returns why there is no channel any more; `None` while there is one.
    ///
    /// ```
    /// # use vmbus::kmcl::Channel;
    /// fn report(channel: &Channel) {
    ///     if let Some(why) = channel.gone() {
    ///         log::info!("{}: {why}", channel.friendly_name());
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn gone(&self) -> Option<Gone> {
        self.core().gone()
    }

    /// Waits until `ready` returns something, as the calls that wait do: between two looks, completions on this channel go to
    /// those who wait for them, and nothing is delivered. So a task waits for several requests at once, by polling their futures
    /// ([`send_request`](Self::send_request)) in `ready`.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::{Channel, Error}};
    /// use core::{pin::pin, task::{Context, Poll, Waker}};
    /// fn answer_len(channel: &Channel) -> Result<usize, Error> {
    ///     let mut request = pin!(channel.send_request(b"question", None)?);
    ///     let mut context = Context::from_waker(Waker::noop());
    ///     let reply = channel.wait_until(Deadline::seconds(1), || match request.as_mut().poll(&mut context) {
    ///         Poll::Ready(reply) => Some(reply),
    ///         Poll::Pending => None,
    ///     })?;
    ///     Ok(reply?.payload().len())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`]; [`Error::WouldDeadlock`] from the channel's own callback, unless the deadline is
    /// [`Deadline::IMMEDIATE`].
    pub fn wait_until<T>(&self, deadline: Deadline, mut ready: impl FnMut() -> Option<T>) -> Result<T, Error> {
        if deadline != Deadline::IMMEDIATE && self.core().inside() == Some(Inside::Callback) {
            return Err(Error::WouldDeadlock);
        }
        self.core().wait(self.core().until(deadline), |_| ready())
    }

    /// Looks at messages and completions once, as [`wait_until`](Self::wait_until) does; false from the channel's own callback,
    /// where that is not to be done.
    pub(crate) fn look(&self) -> bool {
        let may_look = self.core().inside() != Some(Inside::Callback);
        if may_look {
            self.core().look();
        }
        may_look
    }

    /// Returns the bytes of memory that the channel reserved when it was enabled, without the rings.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// log::info!("{} KiB for packets", channel.reserved_bytes() / 1024);
    /// # assert!(channel.reserved_bytes() > 1024);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        self.core().reserved_bytes
    }

    /// Returns what the channel has done so far.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.send(b"notice")?;
    /// assert_eq!(channel.counters().packets_sent, 1);
    /// for (name, count) in channel.counters().iter().filter(|(_, count)| *count > 0) {
    ///     log::info!("{name}: {count}");
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core().counters.snapshot()
    }

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

    /// Stops the delivery of packets (`VmbChannelPause`): calls the suspend callback, then waits until the driver has completed
    /// all packets that it holds.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.pause(Deadline::seconds(1))?;
    /// // No packet callback runs, and none will.
    /// channel.start(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WouldDeadlock`] from the channel's own callback; [`Error::TimedOut`]: delivery has stopped, but packets are
    /// still held, so call again; [`Error::Gone`].
    pub fn pause(&self, deadline: Deadline) -> Result<(), Error> {
        Core::pause(&self.shared(), self.core().until(deadline))
    }

    /// Delivers packets again (`VmbChannelStart`): calls the started and post-started callbacks. Nothing happens if the channel
    /// is not paused.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let channel = both.client()?.pause_when_enabled().enable(Deadline::seconds(1))?;
    /// channel.start(Deadline::seconds(1))?;
    /// assert!(channel.is_running());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WouldDeadlock`] from the channel's own callback; [`Error::WrongState`] if it is still being paused;
    /// [`Error::TimedOut`] if another callback did not end in time; [`Error::Gone`].
    pub fn start(&self, deadline: Deadline) -> Result<(), Error> {
        Core::start(&self.shared(), self.core().until(deadline))
    }

    /// Closes the channel, or takes the offer back (`VmbChannelDisable`): delivery stops, packets that the driver holds are
    /// awaited, the channel is closed with the peer, requests end with [`Error::Gone`], and the closed callback is called. A host that
    /// does not answer to the end in time may still write to what requests have lent: that does not come back then.
    /// What the channel was initialised with is kept, and may be changed and enabled again. Other handles answer
    /// [`Error::Gone`] from now on.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let disabled = channel.disable(Deadline::seconds(1))?;
    /// let channel = disabled.init_set_maximum_packet_count(64).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The handle comes back: [`Error::WouldDeadlock`] from the channel's own callback; [`Error::TimedOut`]: the channel ends,
    /// but the driver still holds packets, so call again; [`Error::OutOfMemory`]: it has ended, and cannot be enabled again.
    pub fn disable(self, deadline: Deadline) -> Result<DisabledChannel<C>, Refused<Self>> {
        match Core::disable(&self.shared(), self.core().until(deadline)) {
            Ok(()) => match DisabledChannel::again(&self.shared()) {
                Ok(disabled) => Ok(disabled),
                Err(error) => Err(Refused { error, given: self }),
            },
            Err(error) => Err(Refused { error, given: self }),
        }
    }

    /// Chooses where packets are delivered from now on (`VmbChannelSetIncomingProcessingAtPassive`): only at
    /// [`Level::Passive`], by [`process_at_passive`](Self::process_at_passive), or at either level.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.set_incoming_processing_at_passive(Level::Passive);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn set_incoming_processing_at_passive(&self, level: Level) {
        self.core().at_passive.store(level == Level::Passive, Ordering::Relaxed);
        self.core().schedule();
    }

    /// Delivers what there is to deliver, at [`Level::Passive`]: from a task that may block, never from an interrupt.
    ///
    /// A channel that processes at `PASSIVE`, or defers packets to it, needs a task that calls this after the callback of
    /// [`init_set_passive_wake`](DisabledChannel::init_set_passive_wake).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.set_incoming_processing_at_passive(Level::Passive);
    /// both.server().send(b"packet")?;
    /// # both.host().process();
    /// // In a task of the driver's:
    /// if channel.needs_passive() {
    ///     channel.process_at_passive();
    /// }
    /// assert_eq!(channel.counters().packets_processed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn process_at_passive(&self) {
        self.core().passive_pending.store(false, Ordering::Relaxed);
        Core::process(self, Level::Passive);
    }

    /// Returns true if something waits for [`process_at_passive`](Self::process_at_passive).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// assert!(!channel.needs_passive());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn needs_passive(&self) -> bool {
        self.core().passive_pending.load(Ordering::Relaxed)
    }

    /// Delivers what there is to deliver now, for those who poll.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// both.server().send(b"packet")?;
    /// channel.process();
    /// assert_eq!(channel.counters().packets_processed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn process(&self) {
        Core::process(self, Level::Dispatch);
    }

    /// Sets how many incoming packets may be held uncompleted (`VmbChannelSetTransactionQuota`). At the quota the ring is not
    /// read. A quota below the packets that are held takes effect as they are completed; raising it does not by itself restart
    /// a channel that stands at its quota, a completion does.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.set_transaction_quota(64)?;
    /// assert_eq!(channel.set_transaction_quota(0), Err(Error::InvalidQuota));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQuota`] for 0; [`Error::OutOfMemory`] if there is no memory for more packets; nothing changes then.
    pub fn set_transaction_quota(&self, quota: u32) -> Result<(), Error> {
        if quota == 0 {
            return Err(Error::InvalidQuota);
        }
        let more = {
            let incoming = self.core().incoming();
            quota.saturating_sub(incoming.slots())
        };
        let mut fresh = super::receive::new_slots(&self.core().settings, more)?;
        self.core()
            .outgoing
            .lock(self.core().platform)
            .reserve_completions(quota)?;
        self.core()
            .incoming
            .lock(self.core().platform)
            .set_quota(&self.core().settings, quota, &mut fresh)?;
        Ok(())
    }
}

impl<C: Context> Clone for Channel<C> {
    fn clone(&self) -> Self {
        Self::owner(&self.shared())
    }
}

impl<C: Context> Drop for Channel<C> {
    #[inline]
    fn drop(&mut self) {
        if self.core.is_marked() {
            self.user_is_gone();
        }
    }
}

impl<C: Context> Channel<C> {
    #[cold]
    #[inline(never)]
    fn user_is_gone(&self) {
        if self.core().users.fetch_sub(1, Ordering::AcqRel) != 1 || self.core().phase() == Phase::Ended {
            return;
        }
        let until = self.core().until(DROP_DEADLINE);
        if let Err(error) = Core::disable(&self.shared(), until) {
            log::warn!(target: "vmbus::kmcl", "{}: dropped, and not closed: {error}", self.friendly_name());
        }
    }
}

/// How long the drop of the last handle waits for the channel to end.
pub(super) const DROP_DEADLINE: Deadline = Deadline::seconds(2);

impl<C: Context> fmt::Debug for Channel<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core().fmt(formatter)
    }
}
