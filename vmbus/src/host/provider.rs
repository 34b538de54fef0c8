//! How channels come about: [`HostProvider`], which finds an offer for a client and makes one for a server.

use alloc::boxed::Box;

use super::entry::Entry;
use super::links::{ClientTransport, ServerTransport};
use super::{Host, rings, wait};
use crate::fallible::{Shared, try_box};
use crate::kmcl::settings::Settings;
use crate::kmcl::transport::{
    Instance, OfferFacts, OpenRequest, Opened, Provider, ServerSink, Sink, Target, Transport,
};
use crate::kmcl::{Error, Gone, NtStatus, Side};
use crate::sync::Lock;
use crate::{Deadline, Instant, Platform};

const fn facts(entry: &Entry) -> OfferFacts {
    OfferFacts {
        channel: entry.channel,
        instance: entry.instance,
        mmio_megabytes: entry.mmio_megabytes,
        user_defined: entry.user_defined,
    }
}

/// One end's way to the offers.
pub(super) struct HostProvider {
    host: Host,
    side: Side,
    /// A server's offer, while it stands.
    entry: Lock<Option<Shared<Entry>>>,
}

impl HostProvider {
    pub(super) fn boxed(host: &Host, side: Side) -> Result<Box<dyn Provider>, Error> {
        let provider: Box<dyn Provider> = try_box(Self {
            host: host.clone(),
            side,
            entry: Lock::new(None),
        })?;
        Ok(provider)
    }

    /// Goes on with an offer that an earlier server left, and with the channel that its client has open.
    fn inherit(&self, entry: Shared<Entry>, sink: Box<dyn ServerSink>) -> Result<(), Error> {
        let host = &self.host;
        let sink = Shared::try_new(sink)?;
        host.set_server(&entry, sink.clone());
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

impl Provider for HostProvider {
    fn another(&self) -> Result<Box<dyn Provider>, Error> {
        Self::boxed(&self.host, self.side)
    }

    fn platform(&self) -> &'static dyn Platform {
        self.host.inner.platform
    }

    fn now(&self) -> Instant {
        self.host.now()
    }

    fn poll(&self) {
        // The other end's turn: never a callback of one's own.
        match self.side {
            Side::Client => self.host.run_servers(),
            Side::Server => self.host.run_clients(),
        };
    }

    fn open(&self, request: &OpenRequest, sink: Box<dyn Sink>, deadline: Deadline) -> Result<Opened, Error> {
        let host = &self.host;
        let until = deadline.resolve(host.now());
        let mut taken = None;
        wait(
            host,
            until,
            || {
                host.run_servers();
            },
            || {
                taken = host.take(&request.target);
                taken.is_some()
            },
        );
        let taken = taken.ok_or(Error::NoSuchOffer)?;
        host.open(taken, request, Shared::try_new(sink)?, until)
    }

    fn offer(&self, settings: &Settings, sink: Box<dyn ServerSink>) -> Result<OfferFacts, Error> {
        let host = &self.host;
        let instance = match settings.target.instance {
            Instance::Only(instance) => instance,
            Instance::Any => super::server::instance_of(host),
        };
        let same = |entry: &Entry| entry.class == settings.target.class && entry.instance == instance;
        if let Some(entry) = host.find(same) {
            if entry.is_left() {
                let facts = facts(&entry);
                return self.inherit(entry, sink).map(|()| facts);
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
        let facts = facts(&entry);
        if let Err(error) = host.publish(entry) {
            // The entry and the server hold each other.
            self.hand_over();
            return Err(error.into());
        }
        host.schedule();
        Ok(facts)
    }

    fn hand_over(&self) {
        let entry = self.entry.lock(self.host.inner.platform).take();
        if let Some(entry) = entry {
            self.host.drop_server(&entry);
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
            self.host.drop_server(&entry);
        }
    }
}

/// An offer that was taken for a client, to be [opened](Host::open); given back when dropped before that.
pub(crate) struct Taken {
    host: Host,
    entry: Option<Shared<Entry>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.host.set_client(&entry, None);
            entry.set_server_open(false);
            entry.give_back();
        }
    }
}

impl Host {
    fn is_wanted(entry: &Entry, target: &Target) -> bool {
        match target.channel {
            Some(channel) => entry.channel == channel,
            None => {
                // There are no subchannels here.
                target.primary.is_none()
                    && entry.class == target.class
                    && match target.instance {
                        Instance::Any => entry.is_free(),
                        Instance::Only(instance) => entry.instance == instance,
                    }
            }
        }
    }

    /// Takes an offer that is wanted and free.
    pub(crate) fn take(&self, target: &Target) -> Option<Taken> {
        let entry = self.find(|entry| Self::is_wanted(entry, target) && entry.is_free())?;
        // Made only for an entry that was taken: its drop gives it back.
        entry.take().then(|| Taken {
            host: self.clone(),
            entry: Some(entry),
        })
    }

    /// Opens an offer that was taken.
    pub(crate) fn open(
        &self,
        mut taken: Taken,
        request: &OpenRequest,
        sink: Shared<Box<dyn Sink>>,
        until: Option<Instant>,
    ) -> Result<Opened, Error> {
        let entry = taken.entry.as_ref().ok_or(Error::NoSuchOffer)?;
        let opened = self.open_taken(entry, request, sink, until)?;
        // The client's from here on, until it closes.
        taken.entry = None;
        Ok(opened)
    }

    fn open_taken(
        &self,
        entry: &Shared<Entry>,
        request: &OpenRequest,
        sink: Shared<Box<dyn Sink>>,
        until: Option<Instant>,
    ) -> Result<Opened, Error> {
        let host = self;
        let (block, client, server) =
            rings::allocate(host.inner.platform, request.outgoing_pages, request.incoming_pages)?;
        host.set_client(entry, Some(sink));
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
