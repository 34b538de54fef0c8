//! The ELF notes in which the kernel image names its entries.
//!
//! | entry | where | value | state at entry |
//! |---|---|---|---|
//! | Linux 64-bit | `e_entry` | physical address, at the image's `p_paddr` | 64-bit mode, RSI = zero page, identity map of 4 GiB |
//! | PVH | note owner `Xen`, type 18 | physical address, at the image's `p_paddr` | 32-bit mode, paging off, EBX = start info |
//! | UEFI loader | note owner [`OWNER`], type [`TYPE_UEFI_ENTRY`] | [`UefiEntryNote`]: link (virtual) address | see [`crate::info`] |
//!
//! Both notes stand in one `PT_NOTE` segment, aligned to 4 bytes, the PVH note first: QEMU takes the first note of type 18 and
//! counts padding by the segment's alignment.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Owner of our own note, with its terminating zero.
pub const OWNER: &[u8; 6] = b"vmbus\0";

/// Type of the note that names the entry for the UEFI loader.
pub const TYPE_UEFI_ENTRY: u32 = 1;

/// Descriptor of the note that names the entry for the UEFI loader.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UefiEntryNote {
    /// Link address of the entry.
    pub entry: U64,
    /// The version of [`crate::BootInfo`] that the kernel understands.
    pub info_version: U32,
    /// `size_of::<BootInfo>()` as the kernel knows it.
    pub info_size: U32,
}

const _: () = assert!(size_of::<UefiEntryNote>() == 16);
