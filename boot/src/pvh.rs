//! Direct boot by PVH: `hvm_start_info` into [`BootInfo`].
//!
//! Source: Xen's `public/arch-x86/hvm/start_info.h`, versions 0 and 1 of the structure; QEMU (`-kernel` of an ELF image with a
//! PVH note), Cloud Hypervisor and Firecracker write it. Offsets are literal, as in that text.

use crate::info::{BootInfo, BootMethod, Extent};
use crate::memory_map::{CAPACITY, MemoryKind, MemoryRegion};
use crate::physical::{PhysicalMemory, Unreadable};

/// First number of the structure.
pub const MAGIC: u32 = 0x336e_c578;

/// Why the structure was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PvhError {
    /// There is something else at the address.
    #[error("no PVH start information: its first number is {0:#x}")]
    Magic(u32),
    /// The structure or its memory map lies outside of readable memory.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// Version 0 has no memory map, and without one there is no memory.
    #[error("the PVH start information has no memory map (version {0})")]
    NoMemoryMap(u32),
}

/// Reads the structure at `address` into `info`.
///
/// A command line or module list that cannot be read is treated as absent; the memory map is required.
///
/// # Errors
///
/// [`PvhError`] if the structure or the memory map cannot be read.
pub fn parse(memory: &impl PhysicalMemory, address: u64, info: &mut BootInfo) -> Result<(), PvhError> {
    let at = |offset: u64| address.saturating_add(offset);
    let magic = memory.read_u32(address)?;
    if magic != MAGIC {
        return Err(PvhError::Magic(magic));
    }
    info.method = BootMethod::PVH;
    let version = memory.read_u32(at(4))?;
    let modules = memory.read_u32(at(12))?;
    let module_list = memory.read_u64(at(16))?;
    let command_line = memory.read_u64(at(24))?;
    info.rsdp = memory.read_u64(at(32))?;
    if version < 1 {
        return Err(PvhError::NoMemoryMap(version));
    }
    let map = memory.read_u64(at(40))?;
    let entries = memory.read_u32(at(48))?;
    if map == 0 || entries == 0 {
        return Err(PvhError::NoMemoryMap(version));
    }
    // Entries beyond our capacity would be dropped one by one; a bound keeps a nonsense count from taking for ever.
    for index in 0..u64::from(entries).min(4 * CAPACITY as u64) {
        let entry = map.saturating_add(index * 24);
        let start = memory.read_u64(entry)?;
        let length = memory.read_u64(entry.saturating_add(8))?;
        let kind = MemoryKind(memory.read_u32(entry.saturating_add(16))?);
        info.memory_map.push(MemoryRegion::new(start, length, kind));
    }
    if command_line != 0 {
        read_command_line(memory, command_line, u64::MAX, info);
    }
    if modules > 0
        && let (Ok(start), Ok(length)) = (
            memory.read_u64(module_list),
            memory.read_u64(module_list.saturating_add(8)),
        )
        && start != 0
    {
        info.initrd = Extent { start, length };
    }
    Ok(())
}

/// Copies the zero-terminated text at `address`, of at most `limit` bytes; what cannot be read ends it.
pub(crate) fn read_command_line(memory: &impl PhysicalMemory, address: u64, limit: u64, info: &mut BootInfo) {
    let mut line = [0u8; crate::info::COMMAND_LINE_CAPACITY + 1];
    let mut length = 0;
    for (index, to) in (0..limit).zip(line.iter_mut()) {
        let mut byte = [0];
        if memory.read(address.saturating_add(index), &mut byte).is_err() || byte == [0] {
            break;
        }
        [*to] = byte;
        length += 1;
    }
    info.set_command_line(line.get(..length).unwrap_or(&[]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::testing::Pieces;
    use proptest::prelude::*;

    /// What QEMU 10 leaves for `-m 32 -append 'log=warn once'`, shortened to three regions.
    fn golden() -> Pieces {
        let mut info = Vec::new();
        info.extend_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        info.extend_from_slice(&[0x00, 0x70, 0, 0, 0, 0, 0, 0]); // modules
        info.extend_from_slice(&[0x00, 0x60, 0, 0, 0, 0, 0, 0]); // command line
        info.extend_from_slice(&[0xd0, 0x52, 0x0f, 0, 0, 0, 0, 0]); // root pointer
        info.extend_from_slice(&[0x00, 0x80, 0, 0, 0, 0, 0, 0]); // memory map
        info.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
        let mut map = Vec::new();
        for (start, length, kind) in [
            (0u64, 0x9_fc00u64, 1u64),
            (0x9_fc00, 0x400, 2),
            (0x10_0000, 0x1ee_0000, 1),
        ] {
            map.extend_from_slice(&start.to_le_bytes());
            map.extend_from_slice(&length.to_le_bytes());
            map.extend_from_slice(&kind.to_le_bytes());
        }
        let mut module = Vec::new();
        for number in [0x100_0000u64, 0x2345, 0, 0] {
            module.extend_from_slice(&number.to_le_bytes());
        }
        Pieces::default()
            .with(0x1000, info)
            .with(0x6000, *b"log=warn once\0")
            .with(0x7000, module)
            .with(0x8000, map)
    }

    #[test]
    fn what_qemu_leaves_is_understood() {
        let mut info = BootInfo::new();
        parse(&golden(), 0x1000, &mut info).unwrap();
        assert_eq!(info.method, BootMethod::PVH);
        assert_eq!(info.rsdp, 0xf_52d0);
        assert_eq!(info.command_line(), b"log=warn once");
        assert_eq!(
            info.initrd,
            Extent {
                start: 0x100_0000,
                length: 0x2345
            }
        );
        let regions = info.memory_map.regions();
        assert_eq!(regions.len(), 3);
        assert_eq!(regions[1], MemoryRegion::new(0x9_fc00, 0x400, MemoryKind::RESERVED));
        assert_eq!(regions[2].end(), 0x1fe_0000);
    }

    #[test]
    fn a_wrong_magic_number_is_named() {
        let memory = Pieces::default().with(0, [1u8; 64]);
        assert_eq!(
            parse(&memory, 0, &mut BootInfo::new()),
            Err(PvhError::Magic(0x0101_0101))
        );
    }

    #[test]
    fn version_0_has_no_memory_map() {
        let mut bytes = vec![0x78, 0xc5, 0x6e, 0x33];
        bytes.resize(64, 0);
        assert_eq!(
            parse(&Pieces::default().with(0x500, bytes), 0x500, &mut BootInfo::new()),
            Err(PvhError::NoMemoryMap(0))
        );
    }

    #[test]
    fn a_structure_outside_of_memory_is_an_error() {
        assert!(matches!(
            parse(&golden(), 0x5000, &mut BootInfo::new()),
            Err(PvhError::Unreadable(_))
        ));
        assert!(parse(&golden(), u64::MAX - 3, &mut BootInfo::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 56..4096), good_magic in any::<bool>()) {
            if good_magic {
                bytes[..8].copy_from_slice(&[0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
                bytes[40..48].copy_from_slice(&[0x10, 0, 0, 0, 0, 0, 0, 0]);
                bytes[24..32].copy_from_slice(&[0x20, 0, 0, 0, 0, 0, 0, 0]);
            }
            let mut info = BootInfo::new();
            let _ = parse(&Pieces::default().with(0, bytes), 0, &mut info);
            info.memory_map.normalise();
            prop_assert!(info.command_line().len() <= crate::info::COMMAND_LINE_CAPACITY);
        }
    }
}
