#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
// Tests may allocate as they like; the library asks and may be refused.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_macros))]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate self as vmbus;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
extern crate std;

#[cfg(feature = "alloc")]
pub mod bus;
#[cfg(feature = "alloc")]
pub mod device;
#[cfg(feature = "alloc")]
pub mod fallible;
#[cfg(feature = "host")]
pub mod host;
pub mod hyperv;
#[cfg(feature = "alloc")]
pub mod kmcl;
pub mod memory;
pub mod platform;
pub mod protocol;
pub mod ring;
pub mod sync;
#[cfg(test)]
mod test_platform;
pub mod testing;
pub mod time;

#[cfg(feature = "alloc")]
pub use bus::Bus;
pub use platform::Platform;
pub use time::{Deadline, Instant};
