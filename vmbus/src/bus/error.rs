//! What can go wrong: [`ConnectError`] while connecting, [`Error`] afterwards.

use core::time::Duration;

use crate::fallible::OutOfMemory;
use crate::hyperv::{EnableError, HypercallError, SynicError};
use crate::platform::{NotMapped, OutOfPages, ProcessorIndex, TimedOut};
use crate::protocol::contact::ConnectionState;
use crate::protocol::gpadl::BadRange;
use crate::protocol::{ChannelId, ConnectionId, Version};
use crate::ring::InvalidRing;

/// Why there is no connection to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Hypercalls could not be turned on.
    #[error(transparent)]
    Hypercalls(#[from] EnableError),
    /// The interrupt controller could not be turned on.
    #[error(transparent)]
    Synic(#[from] SynicError),
    /// The heap has no memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The platform has no pages.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// The platform does not know its own pages.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
    /// The current processor's number is not below the number in the configuration.
    #[error("{current} is not among the {processors} of the configuration")]
    NoSuchProcessor {
        /// The processor that this code runs on.
        current: ProcessorIndex,
        /// How many there are in the configuration.
        processors: u32,
    },
    /// The contact could not be posted.
    #[error("the contact for version {version} could not be posted to {connection}: {error}")]
    Post {
        /// The version asked for.
        version: Version,
        /// Where the contact was to go.
        connection: ConnectionId,
        /// What the hypervisor said.
        error: HypercallError,
    },
    /// The host does not answer. Some answer nothing at all to a contact that they do not like.
    #[error("the host did not answer the contact for version {version} on {connection} within {waited:?}")]
    NoAnswer {
        /// The version asked for.
        version: Version,
        /// Where the contact went.
        connection: ConnectionId,
        /// How long the wait was.
        waited: Duration,
    },
    /// The host listens on none of the connections where a bus would be.
    #[error("this host has no VMBus: nobody listens")]
    NoBus,
    /// The host speaks none of the versions that it was asked for.
    #[error("the host speaks no version of the VMBus from {newest} down to {oldest}")]
    NoCommonVersion {
        /// The newest asked for.
        newest: Version,
        /// The oldest asked for.
        oldest: Version,
    },
    /// The host speaks a version, but refuses the connection, in older versions as well.
    #[error("the host speaks version {version} but refuses the connection: state {}", state.0)]
    Refused {
        /// The newest version that it speaks.
        version: Version,
        /// What it said.
        state: ConnectionState,
    },
}

/// Why a call to a connected bus failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such offer.
    #[error("there is no offer of {0}")]
    NoSuchChannel(ChannelId),
    /// The channel is open, or being opened or closed.
    #[error("{0} is in use")]
    InUse(ChannelId),
    /// The channel is not open.
    #[error("{0} is not open")]
    NotOpen(ChannelId),
    /// The offer was withdrawn: the device is gone.
    #[error("the offer of {0} was withdrawn")]
    Rescinded(ChannelId),
    /// The connection to the host has ended.
    #[error("the bus is not connected")]
    Disconnected,
    /// The deadline passed. What was lent to the host stays lent until it gives it up.
    #[error("the deadline passed")]
    TimedOut,
    /// The call would wait for the callback that it was made from.
    #[error("called from a callback of the same channel")]
    WouldDeadlock,
    /// The host said no.
    #[error("the host refused: status {status:#x}")]
    Refused {
        /// The host's status.
        status: u32,
    },
    /// The negotiated version has no such message.
    #[error("version {version} of the protocol cannot do this")]
    NotSupported {
        /// The negotiated version.
        version: Version,
    },
    /// Too many requests wait for answers.
    #[error("too many requests wait for answers")]
    TooManyRequests,
    /// Too many GPADLs.
    #[error("too many GPADLs")]
    TooManyGpadls,
    /// More memory would be shared with the host than it allows.
    #[error("{wanted} bytes more than the {shared} that are shared exceed the host's limit of {limit}")]
    GpadlLimit {
        /// How many more were asked for.
        wanted: u64,
        /// How many are shared already.
        shared: u64,
        /// How many the host allows.
        limit: u64,
    },
    /// The memory cannot be described in a GPADL.
    #[error(transparent)]
    BadRange(#[from] BadRange),
    /// The ring has no sizes that make a ring.
    #[error(transparent)]
    InvalidRing(#[from] InvalidRing),
    /// The processor is not on-line for the bus.
    #[error("{0} is not on-line for the bus")]
    NoSuchProcessor(ProcessorIndex),
    /// The processor is needed: the host's messages or a channel's interrupts go there.
    #[error("{0} is needed by the bus")]
    ProcessorInUse(ProcessorIndex),
    /// The interrupt controller could not be turned on.
    #[error(transparent)]
    Synic(#[from] SynicError),
    /// The hypervisor did not take a message or a signal.
    #[error(transparent)]
    Hypercall(#[from] HypercallError),
    /// The heap has no memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The platform has no pages.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// The platform does not know a page.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
}

impl From<TimedOut> for Error {
    fn from(TimedOut: TimedOut) -> Self {
        Self::TimedOut
    }
}
