//! A storage controller in this kernel: what Hyper-V's storvsp offers a guest, with disks in memory, and with faults on demand.
//!
//! A [`Controller`] is a server endpoint of KMCL on a [`Host`](super::Host). Its client is a storage driver in the same kernel, which cannot tell it
//! from a real host: it is written from the protocol, with offsets and numbers of its own and none of the driver's structures, and it
//! is as strict as the strictest host that is known. What the client does wrong is kept as [`Violation`]s.
//!
//! - [`Controller`]: offered, revoked, given disks and faults. [`Config`]: its kind (SCSI or IDE), newest version, limits.
//! - [`Disk`]: a logical unit, with what it tells about itself ([`DiskConfig`]); it stands on a [`Backend`].
//! - [`MemoryDisk`]: a backend in memory, sparse, with a write cache that a power cut empties. `ImageFile` (feature `testing`):
//!   one in a file of the development machine.
//! - [`Fault`]: a [`Filter`] for requests and an [`Effect`] on them: an [`Outcome`] instead of the disk's, data that lie, a short
//!   transfer, an answer that is held, lost, doubled, or changed byte by byte.
//!
//! # In a kernel
//!
//! A RAM disk that the kernel's storage driver finds like any other:
//!
//! ```
//! use vmbus::host::Host;
//! use vmbus::host::storage::{Address, Config, Controller, Disk, DiskConfig, MemoryDisk, WriteCache};
//! use vmbus::{Instant, Platform};
//!
//! fn offer_ram_disk(platform: &'static dyn Platform, now: fn() -> Instant) -> Result<Controller, Box<dyn core::error::Error>> {
//!     let host = Host::new(platform, now)?;
//!     let controller = Controller::new(&host, Config::default())?;
//!     let memory = MemoryDisk::new(platform, 64 << 20, WriteCache::None)?;
//!     controller.attach(Address::lun(0), Disk::new(memory, DiskConfig::default())?)?;
//!     controller.offer()?;
//!     // A driver finds it on the host, or on the bus that the host is attached to. Requests are served in `host.process()`, where
//!     // deferred work runs, or by the bus.
//!     Ok(controller)
//! }
//! ```
//!
//! # In a test
//!
//! The client here is a plain channel that asks for the version; a driver's test puts the driver in its place.
//!
//! ```
//! # #[cfg(not(feature = "testing"))] fn main() {}
//! # #[cfg(feature = "testing")]
//! # fn main() -> Result<(), Box<dyn core::error::Error>> {
//! use vmbus::Deadline;
//! use vmbus::host::Host;
//! use vmbus::host::storage::{self, Address, Controller, Disk, Effect, Fault, Filter, MemoryDisk, Outcome, PowerCut, WriteCache};
//! use vmbus::kmcl::{Channel, Instance};
//! use vmbus::protocol::class;
//! use vmbus::testing::FakePlatform;
//!
//! let platform = FakePlatform::new();
//! let host = Host::new(platform, || vmbus::Instant::from_reference_units(platform.look_at_clock()))?;
//! let controller = Controller::new(&host, storage::Config::default())?;
//! // 3 TiB, of which only what is written takes memory.
//! let memory = MemoryDisk::new(platform, 3 << 40, WriteCache::Volatile)?;
//! controller.attach(Address::lun(7), Disk::new(memory.clone(), storage::DiskConfig::default())?)?;
//! controller.offer()?;
//!
//! // The first read of block 1000 finds the medium damaged, the second one succeeds.
//! controller.inject(Fault::new(Filter::reads().blocks(1000..1001), Effect::Answer(Outcome::medium_error(1000))))?;
//! // The third flush is held until the test says so.
//! controller.inject(Fault::new(Filter::flushes(), Effect::Hold).after(2))?;
//!
//! let client = Channel::allocate_client(&host)?.init_set_target(class::STORAGE, Instance::Any).enable(Deadline::seconds(1))?;
//! let mut begin = [0; 64];
//! begin[0] = 7;
//! let mut answer = [0xFF; 64];
//! client.send_synchronous_request(&begin, None, Deadline::seconds(1), &mut answer)?;
//! assert_eq!(answer[..12], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // COMPLETE_IO, success
//!
//! memory.cut_power(PowerCut::LosesAll);
//! controller.revoke(Deadline::seconds(1))?;
//! assert_eq!(controller.first_violation(), None);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! | Of the protocol | |
//! |---|---|
//! | versions | 6.2, 6.0, 5.1, 4.2, up to the configured one; any other is answered with 0xC0000059 |
//! | initialisation | BEGIN, VERSION, PROPERTIES, END in this order; else 0xC0000184 |
//! | requests | with the completion flag, memory in one range that is as long as the transfer; else the ring is not read any more |
//! | resets | succeed and do nothing, or end what is held: [`Reset`] |
//! | more channels | none: 0 may be asked for |
//! | unasked | ENUMERATE_BUS when a disk comes or goes |
//!
//! Commands: TEST UNIT READY, REQUEST SENSE, INQUIRY (standard data; pages 00, 80, 83, and B0, B1, B2 of thin disks), MODE SENSE (6, 10),
//! START STOP UNIT, READ CAPACITY (10, 16), READ and WRITE (6, 10, 12, 16), VERIFY (10, 16), SYNCHRONIZE CACHE (10, 16), WRITE SAME (10, 16),
//! UNMAP, REPORT LUNS; RESERVE, RELEASE and PREVENT MEDIUM REMOVAL succeed and do nothing.
//!
//! Neighbours: [`crate::kmcl`]. Sources: OpenVMM's storvsp, storvsp_protocol, scsi_defs and scsidisk; Linux' storvsc; SPC-4 and
//! SBC-3.

mod backend;
mod config;
mod controller;
mod disk;
mod fault;
#[cfg(all(any(test, feature = "testing"), unix))]
mod image_file;
mod memory_disk;
mod outcome;
mod server;
mod state;
mod target;
#[cfg(test)]
mod tests;
mod wire;

pub use backend::{Backend, BackendError, Durability, MemoryError, RequestMemory};
pub use config::{Address, Config, Kind, ReportLuns, Reset, Version};
pub use controller::{AttachError, Controller, HeldRequest};
pub use disk::{Disk, DiskConfig, Provisioning, ZeroLength};
pub use fault::{Effect, FalseData, Fault, Filter, Rewrite};
#[cfg(all(any(test, feature = "testing"), unix))]
pub use image_file::ImageFile;
pub use memory_disk::{MemoryDisk, PowerCut, WriteCache};
pub use outcome::{Outcome, Sense};
pub use state::Violation;
pub use target::opcode;
pub use wire::{Answer, operation, srb_status};
