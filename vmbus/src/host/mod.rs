//! The offering side: a host inside this kernel, so that one part of it can offer a channel to another.
//!
//! A [`Host`] keeps offers. A server endpoint is made with [`Channel::allocate_server`](crate::kmcl::Channel), initialised and
//! enabled like a client; enabling publishes the offer. A client finds it with
//! [`Channel::allocate_client`](crate::kmcl::Channel::allocate_client)`(&host)` and opens it, and from then on both ends run the
//! same channel code, over two real rings in pages from the platform, as a guest and its host do. Signals only mark the other
//! end; its callbacks run when [`Host::process`] is called in the deferred-work context, or while the other end waits.
//!
//! What a client lends with a packet is found by the packet's id in the client's table, and compared with the page list that
//! came through the ring; a server never touches memory because of a number that it read. [`storage`] is a
//! server that comes with the crate. Neighbours: [`crate::kmcl`], whose channel code this is a provider for; [`crate::ring`]. Source: the public documentation of KMCL's server functions.
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

mod entry;
mod links;
mod list;
mod misbehave;
mod provider;
mod rings;
mod server;
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        reason = "what storage drivers are tested against, with disks of the caller's own; no host reaches it"
    )
)]
pub mod storage;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use self::entry::{End, Entry};
use self::list::Listed;
pub use self::misbehave::Misbehaviour;
pub(crate) use self::provider::Taken;
use crate::bus::{LOCAL_CHANNEL_IDS, Offer, OfferEvents};
use crate::fallible::{OutOfMemory, Shared, try_box};
use crate::kmcl::settings::Name;
use crate::kmcl::transport::{OfferSource, ProviderHandle, sealed};
use crate::kmcl::{Counters, Error, Gone, Side};
use crate::platform::{ProcessorIndex, Wait};
use crate::protocol::ChannelId;
use crate::sync::{Lock, Mark};
use crate::{Instant, Platform};

pub(crate) struct Inner {
    pub(crate) platform: &'static dyn Platform,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    entries: Lock<Vec<Listed>>,
    /// Whether ends of this kind are signalled, 1 or 0: only then the list is looked at.
    pending: [Mark; 2],
    next_channel: AtomicU32,
    next_gpadl: AtomicU32,
    generation: AtomicU64,
    events: Lock<Option<&'static dyn OfferEvents>>,
}

impl Inner {
    const fn pending(&self, end: End) -> &Mark {
        let [server, client] = &self.pending;
        match end {
            End::Server => server,
            End::Client => client,
        }
    }
}

/// A host inside this kernel. Clones are handles of the same one.
#[derive(Clone)]
pub struct Host {
    pub(crate) inner: Shared<Inner>,
}

impl Host {
    /// Makes a host without offers; `clock` tells the time, on the clock that deadlines are meant on.
    ///
    /// ```
    /// use vmbus::{Instant, Platform, host::Host};
    /// # fn example(platform: &'static dyn Platform, reference_time: fn() -> u64) -> Result<Host, vmbus::fallible::OutOfMemory> {
    /// // `reference_time` counts in units of 100 ns.
    /// let host = Host::new(platform, move || Instant::from_reference_units(reference_time()))?;
    /// # Ok(host)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(
        platform: &'static dyn Platform,
        clock: impl Fn() -> Instant + Send + Sync + 'static,
    ) -> Result<Self, OutOfMemory> {
        let clock: Box<dyn Fn() -> Instant + Send + Sync> = try_box(clock)?;
        Ok(Self {
            inner: Shared::try_new(Inner {
                platform,
                clock,
                entries: Lock::new_on(platform, Vec::new()),
                pending: [(); 2].map(|()| Mark::new(platform.callers())),
                next_channel: AtomicU32::new(LOCAL_CHANNEL_IDS),
                next_gpadl: AtomicU32::new(1),
                generation: AtomicU64::new(0),
                events: Lock::new_on(platform, None),
            })?,
        })
    }

    pub(crate) fn platform(&self) -> &'static dyn Platform {
        self.inner.platform
    }

    /// Runs the callbacks of all ends that were signalled, until none is; returns true if there were any. Context: deferred
    /// work, or the main loop.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.send(b"notice")?;
    /// assert!(both.host().process(), "the server's callback has run");
    /// assert_eq!(both.server().counters().packets_processed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    #[expect(clippy::must_use_candidate, reason = "most callers come again anyway")]
    pub fn process(&self) -> bool {
        let mut any = false;
        for _ in 0..ROUNDS {
            // Not short-circuited: both sides get their turn.
            let servers = self.run_servers();
            let clients = self.run_clients();
            if !servers && !clients {
                return any;
            }
            any = true;
        }
        // Two ends that keep each other busy: others get their turn, and these go on next time.
        self.inner.platform.schedule_deferred(ProcessorIndex(0));
        any
    }

    /// Returns the offers that stand at this moment.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// for offer in both.host().offers() {
    ///     log::info!("{offer}");
    ///     assert_eq!(offer.class, Loopback::CLASS);
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    pub fn offers(&self) -> impl Iterator<Item = Offer> + use<> {
        let host = self.clone();
        (0..).map_while(move |index| host.offer_at(index))
    }

    pub(crate) fn offer_at(&self, index: usize) -> Option<Offer> {
        Some(self.entry(index)?.offer())
    }

    /// Returns what the two ends of each offer's channel have done, for a status table.
    ///
    /// ```
    /// # fn example(host: &vmbus::host::Host) {
    /// for status in host.statuses() {
    ///     let sent = status.server.packets_sent;
    ///     log::info!("{}: {sent} packets sent, open: {}", status.name(), status.client.is_some());
    /// }
    /// # }
    /// ```
    pub fn statuses(&self) -> impl Iterator<Item = Status> + use<> {
        let host = self.clone();
        (0..)
            .map_while(move |index| host.entry(index))
            .filter_map(|entry| entry.status())
    }

    /// Returns the number that changes whenever an offer comes or goes.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Has `events` told when offers come or go.
    pub(crate) fn tell(&self, events: &'static dyn OfferEvents) {
        *self.inner.events.lock(self.inner.platform) = Some(events);
    }

    fn changed(&self) {
        self.inner.generation.fetch_add(1, Ordering::AcqRel);
        let events = *self.inner.events.lock(self.inner.platform);
        if let Some(events) = events {
            events.offers_changed();
        }
    }

    /// Marks an end, whose callbacks run in the next `process`.
    fn signal(&self, entry: &Entry, end: End) {
        entry.mark(end);
        // Behind it: who takes this one finds that one.
        self.inner.pending(end).set();
        self.schedule();
    }

    pub(crate) fn now(&self) -> Instant {
        (self.inner.clock)()
    }

    pub(crate) fn new_channel_id(&self) -> ChannelId {
        ChannelId(self.inner.next_channel.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn new_gpadl_id(&self) -> u32 {
        self.inner.next_gpadl.fetch_add(1, Ordering::Relaxed)
    }

    /// Has `process` called soon.
    pub(crate) fn schedule(&self) {
        self.inner.platform.schedule_deferred(ProcessorIndex(0));
    }
}

/// What the two ends of one offer's channel have done: see [`Host::statuses`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The offer.
    pub offer: Offer,
    name: Name,
    /// The server's end, over all its clients.
    pub server: Counters,
    /// The client's end, while there is one.
    pub client: Option<Counters>,
    /// Why the client's end has no channel any more, though its driver still has it.
    pub client_gone: Option<Gone>,
}

impl Status {
    /// Returns the name that the server gave the channel; empty if it gave none.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// let both = Loopback::with(|server| server.init_set_friendly_name("clock"))?;
    /// assert_eq!(both.host().statuses().next().unwrap().name(), "clock");
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// Waits until `ready`, running `run` between looks.
fn wait(host: &Host, until: Option<Instant>, mut run: impl FnMut(), mut ready: impl FnMut() -> bool) -> bool {
    let mut look = || {
        if ready() {
            return true;
        }
        run();
        ready()
    };
    let outcome = host
        .inner
        .platform
        .wait(&mut Wait::new(&mut look, &|| host.now(), until));
    outcome.is_ok()
}

/// How often ends that signal each other are run in one `process`.
const ROUNDS: usize = 64;

impl sealed::Source for Host {
    fn provider(&self) -> Result<ProviderHandle, Error> {
        Ok(ProviderHandle(provider::HostProvider::boxed(self, Side::Client)?))
    }
}

impl OfferSource for Host {
    fn platform(&self) -> &'static dyn Platform {
        self.inner.platform
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Host").finish_non_exhaustive()
    }
}
