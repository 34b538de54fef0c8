//! Wire types: what the bytes mean that guest and host exchange. No input or output, no state.
//!
//! Everything here follows the same rules: structures are little-endian, unaligned and checked for size at compile time;
//! numbers are open (a new value from a newer host is a number that we do not know, not an error of ours); parsing takes
//! any bytes and never panics; `emit` is the inverse of `parse` and zeroes what is reserved.
//!
//! - [`message`]: the table of channel messages, [`ChannelMessage::encode`] and [`ChannelMessage::decode`].
//! - [`contact`], [`offer`], [`gpadl`], [`channel`]: the messages themselves, in the order in which a guest meets them.
//! - [`class`]: the classes of devices, by GUID.
//! - [`packet`]: packets in a ring.
//! - [`Version`]: versions of the protocol.
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

pub mod channel;
pub mod class;
pub mod contact;
pub mod gpadl;
mod guid;
mod ids;
pub mod message;
pub mod offer;
pub mod packet;
#[cfg(test)]
mod round_trips;
#[cfg(test)]
mod survivors;
#[cfg(test)]
mod tests;
mod version;

pub use guid::{Guid, GuidError};
pub use ids::{ChannelId, ConnectionId, GpadlId, OpenId, VpIndex};
pub use message::{ChannelMessage, MessageBytes, MessageType, ParseError};
pub use version::{UnknownVersion, Version};
