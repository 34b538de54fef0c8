//! Wire types: what the bytes mean that guest and host exchange. No input or output, no state.
//!
//! Everything here follows the same rules: structures are little-endian, unaligned and checked for size at compile time;
//! numbers are open (a new value from a newer host is a number that we do not know, not an error of ours); parsing takes
//! any bytes and never panics; `emit` is the inverse of `parse` and zeroes what is reserved.

mod guid;
mod ids;

pub use guid::{Guid, GuidError};
pub use ids::{ChannelId, ConnectionId, GpadlId, OpenId, VpIndex};
