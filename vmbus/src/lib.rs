//! Be a first-class Hyper-V guest.
#![cfg_attr(not(test), no_std)]

#[cfg(any(test, feature = "alloc"))]
extern crate alloc;
#[cfg(test)]
extern crate self as vmbus;

pub mod protocol;
pub mod ring;
