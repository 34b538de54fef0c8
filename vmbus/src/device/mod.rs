//! Device drivers: one module per device class, each with the wire format of its protocol and the logic above it.
//!
//! - [`dynamic_memory`]: the host takes memory away, gives it back and adds to it while the machine runs.
//! - [`storage`]: the disks of the machine, which come and go.

pub mod dynamic_memory;
pub mod storage;
