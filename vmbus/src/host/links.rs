//! The two ends' ways to each other: transports of open channels.

use super::entry::{End, Entry};
use super::{Host, wait};
use crate::Deadline;
use crate::fallible::Shared;
use crate::kmcl::transport::Transport;
use crate::kmcl::{Error, Gone, GpadlAccess};
use crate::memory::Mdl;
use crate::protocol::GpadlId;

/// A client's way to its server.
pub(super) struct ClientTransport {
    pub(super) host: Host,
    pub(super) entry: Shared<Entry>,
}

impl Transport for ClientTransport {
    fn signal(&self) {
        self.host.signal(&self.entry, End::Server);
    }

    fn schedule(&self) {
        self.host.signal(&self.entry, End::Client);
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
        self.host.set_client(&self.entry, None);
        self.entry.give_back();
        if closed { Ok(()) } else { Err(Error::TimedOut) }
    }

    fn peer_is_an_owner(&self) -> bool {
        true
    }
}

/// A server's way to its client.
pub(super) struct ServerTransport {
    pub(super) host: Host,
    pub(super) entry: Shared<Entry>,
}

impl Transport for ServerTransport {
    fn signal(&self) {
        self.host.signal(&self.entry, End::Client);
    }

    fn schedule(&self) {
        self.host.signal(&self.entry, End::Server);
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
        self.entry.lent_by_client(transaction_id)
    }

    fn close(&self, _: Deadline) -> Result<(), Error> {
        self.entry.set_server_open(false);
        Ok(())
    }
}
