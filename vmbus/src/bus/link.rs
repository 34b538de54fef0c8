//! Where a channel's messages and signals go: to the host, or to a server in this kernel.
//!
//! The two are told apart by [`Origin`](super::Origin); everything else is the same code. A server in this kernel
//! (feature `host`) is a [`LocalPort`], attached to the bus once. What it sends comes in through
//! `Bus::deliver_local_message` and `Bus::deliver_local_signal`.

use core::any::Any;

use super::error::Error;
use crate::memory::Pfn;
use crate::platform::NotMapped;
use crate::protocol::{ChannelId, GpadlId};

/// Memory that a GPADL shares with the other end of a channel.
///
/// The value keeps the memory: it is dropped, or given back, only when the other end has given the memory up.
pub trait GpadlMemory: Send + Sync + 'static {
    /// Returns where the memory begins in its first page, in bytes.
    fn offset_bytes(&self) -> usize {
        0
    }

    /// Returns how many bytes there are.
    fn len_bytes(&self) -> usize;

    /// Returns the guest-physical page of page `index` of the memory.
    ///
    /// # Errors
    ///
    /// [`NotMapped`] if there is no such page.
    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped>;

    /// Returns this value for a server in this kernel, which cannot use page numbers: it asks for the types that it knows.
    fn as_any(&self) -> &dyn Any;
}

/// A server in this kernel, as the bus sees it: what a host does with the guest's hypercalls.
///
/// Called without any lock of the bus. It may answer with `Bus::deliver_local_message` from within the call.
pub trait LocalPort: Send + Sync {
    /// Takes a channel message of the guest side: header and fields, as it would go to the host.
    ///
    /// # Errors
    ///
    /// [`Error::LocalRefused`] if the server cannot take it; the request then fails.
    fn post(&self, message: &[u8]) -> Result<(), Error>;

    /// Takes the guest side's signal for a channel.
    fn signal(&self, channel: ChannelId);

    /// Shows the memory of a GPADL, just before the messages that describe it. The server keeps what it needs of it (a
    /// reference to the memory) until it has answered the teardown.
    ///
    /// # Errors
    ///
    /// [`Error::LocalRefused`] if the server does not know this kind of memory.
    fn lend(&self, channel: ChannelId, gpadl: GpadlId, memory: &dyn GpadlMemory) -> Result<(), Error>;
}
