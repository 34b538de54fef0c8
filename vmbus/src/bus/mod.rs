//! The bus: the connection to the host, the channels that it offers, and the memory shared with it.
//!
//! - [`Bus`]: the connection, a cheap handle. [`Bus::connect`] finds a version that both ends speak and asks for the
//!   offers; [`Bus::disconnect`] ends it with the host's word that it has given up everything.
//! - [`Offer`], [`Offers`], [`OfferCursor`]: the channels that can be opened, now and as they come.
//! - [`Channel`], [`ChannelCore`], [`ChannelSink`]: an open channel with its two rings, raw; [`crate::kmcl`](crate) makes
//!   packets and requests of it.
//! - [`Gpadl`]: further memory shared on a channel.
//! - `Bus::attach_host` (feature `host`): offers of this kernel itself, beside the host's.
//!
//! # Contexts
//!
//! The interrupt entry calls [`Bus::acknowledge_interrupt`], which only marks. [`Bus::process`], in deferred work or in a
//! loop, takes signals and messages and calls the callbacks. Calls that wait (they take a [`Deadline`]) look at messages
//! themselves and never run callbacks, so everything also works by polling with interrupts off; every wait ends when its
//! channel is withdrawn. A processor other than the one that connected relies on that one to look at messages.
//!
//! # What the host cannot do
//!
//! Nothing that it sends makes these functions panic, allocate, or loop without bound: tables have the sizes of [`Config`],
//! each message is copied once and checked in the copy, answers that nobody waits for are counted and ignored, and
//! complaints in the log are limited. Memory that the host may still write to is never used for something else.
//!
//! Sources: the channel messages of Linux' `drivers/hv`, FreeBSD's `sys/dev/hyperv` and OpenVMM's `vmbus_core`, and what
//! hosts were seen to do.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

mod channel;
mod config;
mod connect;
mod counters;
mod debts;
mod dispatch;
mod error;
mod gpadl;
mod gpadls;
mod inner;
mod offer;
mod open;
mod owner;
mod parked;
mod process;
mod processor;
mod replies;
mod rings;
mod table;
#[cfg(test)]
mod tests;
mod unload;

use core::fmt;
use core::sync::atomic::Ordering;

pub use channel::{ChannelCore, ChannelCounters, ChannelSink, ChannelState, Incoming, Outgoing, Retargeted};
pub use config::{Config, OfferEvents};
pub use counters::Counters;
pub(crate) use counters::{Suppressed, Throttle};
pub use error::{ConnectError, Error};
pub use gpadl::{Gpadl, GpadlMemory};
pub use offer::{LOCAL_CHANNEL_IDS, Offer, Origin};
pub use open::OpenParameters;
pub use owner::Channel;
pub(crate) use parked::Kept;
pub use process::Progress;
pub use rings::{ChannelRing, RingPages};

use self::inner::{BusInner, Phase};
use crate::fallible::{Shared, try_box};
use crate::hyperv::{EndOfInterrupt, Hypervisor};
use crate::platform::ProcessorIndex;
use crate::protocol::contact::FeatureFlags;
use crate::protocol::{ChannelId, ConnectionId, Version};
use crate::{Deadline, Platform};

/// The connection to the host. A cheap handle: clones are the same bus.
#[derive(Clone)]
pub struct Bus(Shared<BusInner>);

impl Bus {
    /// Connects to the host: turns hypercalls on if they are not, and the current processor's interrupt controller, finds
    /// a version that both ends speak, and asks for the offers. Context: task, staying on its processor.
    ///
    /// Works from an unknown state: a connection of an earlier owner is taken over.
    ///
    /// Interrupts and [`Platform::schedule_deferred`] begin before this returns, and what they told is not told again. A system that
    /// does its work by them calls [`Bus::process`] once when its handlers can find the bus.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]; nothing is left on then. Pages that a silent host may have taken note of are lost.
    pub fn connect(
        hypervisor: &'static Hypervisor,
        platform: &'static dyn Platform,
        config: Config,
    ) -> Result<Self, ConnectError> {
        Self::connect_inner(hypervisor, platform, config)
    }

    /// Returns the version of the protocol that both ends speak.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.version()
    }

    /// Returns the optional parts that both ends use.
    #[must_use]
    pub fn features(&self) -> FeatureFlags {
        self.0.features()
    }

    /// Returns the connection to which messages are posted.
    #[must_use]
    pub fn message_connection(&self) -> ConnectionId {
        self.0.connection()
    }

    /// Returns true until the connection is ended.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.phase() == Phase::Connected
    }

    /// Returns what happened so far, in numbers.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.counters.snapshot()
    }

    /// Returns how many bytes of memory are shared with the host in GPADLs.
    #[must_use]
    pub fn shared_bytes(&self) -> u64 {
        self.0.gpadls.shared_bytes()
    }

    /// Returns the hypervisor.
    #[must_use]
    pub fn hypervisor(&self) -> &'static Hypervisor {
        self.0.hypervisor
    }

    /// Returns the platform.
    #[must_use]
    pub fn platform(&self) -> &'static dyn Platform {
        self.0.platform
    }

    // ----- offers

    /// Returns the offers that stand at this moment: the host's, then those of this kernel.
    #[must_use]
    pub fn offers(&self) -> Offers {
        Offers {
            bus: self.clone(),
            next: 0,
            #[cfg(feature = "host")]
            next_local: 0,
        }
    }

    /// Returns the offer of `channel`, if it stands.
    #[must_use]
    pub fn offer(&self, channel: ChannelId) -> Option<Offer> {
        #[cfg(feature = "host")]
        if channel.0 >= LOCAL_CHANNEL_IDS {
            return self.0.host.get()?.offers().find(|offer| offer.channel == channel);
        }
        self.0.table.shown(channel)
    }

    /// Returns the subchannels of the device of `primary` that stand at this moment.
    pub fn subchannels(&self, primary: &Offer) -> impl Iterator<Item = Offer> + use<> {
        let (origin, class, instance) = (primary.origin, primary.class, primary.instance);
        self.offers().filter(move |offer| {
            offer.origin == origin && offer.class == class && offer.instance == instance && offer.subchannel_index != 0
        })
    }

    /// Returns the oldest offer that came after those that `cursor` has seen and still stands, and moves the cursor
    /// behind it. Each observer has a cursor of its own and sees each offer once.
    pub fn next_offer(&self, cursor: &mut OfferCursor) -> Option<Offer> {
        if let Some(offer) = self.0.table.shown_after(cursor.sequence) {
            cursor.sequence = offer.sequence;
            return Some(offer);
        }
        #[cfg(feature = "host")]
        if let Some(host) = self.0.host.get() {
            // In their order.
            let offer = host.offers().find(|offer| offer.sequence > cursor.local)?;
            cursor.local = offer.sequence;
            return Some(offer);
        }
        None
    }

    /// Returns a number that changes whenever an offer comes or goes.
    #[must_use]
    pub fn offer_generation(&self) -> u64 {
        let generation = self.0.table.generation();
        #[cfg(feature = "host")]
        let generation = self.0.host.get().map_or(generation, |host| {
            // It was attached once, which is a change as well.
            generation.wrapping_add(host.generation()).wrapping_add(1)
        });
        generation
    }

    /// Returns true if all offers that there were at the time of the connection have come.
    #[must_use]
    pub fn has_all_offers(&self) -> bool {
        self.0.has_all_offers.load(Ordering::Acquire)
    }

    /// Waits until all offers that there were at the time of the connection have come. [`Bus::connect`] has waited for
    /// them for [`Config::offers_timeout`] already.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] or [`Error::Disconnected`].
    pub fn wait_for_offers(&self, deadline: Deadline) -> Result<(), Error> {
        self.0.wait_for_offers(deadline)
    }

    // ----- channels

    /// Opens a channel of the host: allocates its rings, shares them, and asks the other end. Context: task.
    ///
    /// Signals that come before the other end has answered are kept; the callbacks begin when it has agreed, possibly
    /// before this function returns.
    ///
    /// # Errors
    ///
    /// [`Error`]; nothing is left behind, but memory that the other end may have is kept from use until it is certain that
    /// it has not.
    pub fn open(
        &self,
        channel: ChannelId,
        parameters: &OpenParameters,
        sink: impl ChannelSink,
        deadline: Deadline,
    ) -> Result<Channel, Error> {
        self.open_channel(channel, parameters, try_box(sink)?, deadline)
    }

    // ----- processors and work

    /// Makes a further processor take part: turns its interrupt controller on. Context: task, on that processor and
    /// staying there. Again is nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcessor`] if `processor` is not the current one or not below [`Config::processors`],
    /// [`Error::Disconnected`], and what the interrupt controller may answer.
    pub fn processor_online(&self, processor: ProcessorIndex) -> Result<(), Error> {
        if self.0.processor(processor).is_none() || self.platform().current_processor() != processor {
            return Err(Error::NoSuchProcessor(processor));
        }
        if !self.is_connected() {
            return Err(Error::Disconnected);
        }
        if self.0.online_vp(processor).is_some() {
            return Ok(());
        }
        match self.0.enter_processor(processor) {
            Ok(_) => Ok(()),
            Err(ConnectError::Synic(error)) => Err(error.into()),
            Err(_) => Err(Error::NoSuchProcessor(processor)),
        }
    }

    /// Ends a processor's part. Context: task, on that processor. Its channels were moved with
    /// [`ChannelCore::retarget`].
    ///
    /// # Errors
    ///
    /// [`Error::ProcessorInUse`] if the host's messages or an open channel's interrupts go there,
    /// [`Error::NoSuchProcessor`] if it is not the current one.
    pub fn processor_offline(&self, processor: ProcessorIndex) -> Result<(), Error> {
        if self.platform().current_processor() != processor {
            return Err(Error::NoSuchProcessor(processor));
        }
        let Some(leaving) = self.0.processor(processor) else {
            return Err(Error::NoSuchProcessor(processor));
        };
        // SeqCst: see `ChannelCore::is_aimed_at`.
        leaving.is_leaving.store(true, Ordering::SeqCst);
        let is_needed = self.0.message_processor.load(Ordering::Relaxed) == processor.0
            || (0..self.0.table.len()).any(|place| {
                let mut is_target = false;
                self.0
                    .table
                    .with_open(place, |core| is_target = core.is_aimed_at(processor));
                is_target
            });
        if !is_needed {
            // What came until now is honoured.
            self.process(processor);
            self.0.leave_processor(processor);
        }
        leaving.is_leaving.store(false, Ordering::SeqCst);
        if is_needed {
            Err(Error::ProcessorInUse(processor))
        } else {
            Ok(())
        }
    }

    /// Returns the processor to which the host's messages go.
    #[must_use]
    pub fn message_processor(&self) -> ProcessorIndex {
        ProcessorIndex(self.0.message_processor.load(Ordering::Relaxed))
    }

    /// Returns who ends the interrupts of a processor; `None` if it takes no part. With [`EndOfInterrupt::Explicit`] the
    /// operating system's handler ends them at the local APIC, with [`EndOfInterrupt::Automatic`] nobody does.
    #[must_use]
    pub fn end_of_interrupt(&self, processor: ProcessorIndex) -> Option<EndOfInterrupt> {
        let processor = self.0.processor(processor)?;
        processor.with_synic(self.platform(), |synic| {
            synic.map(crate::hyperv::Synic::end_of_interrupt)
        })
    }

    /// Notes an interrupt of the bus and schedules the processor's work. Nothing more: no lock, no allocation, no
    /// callback. Context: the interrupt entry, on that processor.
    pub fn acknowledge_interrupt(&self, processor: ProcessorIndex) {
        self.0.mark(processor);
    }

    /// Does a processor's work: takes its signals, then its messages, and calls the callbacks that are due. Context:
    /// deferred work or task, on that processor; with interrupts on or off. A call while another one is under way for the
    /// same processor does nothing.
    ///
    /// Bounded: each channel's callback a few times, and so many messages; the rest is scheduled again.
    #[expect(clippy::must_use_candidate, reason = "called for its effects")]
    pub fn process(&self, processor: ProcessorIndex) -> Progress {
        let progress = self.0.process(processor);
        #[cfg(feature = "host")]
        if let Some(host) = self.0.host.get() {
            // What is left is scheduled again.
            host.process();
        }
        progress
    }

    /// Returns true if the connection ends or has ended, so far without the host's word that it has given up the guest's memory.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// Counts memory that no user gets back.
    pub(crate) fn note_lost(&self, blocks: u64) {
        self.0.counters.lost_blocks.add(blocks);
    }

    /// Looks at messages, as every wait does, and calls nobody.
    pub(crate) fn look_at_messages(&self) {
        self.0.pump();
    }

    /// Does the current processor's work, for a system that polls.
    #[expect(clippy::must_use_candidate, reason = "called for its effects")]
    pub fn poll(&self) -> Progress {
        self.process(self.platform().current_processor())
    }

    // ----- the end

    /// Ends the connection: all channels and GPADLs, the interrupt controllers of all processors. Nothing is posted
    /// between the request and the host's answer, for which this waits up to [`Config::unload_timeout`]; it may flush its
    /// disk caches meanwhile. Open channels are told as of a withdrawn offer. Hypercalls stay on: they belong to the
    /// operating system. Context: task.
    ///
    /// Before version 3.0 there is no such request: channels are closed and memory is taken back piece by piece, and the
    /// three pages of the contact are lost.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] without the host's word: what it may still use is lost. [`Error::ProcessorInUse`] if another
    /// processor's interrupt controller is still on. [`Error::Disconnected`] if the connection has ended already.
    pub fn disconnect(&self, deadline: Deadline) -> Result<(), Error> {
        self.0.disconnect(deadline)
    }

    /// Ends the connection in a crash, so that the host does not write to memory of the next system: takes no lock,
    /// allocates nothing, waits at most [`Config::emergency_timeout`], looks at every processor's slot. Works with any lock
    /// of the bus held, at most once. Returns true if the host has confirmed. Context: any; no other processor runs.
    #[must_use = "without the host's word its memory accesses may go on"]
    pub fn emergency_unload(&self) -> bool {
        self.0.emergency_unload()
    }

    // ----- this kernel's own offers

    /// Attaches a host inside this kernel: from now on its offers are the bus's as well. [`Bus::offers`] lists them,
    /// [`Config::offer_events`] is told of them, a driver that asks this bus finds them
    /// ([`kmcl::Channel::allocate_client`](crate::kmcl::Channel::allocate_client)), and [`Bus::process`] runs their callbacks.
    /// They do not end with the connection. Once for each bus; returns false if there is another one already.
    ///
    /// ```
    /// # use vmbus::bus::Bus;
    /// # fn example(bus: &Bus, platform: &'static dyn vmbus::Platform) -> Result<(), Box<dyn core::error::Error>> {
    /// let hypervisor = bus.hypervisor();
    /// let host = vmbus::host::Host::new(platform, || hypervisor.now())?;
    /// assert!(bus.attach_host(&host));
    /// // Whoever looks at the bus finds what is offered here.
    /// let service = vmbus::kmcl::Channel::allocate_server(&host)?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "host")]
    #[expect(clippy::must_use_candidate, reason = "most callers attach one")]
    pub fn attach_host(&self, host: &crate::host::Host) -> bool {
        let attached = self.0.host.call_once(|| host.clone());
        let is_it = Shared::is_same(&attached.inner, &host.inner);
        if is_it && let Some(events) = self.0.config.offer_events {
            host.tell(events);
            events.offers_changed();
        }
        is_it
    }

    /// Returns the host inside this kernel, if one is attached.
    #[cfg(feature = "host")]
    pub(crate) fn attached_host(&self) -> Option<&crate::host::Host> {
        self.0.host.get()
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The offers that stand while this iterates, each once.
#[derive(Clone, Debug)]
pub struct Offers {
    bus: Bus,
    next: usize,
    #[cfg(feature = "host")]
    next_local: usize,
}

impl Iterator for Offers {
    type Item = Offer;

    fn next(&mut self) -> Option<Offer> {
        if let Some((place, offer)) = self.bus.0.table.shown_from(self.next) {
            self.next = place.saturating_add(1);
            return Some(offer);
        }
        #[cfg(feature = "host")]
        if let Some(host) = self.bus.0.host.get() {
            let offer = host.offer_at(self.next_local)?;
            self.next_local = self.next_local.saturating_add(1);
            return Some(offer);
        }
        None
    }
}

/// How far an observer of offers has come. The default has seen none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfferCursor {
    sequence: u64,
    #[cfg(feature = "host")]
    local: u64,
}
