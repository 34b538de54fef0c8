//! How the kernel is started: the information that every way of booting hands over, and the ways themselves.
//!
//! - [`info`]: [`BootInfo`], the one structure that the kernel reads, whoever started it, and the contract of the kernel's entries;
//! - [`memory_map`]: physical memory by kind, sorted and free of overlaps;
//! - [`pvh`] and [`linux`]: direct boot; both turn what the host left in memory into a [`BootInfo`];
//! - [`rsdp`]: the search for the ACPI root pointer where nobody tells;
//! - [`command_line`]: the kernel's options; [`text`]: the file that they stand in;
//! - [`note`]: the ELF notes in which the kernel image names its entries.
//! - [`image`] and [`paging`]: what a loader does with that image: check it, place it, map it.
//!
//! Everything here is plain computation over bytes that others wrote: it is total (no input makes it panic), and it runs in unit
//! tests on the development machine. The kernel owns the machine code of the entries, because that code is part of its image.
#![cfg_attr(not(test), no_std)]

pub mod command_line;
pub mod image;
pub mod info;
pub mod linux;
pub mod memory_map;
pub mod note;
pub mod paging;
pub mod physical;
pub mod pvh;
pub mod rsdp;
pub mod text;

pub use command_line::Options;
pub use info::{BootInfo, BootMethod};
pub use memory_map::{MemoryKind, MemoryMap, MemoryRegion};
pub use physical::PhysicalMemory;
