//! The host's list of offers, and running the ends that were signalled: [`Listed`].
//!
//! An end runs outside the lock of the list, so whoever runs it owns it meanwhile. To count owners up and down at each run would
//! cost more than the run; so the list keeps an owner of each end for whoever runs it next. It is taken out for the run and put
//! back behind it, unless the offer has another end by then. Who finds it taken out, on another processor or within the run,
//! becomes an owner of its own.

use alloc::boxed::Box;

use super::Host;
use super::entry::{End, Entry};
use crate::fallible::{OutOfMemory, Shared, TryPush};
use crate::kmcl::transport::{ServerSink, Sink};

/// An owner of an end, for whoever runs it next.
struct Runner<S: ?Sized> {
    /// The entry's version when it was made.
    version: u32,
    sink: Shared<Box<S>>,
}

/// An offer in the list.
pub(super) struct Listed {
    entry: Shared<Entry>,
    server: Option<Runner<dyn ServerSink>>,
    client: Option<Runner<dyn Sink>>,
}

/// What is run at one of the two ends.
trait Runs {
    const END: End;
    fn place(listed: &mut Listed) -> &mut Option<Runner<Self>>;
    fn find(entry: &Entry) -> Option<Shared<Box<Self>>>;
    fn run(&self);
}

impl Runs for dyn ServerSink {
    const END: End = End::Server;
    fn place(listed: &mut Listed) -> &mut Option<Runner<Self>> {
        &mut listed.server
    }
    fn find(entry: &Entry) -> Option<Shared<Box<Self>>> {
        entry.server()
    }
    fn run(&self) {
        self.signalled();
    }
}

impl Runs for dyn Sink {
    const END: End = End::Client;
    fn place(listed: &mut Listed) -> &mut Option<Runner<Self>> {
        &mut listed.client
    }
    fn find(entry: &Entry) -> Option<Shared<Box<Self>>> {
        entry.client()
    }
    fn run(&self) {
        self.signalled();
    }
}

impl Host {
    /// Runs the server ends that were signalled.
    #[inline]
    pub(crate) fn run_servers(&self) -> bool {
        self.is_pending(End::Server) && self.run_all::<dyn ServerSink>()
    }

    /// Runs the client ends that were signalled.
    #[inline]
    pub(crate) fn run_clients(&self) -> bool {
        self.is_pending(End::Client) && self.run_all::<dyn Sink>()
    }

    #[inline]
    fn is_pending(&self, end: End) -> bool {
        self.inner.pending(end).load() == 1
    }

    fn run_all<S: Runs + ?Sized>(&self) -> bool {
        // One step: what is marked behind it is marked for the next round.
        let pending = self.inner.pending(S::END);
        if pending.compare_exchange(1, 0).is_err() {
            return false;
        }
        let mut any = false;
        let mut index = 0;
        let mut entries = self.inner.entries.lock(self.inner.platform);
        while let Some(listed) = entries.get_mut(index) {
            index = index.saturating_add(1);
            let Some(runner) = Self::take_runner::<S>(listed) else {
                continue;
            };
            let channel = listed.entry.channel;
            if let Some(rest @ [_, ..]) = entries.get(index..)
                && rest.iter().any(|listed| listed.entry.is_marked(S::END))
            {
                // Found by whoever looks meanwhile, on another processor or within the run.
                pending.store(1);
            }
            drop(entries);
            any = true;
            runner.sink.run();
            entries = self.inner.entries.lock(self.inner.platform);
            if let Some(listed) = entries.get_mut(index.wrapping_sub(1))
                && listed.entry.channel == channel
                && listed.entry.version() == runner.version
                && S::place(listed).is_none()
            {
                *S::place(listed) = Some(runner);
            } else {
                // Nobody wants it any more: the driver's code may run in its drop, so not under the lock.
                drop(entries);
                drop(runner);
                entries = self.inner.entries.lock(self.inner.platform);
            }
        }
        any
    }

    /// Takes an end that was signalled out of the list.
    fn take_runner<S: Runs + ?Sized>(listed: &mut Listed) -> Option<Runner<S>> {
        if !listed.entry.take_mark(S::END) {
            return None;
        }
        let version = listed.entry.version();
        let kept = S::place(listed);
        if kept.as_ref().is_some_and(|kept| kept.version == version) {
            kept.take()
        } else {
            // Taken out, or old: whoever has changed the entry is about to take it from here.
            S::find(&listed.entry).map(|sink| Runner { version, sink })
        }
    }

    /// Gives the offer another server.
    pub(super) fn set_server(&self, entry: &Shared<Entry>, server: Shared<Box<dyn ServerSink>>) {
        entry.set_server(server);
        self.forget(entry);
    }

    /// The offer's server is gone for good, or leaves it to the next one.
    pub(super) fn drop_server(&self, entry: &Shared<Entry>) {
        entry.drop_server();
        self.forget(entry);
    }

    /// Gives the offer another client, or none.
    pub(super) fn set_client(&self, entry: &Shared<Entry>, client: Option<Shared<Box<dyn Sink>>>) {
        entry.set_client(client);
        self.forget(entry);
    }

    /// Lets go of an offer's old ends.
    fn forget(&self, entry: &Shared<Entry>) {
        let mut old = (None, None);
        let mut entries = self.inner.entries.lock(self.inner.platform);
        if let Some(listed) = entries.iter_mut().find(|listed| Shared::is_same(&listed.entry, entry)) {
            old = (listed.server.take(), listed.client.take());
        }
        drop(entries);
        drop(old);
    }

    pub(crate) fn publish(&self, entry: Shared<Entry>) -> Result<(), OutOfMemory> {
        self.inner.entries.lock(self.inner.platform).try_push(Listed {
            entry,
            server: None,
            client: None,
        })?;
        self.changed();
        Ok(())
    }

    pub(crate) fn withdraw(&self, entry: &Shared<Entry>) {
        let mut entries = self.inner.entries.lock(self.inner.platform);
        let at = entries.iter().position(|other| Shared::is_same(&other.entry, entry));
        // In its place and order: the others may be run by their index.
        let gone = at.map(|at| entries.remove(at));
        drop(entries);
        drop(gone);
        self.changed();
    }

    pub(super) fn entry(&self, index: usize) -> Option<Shared<Entry>> {
        let entries = self.inner.entries.lock(self.inner.platform);
        entries.get(index).map(|listed| listed.entry.clone())
    }

    /// Returns the first offer that `wanted` accepts.
    pub(crate) fn find(&self, mut wanted: impl FnMut(&Entry) -> bool) -> Option<Shared<Entry>> {
        let entries = self.inner.entries.lock(self.inner.platform);
        let found = entries.iter().find(|listed| wanted(&listed.entry));
        found.map(|listed| listed.entry.clone())
    }
}
