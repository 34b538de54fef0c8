//! Channels as a driver sees them: the API of Windows' Kernel Mode Client Library (KMCL), in Rust.
//!
//! A driver initialises a [`DisabledChannel`], enables it, and gets packets in a callback. What it sends is completed by
//! the peer, and the completion comes to a routine ([`OutgoingPacket`]), to a blocked task
//! ([`Channel::send_synchronous_request`]) or to a future ([`Channel::request`]), all on one mechanism. Names follow KMCL, so
//! that its users find everything; each item's documentation names its original.
//!
//! - [`DisabledChannel`] -> `enable` -> [`Channel`] -> `disable` -> [`DisabledChannel`]: two types, so that initialising too
//!   late does not compile.
//! - [`IncomingPacket`]: an owned value, completed exactly once; dropping it completes it empty.
//! - [`OutgoingPacket`]: owns what it lends ([`crate::memory::Mdl`]) and gives it back with the completion.
//! - [`Error`], with the status of each ([`NtStatus`]); [`Refused`] gives back what a refused call had taken.
//! - [`Counters`]: what a channel has done.
//! - `Save` (feature `host`): a server's end, saved and restored in the next server while the client goes on.
//!
//! [`guide`] walks the author of a Windows driver through porting one; [`statements`] has what the compiler refuses where
//! KMCL's documentation forbids. The crate's README has a table of every function of KMCL.
//!
//! No packet needs memory that was not reserved when the channel was enabled. No lock is held while the driver is called,
//! and callbacks of one channel never run at the same time. Neighbours: below it the bus and the rings; above it the
//! drivers of [`crate::device`](crate). Source: the public documentation of KMCL (`vmbuskernelmodeclientlibapi.h`).
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

mod channel;
mod completions;
mod counters;
mod endpoint;
mod error;
mod external;
mod gate;
mod gpadl;
pub mod guide;
mod incoming;
mod init;
mod lent;
mod lifecycle;
mod ntstatus;
mod outgoing;
mod over_bus;
mod packet;
mod process;
mod receive;
mod request;
#[cfg(feature = "host")]
mod saving;
pub(crate) mod settings;
mod slab;
pub mod statements;
#[cfg(test)]
mod tests;
pub(crate) mod transport;

pub use channel::Channel;
pub use counters::Counters;
pub use error::{Error, Gone, Refused};
pub use gpadl::{Gpadl, MappedGpadl};
pub use incoming::{ExternalData, IncomingPacket};
pub use init::DisabledChannel;
pub use ntstatus::NtStatus;
pub use packet::{CompletionRoutine, OutgoingPacket, SendFlags};
pub use request::{Reply, Request, Sent, SynchronousRequest};
#[cfg(feature = "host")]
pub use saving::{PacketInUse, Restored, Save, Saved};
pub use settings::{OpenedResult, StateChangeCallbacks};
pub use transport::{GpadlAccess, Instance, OfferSource};

/// A driver's own data about a channel: anything that may be used from any task.
pub trait Context: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> Context for T {}

/// Which end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that opens an offer.
    Client,
    /// The end that made the offer.
    Server,
}

/// Where callbacks run: what Windows calls the IRQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// A task that may block (`PASSIVE_LEVEL`).
    Passive,
    /// Deferred work, which may not block (`DISPATCH_LEVEL`).
    Dispatch,
}
