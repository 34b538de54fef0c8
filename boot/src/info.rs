//! [`BootInfo`]: what every way of booting hands to the kernel.
//!
//! It holds no pointers to other structures, so that one copy takes all of it; the addresses in it are physical.
//!
//! # The kernel's entry for a loader
//!
//! The UEFI loader (or any other) finds the entry's link address in a note (see [`crate::note`]) and prepares:
//!
//! - the image's segments in one block of free physical pages at any address, laid out as they are linked (relative to one
//!   another); what the file does not fill is zero; [`BootInfo::image`] says where the block lies;
//! - page tables in which the image is mapped at its link address, readable, writable and executable, and in which the first
//!   4 GiB of physical memory and the `BootInfo` are mapped at their own addresses;
//! - 64-bit mode, interrupts off, no NMI source armed, direction flag clear; RDI = address of the `BootInfo`; any stack, which the
//!   kernel leaves at once.
//!
//! The memory map counts the loader's own pages, and everything that boot services used, as [`MemoryKind::LOADER`] where the
//! kernel still needs them at its entry (page tables, the `BootInfo`), otherwise as usable.
//!
//! [`MemoryKind::LOADER`]: crate::MemoryKind::LOADER

use crate::memory_map::MemoryMap;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First bytes of a [`BootInfo`].
pub const MAGIC: [u8; 8] = *b"HvBootIn";

/// The version of [`BootInfo`] described here; it changes with every incompatible change.
pub const VERSION: u32 = 1;

/// Longest command line, in bytes.
pub const COMMAND_LINE_CAPACITY: usize = 2048;

/// Why a [`BootInfo`] was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InfoError {
    /// The first bytes are not [`MAGIC`].
    #[error("the boot information has no magic number")]
    Magic,
    /// The loader and the kernel do not belong together.
    #[error("the boot information has version {version} and {size} bytes, the kernel wants version {VERSION} and {expected} bytes",
        expected = size_of::<BootInfo>())]
    Version {
        /// The version found.
        version: u32,
        /// The size found.
        size: u32,
    },
    /// A count is larger than its array.
    #[error("the boot information is inconsistent")]
    Inconsistent,
}

/// How the kernel was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct BootMethod(pub u32);

impl BootMethod {
    /// By PVH, as QEMU does with `-kernel`.
    pub const PVH: Self = Self(1);
    /// By the Linux 64-bit boot protocol, as OpenVMM does.
    pub const LINUX: Self = Self(2);
    /// By our UEFI loader.
    pub const UEFI: Self = Self(3);

    /// The name for people and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PVH => "pvh",
            Self::LINUX => "linux",
            Self::UEFI => "uefi",
            _ => "unknown",
        }
    }
}

/// A range of physical memory. Length 0: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl Extent {
    /// No memory.
    pub const NONE: Self = Self { start: 0, length: 0 };
}

/// A linear framebuffer of 32-bit pixels. Address 0: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Framebuffer {
    /// Physical address of the first pixel.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Visible pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Bits of a pixel that hold red.
    pub red_mask: u32,
    /// Bits of a pixel that hold green.
    pub green_mask: u32,
    /// Bits of a pixel that hold blue.
    pub blue_mask: u32,
}

impl Framebuffer {
    /// No framebuffer.
    pub const NONE: Self = Self {
        address: 0,
        length: 0,
        width: 0,
        height: 0,
        pitch: 0,
        red_mask: 0,
        green_mask: 0,
        blue_mask: 0,
    };

    /// Bytes from the first pixel to the end of the last visible line. The memory may be far larger.
    #[must_use]
    pub const fn visible_length(&self) -> u64 {
        self.pitch as u64 * self.height as u64
    }

    /// Whether there is a framebuffer whose lines lie inside its memory.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.address != 0
            && self.width != 0
            && self.height != 0
            && self.pitch as u64 >= self.width as u64 * 4
            && self.visible_length() <= self.length
            && self.red_mask & self.green_mask == 0
            && self.green_mask & self.blue_mask == 0
            && self.red_mask & self.blue_mask == 0
    }
}

/// What every way of booting hands to the kernel.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootInfo {
    magic: [u8; 8],
    version: u32,
    size: u32,
    /// How the kernel was started.
    pub method: BootMethod,
    command_line_length: u32,
    /// Time stamp counter in the first instructions of the first program of ours that ran.
    pub start_tsc: u64,
    /// The physical pages in which the kernel image lies, in one block.
    pub image: Extent,
    /// Physical address of the ACPI root pointer, or 0.
    pub rsdp: u64,
    /// The initial file.
    pub initrd: Extent,
    /// The framebuffer.
    pub framebuffer: Framebuffer,
    /// Physical memory.
    pub memory_map: MemoryMap,
    command_line: [u8; COMMAND_LINE_CAPACITY],
}

impl BootInfo {
    /// An information without any content, for a loader to fill in.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            size: SIZE,
            ..Self::zeroed()
        }
    }

    /// Nothing but zeros, which take no room in an image. [`BootInfo::check`] refuses it until something is copied over it.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self {
            magic: [0; 8],
            version: 0,
            size: 0,
            method: BootMethod(0),
            command_line_length: 0,
            start_tsc: 0,
            image: Extent::NONE,
            rsdp: 0,
            initrd: Extent::NONE,
            framebuffer: Framebuffer::NONE,
            memory_map: MemoryMap::new(),
            command_line: [0; COMMAND_LINE_CAPACITY],
        }
    }

    /// All of it as bytes, to be filled by a copy of another one, and then [checked](Self::check).
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        self.as_mut_bytes()
    }

    /// Checks what another program wrote.
    ///
    /// # Errors
    ///
    /// [`InfoError`] says what is wrong with it.
    pub const fn check(&self) -> Result<(), InfoError> {
        if u64::from_ne_bytes(self.magic) != u64::from_ne_bytes(MAGIC) {
            return Err(InfoError::Magic);
        }
        if self.version != VERSION || self.size != SIZE {
            return Err(InfoError::Version {
                version: self.version,
                size: self.size,
            });
        }
        if !self.memory_map.is_valid() || self.command_line_length as usize > COMMAND_LINE_CAPACITY {
            return Err(InfoError::Inconsistent);
        }
        Ok(())
    }

    /// The command line, without its terminating zero. It may be any bytes.
    #[must_use]
    pub fn command_line(&self) -> &[u8] {
        self.command_line
            .get(..self.command_line_length as usize)
            .unwrap_or(&[])
    }

    /// Takes a command line; what is longer than [`COMMAND_LINE_CAPACITY`] is cut at the last space that fits, so that no
    /// option is misread. Returns whether it fitted.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the length is at most COMMAND_LINE_CAPACITY"
    )]
    pub fn set_command_line(&mut self, line: &[u8]) -> bool {
        let fits = line.len() <= COMMAND_LINE_CAPACITY;
        let line = if fits {
            line
        } else {
            let head = line.get(..COMMAND_LINE_CAPACITY).unwrap_or(&[]);
            let cut = head.iter().rposition(|&byte| byte == b' ').unwrap_or(0);
            head.get(..cut).unwrap_or(&[])
        };
        for (to, from) in self.command_line.iter_mut().zip(line) {
            *to = *from;
        }
        self.command_line_length = line.len() as u32;
        fits
    }
}

impl Default for BootInfo {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is a few KiB")]
const SIZE: u32 = size_of::<BootInfo>() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_what_loaders_of_version_1_write() {
        assert_eq!(core::mem::offset_of!(BootInfo, start_tsc), 24);
        assert_eq!(core::mem::offset_of!(BootInfo, framebuffer), 72);
        assert_eq!(core::mem::offset_of!(BootInfo, memory_map), 112);
        assert_eq!(size_of::<BootInfo>(), 112 + 8 + 24 * 256 + 2048);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let mut info = BootInfo::new();
        assert_eq!(info.check(), Ok(()));
        assert!(BootInfo::zeroed().as_bytes().iter().all(|byte| *byte == 0));
        assert_eq!(BootInfo::zeroed().check(), Err(InfoError::Magic));
        info.as_mut_bytes()[0] ^= 1;
        assert_eq!(info.check(), Err(InfoError::Magic));
        let mut info = BootInfo::new();
        info.as_mut_bytes()[8] = 9;
        assert!(matches!(info.check(), Err(InfoError::Version { version: 9, .. })));
        let mut info = BootInfo::new();
        info.as_mut_bytes()[20..24].copy_from_slice(&2049u32.to_le_bytes());
        assert_eq!(info.check(), Err(InfoError::Inconsistent));
        assert_eq!(info.command_line(), b"");
        let mut info = BootInfo::new();
        info.as_mut_bytes()[112..116].copy_from_slice(&257u32.to_le_bytes());
        assert_eq!(info.check(), Err(InfoError::Inconsistent));
    }

    #[test]
    fn a_long_command_line_is_cut_between_options() {
        let mut info = BootInfo::new();
        let mut line = vec![b'a'; 2000];
        line.push(b' ');
        line.extend_from_slice(&[b'b'; 100]);
        assert!(!info.set_command_line(&line));
        assert_eq!(info.command_line(), &[b'a'; 2000]);
        assert!(info.set_command_line(b"log=debug"));
        assert_eq!(info.command_line(), b"log=debug");
    }

    #[test]
    fn a_framebuffer_must_fit_into_its_memory() {
        let good = Framebuffer {
            address: 0xc000_0000,
            length: 1024 * 768 * 4,
            width: 1024,
            height: 768,
            pitch: 4096,
            red_mask: 0xff_0000,
            green_mask: 0xff00,
            blue_mask: 0xff,
        };
        assert!(good.is_usable());
        assert_eq!(good.visible_length(), 4096 * 768);
        assert!(!Framebuffer { height: 769, ..good }.is_usable());
        assert!(!Framebuffer { pitch: 4092, ..good }.is_usable());
        assert!(
            !Framebuffer {
                green_mask: 0xff,
                ..good
            }
            .is_usable()
        );
        assert!(!Framebuffer::NONE.is_usable());
    }
}
