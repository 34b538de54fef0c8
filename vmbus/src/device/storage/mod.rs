//! Storage: the disks of a machine, on the host's synthetic SCSI controllers (`storvsc`, `StorVSP`) and on the accelerated IDE
//! of Gen1 machines.
//!
//! - [`attach`]: opens a controller's channel and initialises it; [`attach_with`] has the numbers of [`Config`].
//! - [`Controller`]: the disks on it, which come and go while the machine runs ([`Controller::rescan`]).
//! - [`Disk`]: read, write, flush, discard. A request waits, or is a [`Transfer`] to be awaited; its memory is lent to the host and comes
//!   back ([`Disk::read`]), or is copied for convenience ([`Disk::read_into`]).
//! - [`Error`]: what a caller can make of a failure; [`Failed`] gives the memory back with it.
//! - [`protocol`] and [`scsi`]: the messages, as bytes and as values.
//!
//! # Examples
//!
//! ```no_run
//! use vmbus::device::storage::{self, Lba, PATIENCE};
//! use vmbus::{Bus, Deadline, memory::DmaBuffer};
//!
//! fn first_blocks(bus: &Bus) -> Result<DmaBuffer, storage::Error> {
//!     let disk = storage::attach(bus, storage::SCSI, Deadline::seconds(10))?.wait_for_disk(Deadline::seconds(10))?;
//!     let mut block = [0; 512];
//!     disk.read_into(Lba(0), &mut block, PATIENCE)?; // copied, or:
//!     let buffer = DmaBuffer::allocate(bus.platform(), 1 << 20).map_err(vmbus::kmcl::Error::from)?;
//!     Ok(disk.read(Lba(2048), buffer, PATIENCE)?) // lent to the host, and back: no copy
//! }
//! ```
//!
//! Many in flight from one task, which any executor runs; without one, [`Transfer::wait`] waits for each:
//!
//! ```
//! # use vmbus::device::storage::{Disk, Error, Lba};
//! # use vmbus::memory::DmaBuffer;
//! async fn copy(disk: &Disk, one: DmaBuffer, other: DmaBuffer) -> Result<(), Error> {
//!     let (first, second) = (disk.start_read(Lba(0), one), disk.start_read(Lba(64), other));
//!     let (one, other) = (first.await?, second.await?);
//!     let (first, second) = (disk.start_write(Lba(128), one), disk.start_write(Lba(192), other));
//!     (first.await?, second.await?);
//!     Ok(disk.start_flush().await?)
//! }
//! ```
//!
//! # What is retried
//!
//! Unit attention, a busy or unready device, commands that a reset or another command's failure has ended, and those that the host calls
//! done and failed at once are sent again, for up to about two seconds. Reservation conflicts, medium errors, protected media and refused commands are not. Time-outs:
//! the host is told to give a command up after 180 seconds, and the caller's deadline is the caller's; memory that the host has
//! is not released before it answers or the channel ends, whoever gave up waiting.
//!
//! # Trust
//!
//! Answers are copied out of the ring once and checked in the copy; no length that the host names is used before it was compared
//! with what was asked for. What it says of a disk (size, limits, names) is believed only as far as that can be wrong without
//! harm. It cannot fill the log.
//!
//! Sources: the protocol as Linux's `storvsc_drv.c` and FreeBSD's `hv_storvsc` (guests) and OpenVMM's `storvsp` (a host) speak
//! it; SCSI from the public drafts of SPC-4 and SBC-3. Microsoft has not published a specification.

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

#[cfg(any(feature = "embedded-io", feature = "embedded-sdmmc"))]
mod adapters;
mod config;
mod controller;
mod disk;
mod error;
mod link;
mod operation;
mod probe;
pub mod protocol;
pub mod scsi;
#[cfg(test)]
#[cfg(feature = "host")]
mod tests;
mod transfer;
mod verdict;

#[cfg(feature = "embedded-io")]
pub use adapters::DiskBytes;
pub use config::Config;
pub use controller::{Change, Controller, attach, attach_with};
pub use disk::{Disk, Info, Lba, PATIENCE};
pub use error::{Error, Failed};
pub use link::Counters;
pub use transfer::{Lend, Transfer};

pub use crate::protocol::class::{IDE, STORAGE as SCSI};
