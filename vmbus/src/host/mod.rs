//! The offering side: a host inside this kernel, so that one part of it can offer a channel to another.
//!
//! A [`Host`] keeps offers. A server endpoint is made with [`Channel::allocate_server`](crate::kmcl::Channel), initialised and
//! enabled like a client; enabling publishes the offer. A client finds it with
//! [`Channel::allocate_client`](crate::kmcl::Channel::allocate_client)`(&host)` and opens it, and from then on both ends run the
//! same channel code, over two real rings in pages from the platform, as a guest and its host do. Signals only mark the other
//! end; its callbacks run when [`Host::process`] is called in the deferred-work context, or while the other end waits.
//!
//! What a client lends with a packet is found by the packet's id in the client's table, and compared with the page list that
//! came through the ring; a server never touches memory because of a number that it read. Neighbours: [`crate::kmcl`], whose
//! channel code this is a provider for; [`crate::ring`]. Source: the public documentation of KMCL's server functions.

mod entry;
mod links;
mod rings;
mod server;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use self::entry::Entry;
use crate::fallible::{OutOfMemory, Shared, TryPush, try_box};
use crate::kmcl::Error;
use crate::kmcl::transport::{OfferSource, Provider, ProviderHandle, sealed};
use crate::platform::ProcessorIndex;
use crate::protocol::{ChannelId, Guid};
use crate::sync::Lock;
use crate::{Instant, Platform};

/// The first channel number of this kind of host: far above those of a real one.
const FIRST_CHANNEL: u32 = 0x8000_0000;

pub(crate) struct Inner {
    pub(crate) platform: &'static dyn Platform,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    entries: Lock<Vec<Shared<Entry>>>,
    next_channel: AtomicU32,
    next_gpadl: AtomicU32,
}

/// A host inside this kernel. Clones are handles of the same one.
#[derive(Clone)]
pub struct Host {
    pub(crate) inner: Shared<Inner>,
}

impl Host {
    /// Makes a host without offers; `clock` tells the time, on the clock that deadlines are meant on.
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
                entries: Lock::new(Vec::new()),
                next_channel: AtomicU32::new(FIRST_CHANNEL),
                next_gpadl: AtomicU32::new(1),
            })?,
        })
    }

    /// Runs the callbacks of all ends that were signalled, until none is; returns true if there were any. Context: deferred
    /// work, or the main loop.
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

    /// Returns class and instance of each offer.
    pub fn for_each_offer(&self, mut each: impl FnMut(ChannelId, Guid, Guid)) {
        let mut index = 0;
        while let Some(entry) = self.entry(index) {
            each(entry.channel, entry.class, entry.instance);
            index = index.saturating_add(1);
        }
    }

    fn entry(&self, index: usize) -> Option<Shared<Entry>> {
        self.inner.entries.lock(self.inner.platform).get(index).cloned()
    }

    /// Returns the first entry from `index` on that `wanted` accepts, and the index behind it.
    fn next_entry(&self, index: usize, wanted: impl Fn(&Entry) -> bool) -> Option<(usize, Shared<Entry>)> {
        let entries = self.inner.entries.lock(self.inner.platform);
        let found = (index..).zip(entries.get(index..)?).find(|(_, entry)| wanted(entry));
        found.map(|(at, entry)| (at.saturating_add(1), entry.clone()))
    }

    /// Runs the server ends that were signalled.
    pub(crate) fn run_servers(&self) -> bool {
        let (mut index, mut any) = (0, false);
        while let Some((next, entry)) = self.next_entry(index, Entry::is_server_signalled) {
            any |= entry.run_server();
            index = next;
        }
        any
    }

    /// Runs the client ends that were signalled.
    pub(crate) fn run_clients(&self) -> bool {
        let (mut index, mut any) = (0, false);
        while let Some((next, entry)) = self.next_entry(index, Entry::is_client_signalled) {
            any |= entry.run_client();
            index = next;
        }
        any
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

    pub(crate) fn publish(&self, entry: Shared<Entry>) -> Result<(), OutOfMemory> {
        self.inner.entries.lock(self.inner.platform).try_push(entry)
    }

    pub(crate) fn withdraw(&self, entry: &Shared<Entry>) {
        self.inner
            .entries
            .lock(self.inner.platform)
            .retain(|other| !Shared::is_same(other, entry));
    }

    /// Returns the first offer that `wanted` accepts.
    pub(crate) fn find(&self, mut wanted: impl FnMut(&Entry) -> bool) -> Option<Shared<Entry>> {
        self.inner
            .entries
            .lock(self.inner.platform)
            .iter()
            .find(|entry| wanted(entry))
            .cloned()
    }

    /// Has `process` called soon.
    pub(crate) fn schedule(&self) {
        self.inner.platform.schedule_deferred(ProcessorIndex(0));
    }
}

/// How often ends that signal each other are run in one `process`.
const ROUNDS: usize = 64;

impl sealed::Source for Host {
    fn provider(&self) -> Result<ProviderHandle, Error> {
        let provider: Box<dyn Provider> = try_box(links::ClientProvider { host: self.clone() })?;
        Ok(ProviderHandle(provider))
    }
}

impl OfferSource for Host {}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Host").finish_non_exhaustive()
    }
}
