#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
// Tests may allocate as they like; the library asks and may be refused.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_macros))]
// Under `--cfg loom` only what its models check is built: the rings.
#![cfg_attr(loom, allow(dead_code, reason = "what uses it is not built for the models"))]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate self as vmbus;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
extern crate std;

#[cfg(all(feature = "alloc", not(loom)))]
pub mod bus;
#[cfg(all(feature = "alloc", not(loom)))]
pub mod device;
#[cfg(feature = "alloc")]
pub mod fallible;
#[cfg(all(feature = "host", not(loom)))]
pub mod host;
pub mod hyperv;
#[cfg(all(feature = "alloc", not(loom)))]
pub mod kmcl;
pub mod memory;
#[cfg(all(loom, test))]
mod models;
pub mod platform;
pub mod protocol;
pub mod ring;
pub mod sync;
#[cfg(test)]
mod test_platform;
#[cfg(not(loom))]
pub mod testing;
pub mod time;

#[cfg(all(feature = "alloc", not(loom)))]
pub use bus::Bus;
pub use platform::Platform;
pub use time::{Deadline, Instant};
