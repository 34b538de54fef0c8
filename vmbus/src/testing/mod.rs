//! What helps to test this crate and the code on top of it.
//!
//! - [`check_platform`] (always there, needs no allocation) tells the author of a port what is wrong with it. It is meant
//!   to be called once in the real kernel, before the bus is connected.
//! - `FakePlatform` (feature `testing`, on a development machine) is a platform in heap memory whose guest-physical
//!   addresses are neither identical to the kernel's nor contiguous, which counts, poisons, and can be told to fail.
//! - `model` (as above) is a host: a hypervisor and a VMBus server that were written from the specifications, with
//!   offsets as literals and none of this crate's wire structures, so that a mistake in those shows.
//! - `Loopback` (as above, with the feature `host`) is a channel with both ends in the process, for tests of drivers.
//! - `TestHeap` (as above) is a heap for a test program that lets one allocation of the guest's fail.
//! - `wait_until` (as above) waits for other threads, and fails with a name where it waits in vain.
//!
//! Under Miri, use `-Zmiri-disable-weak-memory-emulation`: guest and host reach the same bytes as bytes and as words, which
//! its emulation of weak memory does not support.
//!
//! On a target without an operating system the feature `testing` adds nothing to what is always there.

mod check;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
mod fake_platform;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
mod heap;
#[cfg(all(any(test, feature = "testing"), feature = "host", not(loom), not(target_os = "none")))]
mod loopback;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
pub mod model;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
mod patience;
#[cfg(test)]
#[cfg(feature = "host")]
pub(crate) mod services;

pub use check::{PlatformFault, PlatformReport, check_platform};
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
pub use fake_platform::{BadAccess, FakePlatform, HostSide, ProcessorGuard};
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
pub use heap::TestHeap;
#[cfg(all(any(test, feature = "testing"), feature = "host", not(loom), not(target_os = "none")))]
pub use loopback::Loopback;
#[cfg(all(any(test, feature = "testing"), not(target_os = "none")))]
pub use patience::wait_until;
#[cfg(test)]
pub(crate) use patience::{Waiting, watch};
