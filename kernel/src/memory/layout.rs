//! Where things lie in the kernel's address space, and where the linker put the parts of the image.
//!
//! | from | size | what |
//! |---|---|---|
//! | `0xffff_8000_0000_0000` | 64 TiB | direct map: physical memory at a fixed offset |
//! | `0xffff_c000_0000_0000` | 512 GiB | mapped ranges: stacks with guard pages, pages that lie apart in physical memory, device registers |
//! | `0xffff_d000_0000_0000` | 64 GiB | the heap |
//! | `0xffff_ffff_8000_0000` | 2 GiB | the image (`kernel.ld` says the same) |
//!
//! The lower half is empty: a null pointer faults.

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// Start of the direct map.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;

/// Bytes of the direct map: physical memory beyond is not used.
pub const DIRECT_MAP_SIZE: u64 = 64 << 40;

/// Start of the mapped ranges.
pub const MAPPED_RANGES: u64 = 0xffff_c000_0000_0000;

/// Bytes of the mapped ranges.
pub const MAPPED_RANGES_SIZE: u64 = 512 << 30;

/// Start of the heap.
pub const HEAP: u64 = 0xffff_d000_0000_0000;

/// Bytes that the heap can grow to.
pub const HEAP_SIZE: u64 = 64 << 30;

/// Link address minus load address, for direct boot.
pub const IMAGE_OFFSET: u64 = 0xffff_ffff_8000_0000;

/// Physical address of the image, for direct boot.
pub const LOAD_ADDRESS: u64 = 0x20_0000;

/// Physical memory below this is left alone: hosts keep tables there, and further processors start there.
pub const LOW_MEMORY: u64 = 0x10_0000;

/// A range of virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl Span {
    /// One past the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.length
    }

    /// Whether `address` lies inside.
    #[must_use]
    pub const fn contains(self, address: u64) -> bool {
        address >= self.start && address - self.start < self.length
    }
}

/// An address as the processor's word.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel runs on 64-bit processors only"
)]
pub const fn to_usize(address: u64) -> usize {
    const { assert!(size_of::<usize>() == 8) };
    address as usize
}

/// Where a byte of physical memory lies in the direct map; none beyond its end.
#[must_use]
pub const fn direct(physical: u64) -> Option<u64> {
    if physical < DIRECT_MAP_SIZE {
        Some(DIRECT_MAP + physical)
    } else {
        None
    }
}

/// Rounds down to a page.
#[must_use]
pub const fn page_down(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

/// Rounds up to a page; saturates at the last page boundary.
#[must_use]
pub const fn page_up(address: u64) -> u64 {
    page_down(address.saturating_add(PAGE_SIZE - 1))
}

#[cfg(target_os = "none")]
pub use image::{boot_stack_guard, image, rodata, text};

#[cfg(target_os = "none")]
mod image {
    #![expect(unsafe_code, reason = "the linker's symbols")]

    use super::Span;

    unsafe extern "C" {
        static __image_start: u8;
        static __text_end: u8;
        static __rodata_end: u8;
        static __image_end: u8;
        static __boot_stack_guard: u8;
    }

    fn span(start: *const u8, end: *const u8) -> Span {
        Span {
            start: start.addr() as u64,
            length: (end.addr() - start.addr()) as u64,
        }
    }

    /// The whole image.
    #[must_use]
    pub fn image() -> Span {
        span(&raw const __image_start, &raw const __image_end)
    }

    /// Code.
    #[must_use]
    pub fn text() -> Span {
        span(&raw const __image_start, &raw const __text_end)
    }

    /// Constants; variables follow.
    #[must_use]
    pub fn rodata() -> Span {
        span(&raw const __text_end, &raw const __rodata_end)
    }

    /// The page that stays unmapped below the boot stack.
    #[must_use]
    pub fn boot_stack_guard() -> u64 {
        (&raw const __boot_stack_guard).addr() as u64
    }
}
