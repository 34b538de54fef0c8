//! What a channel stands on: [`Provider`], which finds and opens offers, and [`Transport`], an open channel's way to its
//! peer.
//!
//! The bus is one provider and the in-kernel host another; all channel code is above this seam, so both run the same.
//! Packets do not pass through here: the rings come with the opening and belong to the channel.

use alloc::boxed::Box;
use alloc::vec::Vec;

#[cfg(feature = "host")]
use super::Counters;
use super::external::Lent;
#[cfg(feature = "host")]
use super::settings::Name;
use super::settings::Settings;
use super::{Error, Gone};
use crate::fallible::Shared;
use crate::memory::{Mdl, SharedPages};
use crate::platform::ProcessorIndex;
use crate::protocol::{ChannelId, GpadlId, Guid};
use crate::ring::{Consumer, Producer, SharedRing};
use crate::{Deadline, Instant, Platform};

/// A ring's memory; the pages live as long as anyone of channel and transport.
pub(crate) type RingPages = SharedRing<Shared<SharedPages>>;

/// The channel's halves of its two rings.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) outgoing: Producer<RingPages>,
    pub(crate) incoming: Consumer<RingPages>,
}

/// Which instance of a class a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Instance {
    /// Any one that is not in use.
    #[default]
    Any,
    /// This one.
    Only(Guid),
}

/// Which offer a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Target {
    pub(crate) class: Guid,
    pub(crate) instance: Instance,
    /// A subchannel of this channel, instead of a primary one.
    pub(crate) primary: Option<ChannelId>,
    /// Exactly this channel, as an offer named it.
    pub(crate) channel: Option<ChannelId>,
}

/// What a client asks for when it opens a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenRequest {
    pub(crate) target: Target,
    pub(crate) incoming_pages: usize,
    pub(crate) outgoing_pages: usize,
    pub(crate) processor: ProcessorIndex,
    pub(crate) user_data: [u8; 120],
}

/// What an offer says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OfferFacts {
    pub(crate) channel: ChannelId,
    pub(crate) instance: Guid,
    pub(crate) mmio_megabytes: u16,
    pub(crate) user_defined: UserDefined,
}

/// The bytes of an offer that its device defines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserDefined(pub(crate) [u8; 120]);

impl Default for UserDefined {
    fn default() -> Self {
        Self([0; 120])
    }
}

/// An opened channel.
pub(crate) struct Opened {
    pub(crate) rings: Rings,
    pub(crate) transport: Shared<Box<dyn Transport>>,
    pub(crate) offer: OfferFacts,
    /// The client opened it to an earlier server, whose state is to be restored first.
    pub(crate) is_inherited: bool,
}

/// Who is told of what the peer does. Calls come in the deferred-work context, or from whoever polls.
pub(crate) trait Sink: Send + Sync {
    /// The peer signalled: packets, or room.
    fn signalled(&self);
    /// There will be no more: nothing is sent, and the peer has given up all memory when this is called.
    fn gone(&self, why: Gone);
    /// Returns the memory that the packet in flight with this id lends.
    #[cfg(feature = "host")]
    fn lent(&self, transaction_id: u64) -> Option<Mdl>;
    /// Returns what this end has done.
    #[cfg(feature = "host")]
    fn counters(&self) -> Counters;
    /// Returns why this end ends or has ended.
    #[cfg(feature = "host")]
    fn ended(&self) -> Option<Gone>;
}

/// A place where offers are: the bus, or the in-kernel host.
pub(crate) trait Provider: Send + Sync {
    /// Another handle of the same provider.
    fn another(&self) -> Result<Box<dyn Provider>, Error>;
    fn platform(&self) -> &'static dyn Platform;
    fn now(&self) -> Instant;
    /// Opens the offer that is wanted, waiting for one until the deadline. Calls to `sink` may come before this returns.
    fn open(&self, request: &OpenRequest, sink: Box<dyn Sink>, deadline: Deadline) -> Result<Opened, Error>;
    /// Looks for messages; never runs a callback of the channel that waits.
    fn poll(&self);
    /// Makes an offer, and returns what it says of itself (servers only).
    fn offer(&self, settings: &Settings, sink: Box<dyn ServerSink>) -> Result<OfferFacts, Error> {
        let _ = (settings, sink);
        Err(Error::WrongState)
    }
    /// Takes the offer back (servers only).
    fn revoke(&self) {}
    /// Leaves the offer and the open channel to the next server of the same class and instance (servers only).
    #[cfg(feature = "host")]
    fn hand_over(&self) {}
}

/// Where offers come from: the bus, or a host inside this kernel.
pub trait OfferSource: sealed::Source {
    /// Returns the platform that its channels stand on.
    fn platform(&self) -> &'static dyn Platform;
}

pub(crate) mod sealed {
    use super::{Error, ProviderHandle};

    pub trait Source {
        fn provider(&self) -> Result<ProviderHandle, Error>;
    }
}

/// A provider, to be kept by a channel.
#[expect(missing_debug_implementations, reason = "there is nothing to show")]
pub struct ProviderHandle(pub(crate) Box<dyn Provider>);

/// Who is told that a client opens an offer.
#[cfg_attr(
    not(feature = "host"),
    expect(dead_code, reason = "only a host in the same kernel has clients to tell of")
)]
pub(crate) trait ServerSink: Send + Sync {
    /// A client opens the channel: takes the rings, or refuses.
    fn opened(&self, opened: Opened, until: Option<Instant>) -> Result<(), Error>;
    /// As for a client.
    fn signalled(&self);
    /// As for a client.
    fn gone(&self, why: Gone);
    /// As for a client.
    #[cfg(feature = "host")]
    fn counters(&self) -> Counters;
    /// Returns what the driver calls the channel.
    #[cfg(feature = "host")]
    fn name(&self) -> Name;
}

/// An open channel's way to its peer.
pub(crate) trait Transport: Send + Sync {
    /// Tells the peer that the outgoing ring has news, or that the incoming one has room.
    fn signal(&self);
    /// Arranges for `Sink::signalled` to be called soon, as if the peer had signalled.
    fn schedule(&self);
    /// Returns true if the peer has taken the offer back, which a wait has to notice where no callback can tell it.
    fn is_withdrawn(&self) -> bool {
        false
    }
    /// Shares memory with the peer, and returns once the peer knows it.
    fn create_gpadl(&self, mdl: &Mdl, access: GpadlAccess, deadline: Deadline) -> Result<GpadlId, Error>;
    /// Withdraws what was shared; waits until the peer has given it up.
    fn delete_gpadl(&self, gpadl: GpadlId, deadline: Deadline) -> Result<(), Error>;
    /// Takes the memory that the client shared (servers only).
    fn map_gpadl(&self, gpadl: GpadlId, access: GpadlAccess) -> Result<Mdl, Error> {
        let _ = (gpadl, access);
        Err(Error::WrongState)
    }
    /// Gives it up again (servers only).
    fn unmap_gpadl(&self, gpadl: GpadlId) -> Result<(), Error> {
        let _ = gpadl;
        Err(Error::WrongState)
    }
    /// Returns what the peer lends with the packet of that id; only a peer in the same kernel can be asked.
    fn lent_by_peer(&self, transaction_id: u64) -> Option<Mdl> {
        let _ = transaction_id;
        None
    }
    /// Closes the channel and gives everything back. On a time-out what the peer may still touch is kept from use.
    fn close(&self, deadline: Deadline) -> Result<(), Error>;
    /// Returns true if the peer is an owner of what requests lend it as long as it uses that, like any other in this kernel: then
    /// it need not be kept from use where the peer has not answered.
    fn peer_is_an_owner(&self) -> bool {
        false
    }
    /// Returns true if the connection ends or has ended, and the peer has not said that it has given up anything.
    fn is_lost(&self) -> bool {
        false
    }
    /// Keeps what requests lend until the peer gives up the rings. Returns how much of it stays lent for good.
    fn keep(&self, memory: Vec<Lent>) -> u64 {
        let blocks = memory.len() as u64;
        core::mem::forget(memory);
        blocks
    }
    /// Counts the requests whose memory stays lent for good.
    fn note_lost(&self, blocks: u64) {
        let _ = blocks;
    }
}

/// What the peer is to do with shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GpadlAccess {
    /// Read and write.
    #[default]
    ReadWrite,
    /// Only read (`VMBUS_CHANNEL_GPADL_READ_ONLY`): a hint that speeds the host's snapshots and migrations, no protection.
    ReadOnly,
}
