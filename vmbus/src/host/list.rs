//! The host's list of offers, and running the ends that were signalled: [`Listed`].
//!
//! An end runs outside the lock of the list, so whoever runs it owns it meanwhile. To count owners up and down at each run would
//! cost more than the run; so the list keeps an owner of each end for whoever runs it next. It is taken out for the run and put
//! back behind it, unless the offer has another end by then. Who finds it taken out, on another processor or within the run,
//! becomes an owner of its own.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::Host;
use super::entry::{End, Entry};
use crate::fallible::{OutOfMemory, ReservedVec, Shared, TryPush};
use crate::kmcl::transport::{ServerSink, Sink};
use crate::sync::LockGuard;

/// An owner of an end, for whoever runs it next.
struct Runner<S: ?Sized> {
    /// The entry's version when it was made; no other entry has the same.
    version: u64,
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
    #[inline]
    fn entries(&self) -> LockGuard<'_, Vec<Listed>> {
        self.inner.entries.lock_on(|| self.inner.platform)
    }

    /// Runs the server ends that were signalled.
    #[inline]
    pub(crate) fn run_servers(&self) -> bool {
        self.inner.pending(End::Server).take() && self.run_all::<dyn ServerSink>()
    }

    /// Runs the client ends that were signalled.
    #[inline]
    pub(crate) fn run_clients(&self) -> bool {
        self.inner.pending(End::Client).take() && self.run_all::<dyn Sink>()
    }

    /// Runs all that are marked. What is marked meanwhile behind the place is run as well, what is marked in front of it by the
    /// next call.
    #[inline(never)]
    fn run_all<S: Runs + ?Sized>(&self) -> bool {
        let mut any = false;
        let mut index = 0;
        let mut entries = self.entries();
        while let Some(listed) = entries.get_mut(index) {
            index = index.saturating_add(1);
            let Some(runner) = Self::take_runner::<S>(listed) else {
                continue;
            };
            if let Some(rest @ [_, ..]) = entries.get(index..)
                && rest.iter().any(|listed| listed.entry.is_marked(S::END))
            {
                // Found by whoever looks meanwhile, on another processor or within the run.
                self.inner.pending(S::END).set();
            }
            drop(entries);
            any = true;
            runner.sink.run();
            entries = self.entries();
            let listed = entries.get_mut(index.wrapping_sub(1));
            if let Some(listed) = listed.filter(|listed| listed.entry.version() == runner.version)
                && let place @ None = S::place(listed)
            {
                *place = Some(runner);
            } else {
                // Nobody wants it any more: the driver's code may run in its drop, so not under the lock.
                drop(entries);
                drop(runner);
                entries = self.entries();
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
        let mut entries = self.entries();
        if let Some(listed) = entries.iter_mut().find(|listed| Shared::is_same(&listed.entry, entry)) {
            old = (listed.server.take(), listed.client.take());
        }
        drop(entries);
        drop(old);
    }

    pub(crate) fn publish(&self, entry: Shared<Entry>) -> Result<(), OutOfMemory> {
        self.entries().try_push(Listed {
            entry,
            server: None,
            client: None,
        })?;
        self.changed();
        Ok(())
    }

    pub(crate) fn withdraw(&self, entry: &Shared<Entry>) {
        let mut entries = self.entries();
        let at = entries.iter().position(|other| Shared::is_same(&other.entry, entry));
        // In its place and order: the others may be run by their index.
        let gone = at.and_then(|at| entries.take_at(at));
        drop(entries);
        drop(gone);
        self.changed();
    }

    pub(super) fn entry(&self, index: usize) -> Option<Shared<Entry>> {
        let entries = self.entries();
        entries.get(index).map(|listed| listed.entry.clone())
    }

    /// Returns the first offer that `wanted` accepts.
    pub(crate) fn find(&self, mut wanted: impl FnMut(&Entry) -> bool) -> Option<Shared<Entry>> {
        let entries = self.entries();
        let found = entries.iter().find(|listed| wanted(&listed.entry));
        found.map(|listed| listed.entry.clone())
    }
}
