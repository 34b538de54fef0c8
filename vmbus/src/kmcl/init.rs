//! A channel that is not enabled: [`DisabledChannel`], which is initialised and then enabled.
//!
//! KMCL has one type of channel and a status for calls that come too late; here only a disabled channel has the `init_*`
//! functions, and `enable` consumes it. Setters that cannot fail return the channel; a driver's callbacks are kept in boxes,
//! and one that finds no memory makes `enable` fail.

use alloc::boxed::Box;
use core::fmt;

use super::endpoint::Core;
use super::settings::{Callbacks, Name, Notice, PnpFailure, ProcessPacket, ProcessingComplete, Settings, share};
use super::transport::{OfferSource, OpenRequest, Provider};
use super::{Channel, Context, Error, IncomingPacket, Level, Refused, Side, StateChangeCallbacks};
use crate::Deadline;
use crate::fallible::{OutOfMemory, Shared, try_box};

mod limits;
mod target;
#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// A channel that is not enabled, and may be initialised (KMCL: a disabled `VMBCHANNEL`).
///
/// An enabled channel has no such functions:
///
/// ```compile_fail,E0599
/// fn too_late(channel: vmbus::kmcl::Channel<()>) {
///     channel.init_set_maximum_packet_size(64);
/// }
/// ```
pub struct DisabledChannel<C: Context = ()> {
    pub(crate) side: Side,
    pub(crate) provider: Box<dyn Provider>,
    pub(crate) settings: Box<Settings>,
    pub(crate) callbacks: Box<Callbacks<C>>,
    pub(crate) context: Shared<C>,
    pub(crate) out_of_memory: bool,
}

impl Channel<()> {
    /// Makes a client endpoint (`VmbChannelAllocate` with `IsServer` false), with default parameters and no callbacks.
    ///
    /// ```
    /// # use vmbus::{Bus, Deadline, kmcl::*, protocol::Guid};
    /// # fn example(bus: &Bus) -> Result<(), Error> {
    /// const CLASS: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
    /// let channel = Channel::allocate_client(bus)?
    ///     .init_set_target(CLASS, Instance::Any)
    ///     .enable(Deadline::seconds(10))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_client(source: &impl OfferSource) -> Result<DisabledChannel<()>, Error> {
        Self::allocate_client_with(source, ())
    }

    /// Makes a client endpoint with data of the driver's own, which callbacks get from [`Channel::context`]
    /// (`VmbChannelAllocate` and `VmbChannelSetPointer`).
    ///
    /// ```
    /// # use vmbus::{Bus, kmcl::*};
    /// # fn example(bus: &Bus) -> Result<(), Error> {
    /// struct Disk { name: &'static str }
    /// let channel = Channel::allocate_client_with(bus, Disk { name: "system" })?;
    /// assert_eq!(channel.context().name, "system");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn allocate_client_with<C: Context>(
        source: &impl OfferSource,
        context: C,
    ) -> Result<DisabledChannel<C>, Error> {
        DisabledChannel::new(Side::Client, source.provider()?.0, context)
    }
}

impl<C: Context> DisabledChannel<C> {
    pub(crate) fn new(side: Side, provider: Box<dyn Provider>, context: C) -> Result<Self, Error> {
        Ok(Self {
            side,
            provider,
            settings: try_box(Settings::new())?,
            callbacks: try_box(Callbacks::new())?,
            context: Shared::try_new(context)?,
            out_of_memory: false,
        })
    }

    /// The disabled form of a channel that was enabled.
    pub(crate) fn again(core: &Core<C>) -> Result<Self, Error> {
        Ok(Self {
            side: core.side,
            provider: core.provider.another()?,
            settings: try_box(core.settings)?,
            callbacks: try_box(core.callbacks.clone())?,
            context: core.context.clone(),
            out_of_memory: false,
        })
    }

    /// Returns the driver's own data about the channel (`VmbChannelGetPointer`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let channel = Channel::allocate_client_with(both.host(), 42_u64)?;
    /// assert_eq!(*channel.context(), 42);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn context(&self) -> &C {
        &self.context
    }

    pub(super) fn keep<F: ?Sized>(&mut self, boxed: Result<Box<F>, OutOfMemory>) -> Option<Shared<Box<F>>> {
        let kept = share(boxed);
        self.out_of_memory |= kept.is_err();
        kept.ok()
    }

    /// Sets the receive callbacks (`VmbChannelInitSetProcessPacketCallbacks`): `process_packet` for each packet,
    /// `processing_complete` after each batch with the number of packets in it. Without this call, packets are completed empty
    /// and counted.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_process_packet_callbacks(
    ///     |_, packet| drop(packet.complete(&[])),
    ///     |_, count| log::debug!("{count} packets"),
    /// );
    /// # channel.enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_process_packet_callbacks(
        mut self,
        process_packet: impl Fn(&Channel<C>, IncomingPacket<C>) + Send + Sync + 'static,
        processing_complete: impl Fn(&Channel<C>, u32) + Send + Sync + 'static,
    ) -> Self {
        self = self.init_set_process_packet_callback(process_packet);
        let boxed = try_box(processing_complete).map(|boxed| -> Box<ProcessingComplete<C>> { boxed });
        self.callbacks.processing_complete = self.keep(boxed);
        self
    }

    /// Sets the packet callback alone: `ProcessingCompleteCallback` is NULL.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_process_packet_callback(|_, packet| drop(packet.complete(&[])));
    /// # channel.enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_process_packet_callback(
        mut self,
        process_packet: impl Fn(&Channel<C>, IncomingPacket<C>) + Send + Sync + 'static,
    ) -> Self {
        let boxed = try_box(process_packet).map(|boxed| -> Box<ProcessPacket<C>> { boxed });
        self.callbacks.process_packet = self.keep(boxed);
        self.callbacks.processing_complete = None;
        self
    }

    /// Sets the callbacks about the channel's state (`VmbChannelInitSetStateChangeCallbacks`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let callbacks = StateChangeCallbacks::new().closed(|channel| log::info!("{} is closed", channel.id()));
    /// let channel = channel.init_set_state_change_callbacks(callbacks).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_state_change_callbacks(mut self, callbacks: StateChangeCallbacks<C>) -> Self {
        self.out_of_memory |= callbacks.out_of_memory;
        self.callbacks.state = callbacks;
        self
    }

    /// Sets what is called when packets wait for [`Channel::process_at_passive`]: say, wake the task that calls it. Called at
    /// `DISPATCH`.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel
    ///     .init_set_incoming_processing_at_passive(Level::Passive)
    ///     .init_set_passive_wake(|_| wake_my_task())
    ///     .enable(Deadline::seconds(1))?;
    /// # fn wake_my_task() {}
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_passive_wake(mut self, wake: impl Fn(&Channel<C>) + Send + Sync + 'static) -> Self {
        let boxed = try_box(wake).map(|boxed| -> Box<Notice<C>> { boxed });
        self.callbacks.passive_wake = self.keep(boxed);
        self
    }

    /// Sets what is called when the offer was found but could not be connected (`EvtChannelPnpFailure`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_pnp_failure_callback(|_, error| log::error!("no connection: {error}"));
    /// # channel.enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_pnp_failure_callback(mut self, failed: impl Fn(&C, Error) + Send + Sync + 'static) -> Self {
        let boxed = try_box(failed).map(|boxed| -> Box<PnpFailure<C>> { boxed });
        self.callbacks.pnp_failure = self.keep(boxed);
        self
    }

    /// Sets flags (`VmbChannelInitSetFlags`). None are documented, so none are known.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_flags(0)?;
    /// assert_eq!(channel.init_set_flags(1).unwrap_err().error, Error::InvalidFlags(1));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The channel comes back unchanged with [`Error::InvalidFlags`] for any bit.
    pub const fn init_set_flags(self, flags: u32) -> Result<Self, Refused<Self>> {
        if flags != 0 {
            return Err(Refused {
                error: Error::InvalidFlags(flags),
                given: self,
            });
        }
        Ok(self)
    }

    /// Names the channel, for logs and the status table (`VmbChannelInitSetFriendlyName`); the first 48 bytes are copied.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_friendly_name("disk 0");
    /// # assert_eq!(channel.enable(Deadline::seconds(1))?.friendly_name(), "disk 0");
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_friendly_name(mut self, name: &str) -> Self {
        self.settings.name = Name::new(name);
        self
    }

    /// Has the channel start paused, as `VmbChannelPause` on a disabled channel does, until [`Channel::start`].
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.pause_when_enabled().enable(Deadline::seconds(1))?;
    /// assert!(!channel.is_running());
    /// channel.start(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn pause_when_enabled(mut self) -> Self {
        self.settings.paused = true;
        self
    }

    /// Chooses where packets are delivered; see [`Channel::set_incoming_processing_at_passive`].
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = channel.init_set_incoming_processing_at_passive(Level::Passive).enable(Deadline::seconds(1))?;
    /// channel.process_at_passive();
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn init_set_incoming_processing_at_passive(mut self, level: Level) -> Self {
        self.settings.at_passive = level == Level::Passive;
        self
    }

    /// Enables the channel (`VmbChannelEnable`). A client finds the offer, or waits for it, opens it, and has run the opened,
    /// started and post-started callbacks when this returns. All memory that packets need is reserved here.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.client()?;
    /// let channel = match channel.enable(Deadline::seconds(10)) {
    ///     Ok(channel) => channel,
    ///     // The disabled channel is in `given`, to be tried again.
    ///     Err(refused) => return Err(refused.error),
    /// };
    /// assert!(channel.is_running());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The disabled channel comes back, and nothing is left: [`Error::NoSuchOffer`], [`Error::TimedOut`], [`Error::Refused`],
    /// [`Error::OpenedFailed`], [`Error::Gone`], [`Error::OutOfMemory`], [`Error::OutOfPages`], [`Error::Bus`].
    pub fn enable(self, deadline: Deadline) -> Result<Channel<C>, Refused<Self>> {
        match self.try_enable(deadline) {
            Ok(channel) => Ok(channel),
            Err(error) => {
                if error != Error::NoSuchOffer
                    && let Some(callback) = &self.callbacks.pnp_failure
                {
                    callback(&self.context, error);
                }
                Err(Refused { error, given: self })
            }
        }
    }

    fn try_enable(&self, deadline: Deadline) -> Result<Channel<C>, Error> {
        if self.out_of_memory {
            return Err(OutOfMemory.into());
        }
        let mut settings = *self.settings;
        let least = settings.least_ring_pages();
        settings.incoming_pages = settings.incoming_pages.max(least);
        settings.outgoing_pages = settings.outgoing_pages.max(least);
        let core = Core::new(
            self.side,
            self.provider.another()?,
            settings,
            (*self.callbacks).clone(),
            self.context.clone(),
        )?;
        // Counted before the callbacks run: a clone that one of them makes and drops is not the last handle.
        let channel = Channel::owner(&core);
        let enabled = match self.side {
            Side::Client => Self::enable_client(&core, &settings, deadline),
            Side::Server => super::lifecycle::server_sink(&core)
                .map_err(Error::from)
                .and_then(|sink| core.provider.offer(&settings, sink))
                .map(|facts| *core.offer.lock(core.platform) = facts),
        };
        if let Err(error) = enabled {
            // Now, and not with its last handle: a callback may have cloned it.
            if let Err(error) = Core::disable(&core, core.until(super::channel::DROP_DEADLINE)) {
                log::warn!(target: "vmbus::kmcl", "{}: neither enabled nor ended: {error}", channel.friendly_name());
            }
            drop(core.is_over());
            return Err(error);
        }
        Ok(channel)
    }

    fn enable_client(core: &Shared<Core<C>>, settings: &Settings, deadline: Deadline) -> Result<(), Error> {
        let until = core.until(deadline);
        let deadline = until.map_or(Deadline::Never, Deadline::At);
        let request = OpenRequest {
            target: settings.target,
            incoming_pages: settings.incoming_pages,
            outgoing_pages: settings.outgoing_pages,
            processor: settings.processor,
            user_data: settings.user_data,
        };
        let opened = core.provider.open(&request, Core::sink(core)?, deadline)?;
        let transport = opened.transport.clone();
        Core::opened(core, opened, until).inspect_err(|_| {
            let _ = transport.close(deadline);
        })
    }
}

impl<C: Context> fmt::Debug for DisabledChannel<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DisabledChannel")
            .field("side", &self.side)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
