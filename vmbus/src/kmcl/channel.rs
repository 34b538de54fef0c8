//! An enabled channel: [`Channel`], its handles, and what it tells of itself.

use core::fmt;
use core::sync::atomic::Ordering;

use super::endpoint::{Core, Phase};
use super::gate::Inside;
use super::{Context, Counters, Error, Gone, Side};
use crate::fallible::{Borrowed, Handle, Shared};
use crate::protocol::{ChannelId, Guid};
use crate::{Deadline, Instant, Platform};

mod delivery;
mod sending;
#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// An enabled channel (KMCL: an enabled `VMBCHANNEL`), as a driver holds it and gets it in callbacks.
///
/// Clones are handles of the same channel; when the last one is dropped, the channel is closed as well as can be without
/// waiting long: in its own callback as soon as that has ended, and otherwise at the latest with the last packet that the driver
/// holds. `C` is the driver's own data about the channel, see [`context`](Self::context).
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
            log::warn!(target: "vmbus::kmcl", "{}: dropped, and not closed yet: {error}", self.friendly_name());
            // Behind the callback that this is, or the last packet that the driver holds.
            self.core().end(Gone::Disabled);
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
