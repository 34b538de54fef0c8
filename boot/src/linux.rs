//! Direct boot by the Linux 64-bit protocol: the zero page (`boot_params`) into [`BootInfo`].
//!
//! Source: the Linux documentation, `arch/x86/boot.rst` and `arch/x86/zero-page.rst`, from which the literal offsets are taken;
//! OpenVMM, Firecracker and Cloud Hypervisor write it. The setup header counts from 0x1f1 of the page.

use crate::info::{BootInfo, BootMethod, Extent, Framebuffer};
use crate::memory_map::{MemoryKind, MemoryRegion};
use crate::physical::{PhysicalMemory, Unreadable};
use crate::{pvh, rsdp};

/// Why the zero page was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// The zero page lies outside of readable memory.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// There is no memory map.
    #[error("the zero page has no e820 map")]
    NoMemoryMap,
}

/// Reads the zero page at `address` into `info`.
///
/// # Errors
///
/// [`LinuxError`] if the page cannot be read or has no memory map.
pub fn parse(memory: &impl PhysicalMemory, address: u64, info: &mut BootInfo) -> Result<(), LinuxError> {
    let at = |offset: u64| address.saturating_add(offset);
    let u32_at = |offset: u64| memory.read_u32(at(offset));
    // Low and high half of an address or size, as the protocol grew.
    let split = |low: u64, high: u64| Ok::<_, Unreadable>(u64::from(u32_at(low)?) | u64::from(u32_at(high)?) << 32);

    info.method = BootMethod::LINUX;
    let mut entries = [0];
    memory.read(at(0x1e8), &mut entries)?;
    let [entries] = entries;
    if entries == 0 {
        return Err(LinuxError::NoMemoryMap);
    }
    for index in 0..u64::from(entries.min(128)) {
        let entry = 0x2d0 + 20 * index;
        let start = memory.read_u64(at(entry))?;
        let length = memory.read_u64(at(entry + 8))?;
        info.memory_map
            .push(MemoryRegion::new(start, length, MemoryKind(u32_at(entry + 16)?)));
    }

    let command_line = split(0x228, 0xc8)?;
    if command_line != 0 {
        // 0 means "not told": then the text ends at its zero.
        let limit = match u32_at(0x238)? {
            0 => u64::MAX,
            size => u64::from(size),
        };
        pvh::read_command_line(memory, command_line, limit, info);
    }
    let initrd = Extent {
        start: split(0x218, 0xc0)?,
        length: split(0x21c, 0xc4)?,
    };
    if initrd.start != 0 && initrd.length != 0 {
        info.initrd = initrd;
    }
    info.rsdp = match memory.read_u64(at(0x70))? {
        0 => rsdp::find(memory).unwrap_or(0),
        told => told,
    };
    info.framebuffer = framebuffer(memory, address)?;
    Ok(())
}

/// Reads `screen_info`, the first 64 bytes of the page.
fn framebuffer(memory: &impl PhysicalMemory, address: u64) -> Result<Framebuffer, Unreadable> {
    let mut screen = [0u8; 64];
    memory.read(address, &mut screen)?;
    let u8_at = |offset: usize| screen.get(offset).copied().unwrap_or(0);
    let u16_at = |offset: usize| u16::from_le_bytes([u8_at(offset), u8_at(offset + 1)]);
    let u32_at = |offset: usize| u32::from(u16_at(offset)) | u32::from(u16_at(offset + 2)) << 16;
    let mask = |size: usize| {
        let ones = 1u32.checked_shl(u32::from(u8_at(size))).unwrap_or(0).wrapping_sub(1);
        ones.checked_shl(u32::from(u8_at(size + 1))).unwrap_or(0)
    };
    // 0x23: a linear framebuffer by VESA; 0x70: by EFI. Only pixels of 32 bits are of use to us.
    if !matches!(u8_at(0x0f), 0x23 | 0x70) || u16_at(0x16) != 32 {
        return Ok(Framebuffer::NONE);
    }
    let found = Framebuffer {
        address: u64::from(u32_at(0x18)) | u64::from(u32_at(0x3a)) << 32,
        length: u64::from(u16_at(0x24)) * u64::from(u16_at(0x14)),
        width: u32::from(u16_at(0x12)),
        height: u32::from(u16_at(0x14)),
        pitch: u32::from(u16_at(0x24)),
        red_mask: mask(0x26),
        green_mask: mask(0x28),
        blue_mask: mask(0x2a),
    };
    Ok(if found.is_usable() { found } else { Framebuffer::NONE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::testing::Pieces;
    use proptest::prelude::*;

    /// A zero page as OpenVMM leaves it at 0x2000, with its command line at 0x3000 and the root pointer in the BIOS area.
    fn page() -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[0x1e8] = 2;
        let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x202, b"HdrS");
        put(0x218, &[0, 0, 0x40, 0]); // initrd at 0x400000
        put(0x21c, &[0x10, 0, 0, 0]);
        put(0x228, &[0, 0x30, 0, 0]);
        put(0x238, &[9, 0, 0, 0]);
        put(0x2d0, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        put(0x2e4, &[0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0]);
        page
    }

    fn memory(page: Vec<u8>) -> Pieces {
        Pieces::default()
            .with(0x2000, page)
            .with(0x3000, *b"panic=-1 nothing of ours\0")
            .with(0xe_0000, rsdp::tests::golden())
    }

    #[test]
    fn what_openvmm_leaves_is_understood() {
        let mut info = BootInfo::new();
        parse(&memory(page()), 0x2000, &mut info).unwrap();
        assert_eq!(info.method, BootMethod::LINUX);
        assert_eq!(info.rsdp, 0xe_0000, "searched, because the page says 0");
        assert_eq!(info.command_line(), b"panic=-1 ", "cut at cmdline_size");
        assert_eq!(
            info.initrd,
            Extent {
                start: 0x40_0000,
                length: 0x10
            }
        );
        assert_eq!(
            info.memory_map.regions(),
            [
                MemoryRegion::new(0, 0xa_0000, MemoryKind::USABLE),
                MemoryRegion::new(0x10_0000, 0x400_0000, MemoryKind::USABLE)
            ]
        );
        assert_eq!(info.framebuffer, Framebuffer::NONE);
    }

    #[test]
    fn a_root_pointer_that_is_told_is_taken() {
        let mut page = page();
        page[0x70..0x78].copy_from_slice(&0x7ff_e014u64.to_le_bytes());
        let mut info = BootInfo::new();
        parse(&memory(page), 0x2000, &mut info).unwrap();
        assert_eq!(info.rsdp, 0x7ff_e014);
    }

    #[test]
    fn an_efi_framebuffer_is_understood() {
        let mut page = page();
        page[0x0f] = 0x70;
        page[0x12..0x18].copy_from_slice(&[0, 4, 0, 3, 32, 0]); // 1024 x 768 x 32
        page[0x18..0x1c].copy_from_slice(&[0, 0, 0, 0xc0]);
        page[0x24..0x2c].copy_from_slice(&[0, 0x10, 8, 16, 8, 8, 8, 0]);
        page[0x3a..0x3e].copy_from_slice(&[1, 0, 0, 0]);
        let mut info = BootInfo::new();
        parse(&memory(page), 0x2000, &mut info).unwrap();
        let wanted = Framebuffer {
            address: 0x1_c000_0000,
            length: 4096 * 768,
            width: 1024,
            height: 768,
            pitch: 4096,
            red_mask: 0xff_0000,
            green_mask: 0xff00,
            blue_mask: 0xff,
        };
        assert_eq!(info.framebuffer, wanted);
    }

    #[test]
    fn a_page_without_memory_map_is_refused() {
        let mut page = page();
        page[0x1e8] = 0;
        assert_eq!(
            parse(&memory(page), 0x2000, &mut BootInfo::new()),
            Err(LinuxError::NoMemoryMap)
        );
        assert!(matches!(
            parse(&Pieces::default(), 0x2000, &mut BootInfo::new()),
            Err(LinuxError::Unreadable(_))
        ));
    }

    proptest! {
        #[test]
        fn any_page_is_survived(page in prop::collection::vec(any::<u8>(), 4096)) {
            let mut info = BootInfo::new();
            let _ = parse(&memory(page), 0x2000, &mut info);
            info.memory_map.normalise();
        }
    }
}
