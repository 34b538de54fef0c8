//! Fixed VHD: the disk's bytes and a footer of 512 bytes (Virtual Hard Disk Image Format Specification).

use std::io::Write;

use anyhow::Result;

/// The disk's identifier; fixed, so that images can be reproduced.
const DISK_ID: [u8; 16] = [
    0x6e, 0x9a, 0x1b, 0x70, 0x5f, 0x0c, 0x4f, 0x5e, 0x9d, 0x5b, 0x0c, 0x8f, 0x0a, 0x7b, 0xe5, 0x03,
];

pub(super) fn write(disk: &[u8], out: &mut impl Write) -> Result<()> {
    out.write_all(disk)?;
    out.write_all(&footer(disk.len() as u64))?;
    Ok(())
}

/// Returns the footer of a fixed disk of `size` bytes. All numbers are big-endian.
fn footer(size: u64) -> [u8; 512] {
    let (cylinders, heads, sectors) = geometry(size / 512);
    let mut footer = [0; 512];
    let mut put = |offset: usize, bytes: &[u8]| footer[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, b"conectix");
    put(8, &2_u32.to_be_bytes()); // features: reserved, always set
    put(12, &0x0001_0000_u32.to_be_bytes()); // version 1.0
    put(16, &u64::MAX.to_be_bytes()); // no dynamic header
    put(24, &0_u32.to_be_bytes()); // time stamp: seconds since 2000
    put(28, b"win ");
    put(32, &0x000a_0000_u32.to_be_bytes()); // version of the creator
    put(36, b"Wi2k");
    put(40, &size.to_be_bytes()); // original size
    put(48, &size.to_be_bytes()); // current size
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    put(60, &2_u32.to_be_bytes()); // fixed
    put(68, &DISK_ID);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// Returns cylinders, heads and sectors a track for a disk of so many sectors, by the specification's appendix.
fn geometry(total: u64) -> (u16, u8, u8) {
    const LARGEST: u64 = 65535 * 16 * 255;
    let total = total.min(LARGEST);
    let (sectors, heads, cylinders_times_heads);
    if total >= 65535 * 16 * 63 {
        (sectors, heads, cylinders_times_heads) = (255, 16, total / 255);
    } else {
        let (mut s, mut cth) = (17, total / 17);
        let mut h = cth.div_ceil(1024).max(4);
        if cth >= h * 1024 || h > 16 {
            (s, h, cth) = (31, 16, total / 31);
        }
        if cth >= h * 1024 {
            (s, h, cth) = (63, 16, total / 63);
        }
        (sectors, heads, cylinders_times_heads) = (s, h, cth);
    }
    let narrow = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    (
        u16::try_from(cylinders_times_heads / heads).unwrap_or(u16::MAX),
        narrow(heads),
        narrow(sectors),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_is_what_azure_asks_for() {
        let footer = footer(66 << 20);
        assert_eq!(&footer[..8], b"conectix");
        assert_eq!(footer[8..16], [0, 0, 0, 2, 0, 1, 0, 0]);
        assert_eq!(footer[16..24], [0xff; 8]);
        assert_eq!(footer[40..48], (66_u64 << 20).to_be_bytes());
        assert_eq!(footer[40..48], footer[48..56]);
        assert_eq!(footer[60..64], [0, 0, 0, 2]);
        let stored = u32::from_be_bytes(footer[64..68].try_into().unwrap());
        let sum: u32 = footer
            .iter()
            .enumerate()
            .filter(|(i, _)| !(64..68).contains(i))
            .map(|(_, b)| u32::from(*b))
            .sum();
        assert_eq!(stored, !sum);
    }

    #[test]
    fn the_geometry_follows_the_appendix() {
        // 66 MiB, 40 GiB and 2040 GiB, worked out by hand from the specification's algorithm.
        assert_eq!(geometry((66 << 20) / 512), (993, 8, 17));
        assert_eq!(geometry((40 << 30) / 512), (20560, 16, 255));
        assert_eq!(geometry(u64::MAX), (65535, 16, 255));
    }
}
