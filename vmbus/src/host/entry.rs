//! One offer, and the channel that a client opened on it: [`Entry`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Host, Status};
use crate::Platform;
use crate::bus::Offer;
use crate::fallible::{ReservedVec, Shared, TryPush};
use crate::kmcl::transport::{ServerSink, Sink, UserDefined};
use crate::kmcl::{Error, GpadlAccess};
use crate::memory::Mdl;
use crate::protocol::{ChannelId, GpadlId, Guid};
use crate::sync::{Lock, Mark};

/// Memory that the client shares.
struct SharedMemory {
    id: GpadlId,
    mdl: Mdl,
    access: GpadlAccess,
    is_mapped: bool,
}

/// One of an offer's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Server,
    Client,
}

/// One offer.
pub(crate) struct Entry {
    pub(super) platform: &'static dyn Platform,
    pub(super) channel: ChannelId,
    pub(super) class: Guid,
    pub(super) instance: Guid,
    pub(super) mmio_megabytes: u16,
    pub(super) user_defined: UserDefined,
    /// A client has it: from before it asks until both ends have closed.
    is_taken: AtomicBool,
    is_server_open: AtomicBool,
    server: Lock<Option<Shared<Box<dyn ServerSink>>>>,
    client: Lock<Option<Shared<Box<dyn Sink>>>>,
    rings: Lock<Option<super::rings::Block>>,
    /// Which ends are signalled, by [`End`].
    signalled: [Mark; 2],
    /// Changes whenever another server or client is to be told of signals. It begins with the channel's number in its upper half,
    /// so that no two entries have the same.
    version: AtomicU64,
    memory: Lock<Vec<SharedMemory>>,
}

impl Entry {
    pub(super) fn new(
        platform: &'static dyn Platform,
        (channel, class, instance): (ChannelId, Guid, Guid),
        mmio_megabytes: u16,
        user_defined: UserDefined,
        server: Shared<Box<dyn ServerSink>>,
    ) -> Self {
        Self {
            platform,
            channel,
            class,
            instance,
            mmio_megabytes,
            user_defined,
            is_taken: AtomicBool::new(false),
            is_server_open: AtomicBool::new(false),
            server: Lock::new_on(platform, Some(server)),
            client: Lock::new_on(platform, None),
            rings: Lock::new_on(platform, None),
            signalled: [(); 2].map(|()| Mark::new(platform.callers())),
            version: AtomicU64::new(u64::from(channel.0) << 32),
            memory: Lock::new_on(platform, Vec::new()),
        }
    }

    pub(super) fn offer(&self) -> Offer {
        Offer {
            mmio_megabytes: self.mmio_megabytes,
            user_defined: self.user_defined.0,
            ..Offer::local(self.channel, self.class, self.instance)
        }
    }

    /// Returns what both ends have done; `None` while no server has the offer.
    pub(super) fn status(&self) -> Option<Status> {
        let server = self.server()?;
        let client = self.client();
        Some(Status {
            offer: self.offer(),
            name: server.name(),
            server: server.counters(),
            client: client.as_ref().map(|client| client.counters()),
            client_gone: client.and_then(|client| client.ended()),
        })
    }

    pub(super) fn is_free(&self) -> bool {
        !self.is_taken.load(Ordering::Acquire)
    }

    /// Takes the offer for a client.
    pub(super) fn take(&self) -> bool {
        self.is_taken
            .compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    pub(super) fn give_back(&self) {
        self.is_taken.store(false, Ordering::Release);
    }

    pub(super) fn server(&self) -> Option<Shared<Box<dyn ServerSink>>> {
        self.server.lock(self.platform).clone()
    }

    pub(super) fn client(&self) -> Option<Shared<Box<dyn Sink>>> {
        self.client.lock(self.platform).clone()
    }

    /// Returns the memory that a packet of the client lends. Asked under the lock that keeps the client: it looks into its table,
    /// under a lock of its own, and calls nobody.
    pub(super) fn lent_by_client(&self, transaction_id: u64) -> Option<Mdl> {
        self.client.lock(self.platform).as_ref()?.lent(transaction_id)
    }

    pub(super) fn rings(&self) -> Option<super::rings::Block> {
        self.rings.lock(self.platform).clone()
    }

    pub(super) fn set_rings(&self, rings: Option<super::rings::Block>) {
        let old = core::mem::replace(&mut *self.rings.lock(self.platform), rings);
        drop(old);
    }

    /// Returns true if its server has left it to the next one.
    pub(super) fn is_left(&self) -> bool {
        self.server.lock(self.platform).is_none()
    }

    pub(super) fn set_server(&self, server: Shared<Box<dyn ServerSink>>) {
        let old = self.server.lock(self.platform).replace(server);
        self.version.fetch_add(1, Ordering::Release);
        drop(old);
    }

    pub(super) fn set_client(&self, client: Option<Shared<Box<dyn Sink>>>) {
        if client.is_none() {
            self.set_rings(None);
        }
        let old = core::mem::replace(&mut *self.client.lock(self.platform), client);
        self.version.fetch_add(1, Ordering::Release);
        // The other end's code may run in its drop: not under the lock.
        drop(old);
    }

    /// The server is gone for good.
    pub(super) fn drop_server(&self) {
        let old = self.server.lock(self.platform).take();
        self.version.fetch_add(1, Ordering::Release);
        drop(old);
    }

    pub(super) fn is_server_open(&self) -> bool {
        self.is_server_open.load(Ordering::Acquire)
    }

    pub(super) fn set_server_open(&self, is_open: bool) {
        self.is_server_open.store(is_open, Ordering::Release);
    }

    const fn signalled(&self, end: End) -> &Mark {
        let [server, client] = &self.signalled;
        match end {
            End::Server => server,
            End::Client => client,
        }
    }

    /// Marks an end as signalled.
    pub(super) fn mark(&self, end: End) {
        self.signalled(end).set();
    }

    pub(super) fn is_marked(&self, end: End) -> bool {
        self.signalled(end).is_set()
    }

    /// Takes the mark of an end that is to be run. One step: what the signaller wrote before it set the mark is visible.
    pub(super) fn take_mark(&self, end: End) -> bool {
        self.signalled(end).take()
    }

    /// Changes with the ends that [`server`](Self::server) and [`client`](Self::client) return.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn share(&self, host: &Host, mdl: Mdl, access: GpadlAccess) -> Result<GpadlId, Error> {
        let id = GpadlId(host.new_gpadl_id());
        self.memory.lock(self.platform).try_push(SharedMemory {
            id,
            mdl,
            access,
            is_mapped: false,
        })?;
        Ok(id)
    }

    /// Withdraws shared memory; `Ok(false)` while the server has it mapped.
    pub(super) fn try_withdraw(&self, id: GpadlId) -> Result<bool, Error> {
        let mut memory = self.memory.lock(self.platform);
        let index = memory
            .iter()
            .position(|shared| shared.id == id)
            .ok_or(Error::UnknownGpadl)?;
        if memory.get(index).is_some_and(|shared| shared.is_mapped) {
            return Ok(false);
        }
        let gone = memory.swap_take(index);
        drop(memory);
        drop(gone);
        Ok(true)
    }

    pub(super) fn withdraw_all(&self) {
        let gone = core::mem::take(&mut *self.memory.lock(self.platform));
        drop(gone);
    }

    pub(super) fn map(&self, id: GpadlId, access: GpadlAccess) -> Result<Mdl, Error> {
        let mut memory = self.memory.lock(self.platform);
        let shared = memory
            .iter_mut()
            .find(|shared| shared.id == id)
            .ok_or(Error::UnknownGpadl)?;
        if shared.is_mapped {
            return Err(Error::AlreadyMapped);
        }
        if shared.access == GpadlAccess::ReadOnly && access == GpadlAccess::ReadWrite {
            return Err(Error::ReadOnly);
        }
        shared.is_mapped = true;
        Ok(shared.mdl.clone())
    }

    pub(super) fn unmap(&self, id: GpadlId) -> Result<(), Error> {
        let mut memory = self.memory.lock(self.platform);
        let shared = memory.iter_mut().find(|shared| shared.id == id && shared.is_mapped);
        shared.ok_or(Error::UnknownGpadl)?.is_mapped = false;
        Ok(())
    }
}
