//! The two ends' ways to each other: providers, which find and make offers, and transports of open channels.

use alloc::boxed::Box;

use super::entry::Entry;
use super::{Host, rings};
use crate::fallible::{Shared, try_box};
use crate::kmcl::settings::Settings;
use crate::kmcl::transport::{
    Instance, OfferFacts, OpenRequest, Opened, Provider, ServerSink, Sink, Target, Transport,
};
use crate::kmcl::{Error, Gone, GpadlAccess, NtStatus};
use crate::memory::Mdl;
use crate::platform::Wait;
use crate::protocol::GpadlId;
use crate::sync::Lock;
use crate::{Deadline, Instant, Platform};

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

const fn facts(entry: &Entry) -> OfferFacts {
    OfferFacts {
        channel: entry.channel,
        instance: entry.instance,
        mmio_megabytes: entry.mmio_megabytes,
        user_defined: entry.user_defined,
    }
}

/// What a client finds offers with.
pub(super) struct ClientProvider {
    pub(super) host: Host,
}

impl ClientProvider {
    fn is_wanted(entry: &Entry, target: &Target) -> bool {
        match target.channel {
            Some(channel) => entry.channel == channel,
            None => {
                entry.class == target.class
                    && match target.instance {
                        Instance::Any => entry.is_free(),
                        Instance::Only(instance) => entry.instance == instance,
                    }
            }
        }
    }
}

impl Provider for ClientProvider {
    fn another(&self) -> Result<Box<dyn Provider>, Error> {
        let provider: Box<dyn Provider> = try_box(Self {
            host: self.host.clone(),
        })?;
        Ok(provider)
    }

    fn platform(&self) -> &'static dyn Platform {
        self.host.inner.platform
    }

    fn now(&self) -> Instant {
        self.host.now()
    }

    fn poll(&self) {
        self.host.run_servers();
    }

    fn open(&self, request: &OpenRequest, sink: Box<dyn Sink>, deadline: Deadline) -> Result<Opened, Error> {
        let host = &self.host;
        let until = deadline.resolve(host.now());
        let mut found = None;
        wait(
            host,
            until,
            || {
                host.run_servers();
            },
            || {
                found = host.find(|entry| Self::is_wanted(entry, &request.target) && entry.is_free());
                found.as_ref().is_some_and(|entry| entry.take())
            },
        );
        let entry = found.ok_or(Error::NoSuchOffer)?;
        let result = self.open_taken(&entry, request, sink, until);
        if result.is_err() {
            entry.set_client(None);
            entry.set_server_open(false);
            entry.give_back();
        }
        result
    }
}

impl ClientProvider {
    fn open_taken(
        &self,
        entry: &Shared<Entry>,
        request: &OpenRequest,
        sink: Box<dyn Sink>,
        until: Option<Instant>,
    ) -> Result<Opened, Error> {
        let host = &self.host;
        let (block, client, server) =
            rings::allocate(host.inner.platform, request.outgoing_pages, request.incoming_pages)?;
        entry.set_client(Some(Shared::try_new(sink)?));
        entry.set_rings(Some(block));
        let to_client: Box<dyn Transport> = try_box(ServerTransport {
            host: host.clone(),
            entry: entry.clone(),
        })?;
        let to_server: Box<dyn Transport> = try_box(ClientTransport {
            host: host.clone(),
            entry: entry.clone(),
        })?;
        let for_server = Opened {
            rings: server,
            transport: Shared::try_new(to_client)?,
            offer: facts(entry),
            is_inherited: false,
        };
        let for_client = Opened {
            rings: client,
            transport: Shared::try_new(to_server)?,
            offer: facts(entry),
            is_inherited: false,
        };
        let server_sink = entry.server().ok_or(Error::NoSuchOffer)?;
        entry.set_server_open(true);
        server_sink.opened(for_server, until).map_err(|error| match error {
            Error::OpenedFailed(status) => Error::Refused(status),
            Error::Gone(_) => Error::Gone(Gone::Rescinded),
            Error::TimedOut => Error::TimedOut,
            _ => Error::Refused(NtStatus::INVALID_DEVICE_STATE),
        })?;
        Ok(for_client)
    }
}

/// A client's way to its server.
struct ClientTransport {
    host: Host,
    entry: Shared<Entry>,
}

impl Transport for ClientTransport {
    fn signal(&self) {
        self.entry.signal_server();
    }

    fn schedule(&self) {
        self.entry.signal_client();
    }

    fn create_gpadl(&self, mdl: &Mdl, access: GpadlAccess, _: Deadline) -> Result<GpadlId, Error> {
        self.entry.share(&self.host, mdl.clone(), access)
    }

    fn delete_gpadl(&self, gpadl: GpadlId, deadline: Deadline) -> Result<(), Error> {
        let until = deadline.resolve(self.host.now());
        let mut outcome = Ok(false);
        wait(
            &self.host,
            until,
            || {
                self.host.run_servers();
            },
            || {
                outcome = self.entry.try_withdraw(gpadl);
                outcome != Ok(false)
            },
        );
        match outcome {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::TimedOut),
            Err(error) => Err(error),
        }
    }

    fn close(&self, deadline: Deadline) -> Result<(), Error> {
        let until = deadline.resolve(self.host.now());
        if self.entry.is_server_open()
            && let Some(server) = self.entry.server()
        {
            server.gone(Gone::Closed);
        } else {
            // There is none, or it has left the channel to the next one, which then finds it closed.
            self.entry.set_server_open(false);
        }
        let closed = wait(
            &self.host,
            until,
            || {
                self.host.run_servers();
            },
            || !self.entry.is_server_open(),
        );
        self.entry.withdraw_all();
        self.entry.set_client(None);
        self.entry.give_back();
        if closed { Ok(()) } else { Err(Error::TimedOut) }
    }
}

/// A server's way to its client.
struct ServerTransport {
    host: Host,
    entry: Shared<Entry>,
}

impl Transport for ServerTransport {
    fn signal(&self) {
        self.entry.signal_client();
    }

    fn schedule(&self) {
        self.entry.signal_server();
    }

    fn create_gpadl(&self, _: &Mdl, _: GpadlAccess, _: Deadline) -> Result<GpadlId, Error> {
        // Only the client's partition gives memory.
        Err(Error::WrongState)
    }

    fn delete_gpadl(&self, _: GpadlId, _: Deadline) -> Result<(), Error> {
        Err(Error::WrongState)
    }

    fn map_gpadl(&self, gpadl: GpadlId, access: GpadlAccess) -> Result<Mdl, Error> {
        self.entry.map(gpadl, access)
    }

    fn unmap_gpadl(&self, gpadl: GpadlId) -> Result<(), Error> {
        self.entry.unmap(gpadl)
    }

    fn lent_by_peer(&self, transaction_id: u64) -> Option<Mdl> {
        self.entry.client()?.lent(transaction_id)
    }

    fn close(&self, _: Deadline) -> Result<(), Error> {
        self.entry.set_server_open(false);
        let _ = &self.host;
        Ok(())
    }
}

/// What a server makes its offer with.
pub(super) struct ServerProvider {
    pub(super) host: Host,
    pub(super) entry: Lock<Option<Shared<Entry>>>,
}

impl Provider for ServerProvider {
    fn another(&self) -> Result<Box<dyn Provider>, Error> {
        let provider: Box<dyn Provider> = try_box(Self {
            host: self.host.clone(),
            entry: Lock::new(None),
        })?;
        Ok(provider)
    }

    fn platform(&self) -> &'static dyn Platform {
        self.host.inner.platform
    }

    fn now(&self) -> Instant {
        self.host.now()
    }

    fn poll(&self) {
        self.host.run_clients();
    }

    fn open(&self, _: &OpenRequest, _: Box<dyn Sink>, _: Deadline) -> Result<Opened, Error> {
        Err(Error::WrongState)
    }

    fn offer(&self, settings: &Settings, sink: Box<dyn ServerSink>) -> Result<(), Error> {
        let host = &self.host;
        let instance = match settings.target.instance {
            Instance::Only(instance) => instance,
            Instance::Any => super::server::instance_of(host),
        };
        let same = |entry: &Entry| entry.class == settings.target.class && entry.instance == instance;
        if let Some(entry) = host.find(same) {
            if entry.is_left() {
                return self.inherit(entry, sink);
            }
            return Err(Error::Refused(NtStatus::INVALID_DEVICE_STATE));
        }
        let entry = Shared::try_new(Entry::new(
            host.inner.platform,
            (host.new_channel_id(), settings.target.class, instance),
            settings.mmio_megabytes,
            settings.offer_data,
            Shared::try_new(sink)?,
        ))?;
        *self.entry.lock(host.inner.platform) = Some(entry.clone());
        if let Err(error) = host.publish(entry) {
            // The entry and the server hold each other.
            self.hand_over();
            return Err(error.into());
        }
        host.schedule();
        Ok(())
    }

    fn hand_over(&self) {
        let entry = self.entry.lock(self.host.inner.platform).take();
        if let Some(entry) = entry {
            entry.drop_server();
        }
    }

    fn revoke(&self) {
        let entry = self.entry.lock(self.host.inner.platform).take();
        if let Some(entry) = entry {
            entry.set_server_open(false);
            self.host.withdraw(&entry);
            // The client first: it asks the server nothing any more.
            if let Some(client) = entry.client() {
                client.gone(Gone::Rescinded);
            }
            entry.drop_server();
        }
    }
}

impl ServerProvider {
    /// Goes on with an offer that an earlier server left, and with the channel that its client has open.
    fn inherit(&self, entry: Shared<Entry>, sink: Box<dyn ServerSink>) -> Result<(), Error> {
        let host = &self.host;
        let sink = Shared::try_new(sink)?;
        entry.set_server(sink.clone());
        *self.entry.lock(host.inner.platform) = Some(entry.clone());
        let opened = match entry.rings() {
            Some(block) if entry.is_server_open() => self.reopen(&entry, &block, &sink),
            _ => Ok(()),
        };
        if opened.is_err() {
            self.hand_over();
        }
        opened
    }

    fn reopen(
        &self,
        entry: &Shared<Entry>,
        block: &rings::Block,
        sink: &Shared<Box<dyn ServerSink>>,
    ) -> Result<(), Error> {
        let to_client: Box<dyn Transport> = try_box(ServerTransport {
            host: self.host.clone(),
            entry: entry.clone(),
        })?;
        let opened = Opened {
            rings: block.attach_server()?,
            transport: Shared::try_new(to_client)?,
            offer: facts(entry),
            is_inherited: true,
        };
        sink.opened(opened, None)
    }
}
