//! Rings: how packets get from one side of a channel to the other, through pages that both see.
//!
//! A ring has one [`Producer`] and one [`Consumer`], on different sides of the wall; a channel has two rings. Neither half
//! does any I/O: each says by a [`Signal`] when the peer wants to be told, and its user tells it.
//!
//! - **Batches.** Packets are staged with [`Producer::write`], [`send`](Producer::send) or [`reserve`](Producer::reserve), and
//!   become visible with one [`commit`](Producer::commit); the reading side takes any number with [`Consumer::next`] and gives
//!   the room back with one [`commit`](Consumer::commit).
//! - **Distrust.** Our indices are private; the shared copies are for the peer and never read back. The peer's index is checked
//!   at each load. A packet is copied out once, checked in the copy, and used from the copy. What cannot be is a
//!   [`Corruption`], and it stays: a broken ring is not used again.
//! - **No waiting.** A full ring is [`WriteError::Full`], an empty one [`ReadError::Empty`].
//!   [`Producer::wait_for_room`] and [`Consumer::unmask`] close the gap between looking and sleeping.
//!
//! Both halves work over any [`RingMemory`], of which [`SharedRing`] is the one for real pages; either half may be the guest's
//! or the host's. Neighbours: [`crate::protocol::packet`] has the wire format. Source: as there; rows R1 to R14 of the
//! requirements are tests here, by name.
//!
//! ```
//! use vmbus::ring::{Consumer, Header, Producer, SharedRing};
//! # use core::ptr::NonNull;
//! # #[repr(align(4096))] struct Pages([u8; 8192]);
//! # let mut pages = Box::new(Pages([0; 8192]));
//! # let control = NonNull::from(&mut *pages).cast::<u8>();
//! # // SAFETY: the data page lies behind the control page.
//! # let data = unsafe { control.add(4096) };
//! # // SAFETY: two pages, aligned, that live to the end of the example and are not used otherwise.
//! # let ring = || unsafe { SharedRing::new(control, data, 4096, ()) };
//! let mut producer = Producer::create(ring()?);
//! let mut consumer = Consumer::attach(ring()?, [0_u64; 64])?;
//!
//! producer.send(Header::in_band(7), b"hello")?;
//! if producer.commit().is_needed() { /* tell the peer: its ring was empty */ }
//!
//! let packet = consumer.next()?;
//! assert_eq!(packet.payload(), b"hello\0\0\0");
//! if consumer.commit().is_needed() { /* tell the peer: there is room again */ }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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

#[cfg(target_endian = "big")]
compile_error!("VMBus exists on little-endian machines only");

mod consumer;
mod control;
#[cfg(not(loom))]
mod copy;
mod error;
mod external;
mod geometry;
mod memory;
mod packet;
mod producer;
mod reservation;
#[cfg(not(loom))]
mod shared;
mod sync;

#[cfg(test)]
#[cfg(loom)]
mod models;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use consumer::{Consumer, Peek, Unmasked};
pub use control::Control;
pub use error::{Corruption, InvalidRing, ReadError, WriteError};
pub use external::{External, ExternalToSend, GpaRange, GpaRangeToSend, GpaRanges, TransferPages};
pub use memory::RingMemory;
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) use memory::Words;
pub use packet::{Header, Packet, PacketToSend};
pub use producer::{Producer, Room};
pub use reservation::Reservation;
#[cfg(not(loom))]
pub use shared::SharedRing;

/// Whether the peer must be told that something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that is not told sleeps on"]
pub enum Signal {
    /// Tell the peer.
    Needed,
    /// The peer does not wait for this; telling it would cost both sides.
    NotNeeded,
}

impl Signal {
    /// Whether the peer must be told.
    #[must_use]
    #[inline]
    pub const fn is_needed(self) -> bool {
        matches!(self, Self::Needed)
    }

    #[inline]
    const fn when(needed: bool) -> Self {
        if needed { Self::Needed } else { Self::NotNeeded }
    }
}
