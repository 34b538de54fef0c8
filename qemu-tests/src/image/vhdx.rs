//! VHDX with blocks only where the disk is not zero (MS-VHDX). All numbers are little-endian.
//!
//! ```text
//!   0        64 KiB    128 KiB   192 KiB   256 KiB   1 MiB  2 MiB     3 MiB  4 MiB
//!   | file id | header 1| header 2| regions | regions | log  | metadata | BAT  | blocks...
//! ```

use std::io::Write;

use anyhow::{Result, bail};
use crc::{CRC_32_ISCSI, Crc};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const BLOCK: usize = 2 * MIB;
const LOG_START: usize = MIB;
const METADATA_START: usize = 2 * MIB;
const BAT_START: usize = 3 * MIB;
const BLOCKS_START: usize = 4 * MIB;
/// Payload blocks between two entries for sector bitmaps: 2^23 sectors of 512 bytes make a chunk.
const CHUNK_BLOCKS: usize = (1 << 23) * 512 / BLOCK;
/// The state of an entry of the block allocation table (BAT) whose block is in the file (`PAYLOAD_BLOCK_FULLY_PRESENT`).
const FULLY_PRESENT: u64 = 6;

const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A length as a 32-bit field; what is written here is far below 4 GiB.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

/// A GUID in wire order from the parts in which the specification writes it.
const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7],
    ]
}

const BAT_REGION: [u8; 16] = guid(
    0x2dc2_7766,
    0xf623,
    0x4200,
    [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08],
);
const METADATA_REGION: [u8; 16] = guid(
    0x8b7c_a206,
    0x4790,
    0x4b9a,
    [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e],
);
const FILE_PARAMETERS: [u8; 16] = guid(
    0xcaa1_6737,
    0xfa36,
    0x4d43,
    [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b],
);
const DISK_SIZE: [u8; 16] = guid(
    0x2fa5_4224,
    0xcd1b,
    0x4876,
    [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8],
);
const DISK_ID: [u8; 16] = guid(
    0xbeca_12ab,
    0xb2e6,
    0x4523,
    [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46],
);
const LOGICAL_SECTOR: [u8; 16] = guid(
    0x8141_bf1d,
    0xa96f,
    0x4709,
    [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f],
);
const PHYSICAL_SECTOR: [u8; 16] = guid(
    0xcda3_48c7,
    0x445d,
    0x4471,
    [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56],
);
/// Identifiers of this file and disk; fixed, so that images can be reproduced.
const FILE_WRITE: [u8; 16] = guid(
    0x6e9a_1b70,
    0x5f0c,
    0x4f5e,
    [0x9d, 0x5b, 0x0c, 0x8f, 0x0a, 0x7b, 0xe5, 0x04],
);
const DATA_WRITE: [u8; 16] = guid(
    0x6e9a_1b70,
    0x5f0c,
    0x4f5e,
    [0x9d, 0x5b, 0x0c, 0x8f, 0x0a, 0x7b, 0xe5, 0x05],
);
const THIS_DISK: [u8; 16] = guid(
    0x6e9a_1b70,
    0x5f0c,
    0x4f5e,
    [0x9d, 0x5b, 0x0c, 0x8f, 0x0a, 0x7b, 0xe5, 0x06],
);

pub(super) fn write(disk: &[u8], out: &mut impl Write) -> Result<()> {
    if disk.is_empty() || !disk.len().is_multiple_of(MIB) {
        bail!("a disk of {} bytes is not a whole number of MiB", disk.len());
    }
    let (bat, present) = allocation_table(disk);
    if bat.len() > BLOCKS_START - BAT_START {
        bail!(
            "a disk of {} bytes needs a larger block allocation table than this writer makes",
            disk.len()
        );
    }
    let mut front = vec![0; BLOCKS_START];
    put(&mut front, 0, b"vhdxfile");
    for (index, unit) in "vmbus".encode_utf16().enumerate() {
        put(&mut front, 8 + 2 * index, &unit.to_le_bytes());
    }
    for (offset, sequence) in [(64 * KIB, 0_u64), (128 * KIB, 1)] {
        put(&mut front, offset, &header(sequence));
    }
    for offset in [192 * KIB, 256 * KIB] {
        put(&mut front, offset, &region_table());
    }
    put(&mut front, METADATA_START, &metadata(disk.len() as u64));
    put(&mut front, BAT_START, &bat);
    out.write_all(&front)?;
    for block in present {
        let bytes = &disk[block * BLOCK..disk.len().min((block + 1) * BLOCK)];
        out.write_all(bytes)?;
        out.write_all(&vec![0; BLOCK - bytes.len()])?;
    }
    Ok(())
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    target[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Fills the checksum at offset 4 of a structure whose checksum counts as zero while it is computed.
fn seal(structure: &mut [u8]) {
    let checksum = CHECKSUM.checksum(structure);
    put(structure, 4, &checksum.to_le_bytes());
}

fn header(sequence: u64) -> Vec<u8> {
    let mut header = vec![0; 4 * KIB];
    put(&mut header, 0, b"head");
    put(&mut header, 8, &sequence.to_le_bytes());
    put(&mut header, 16, &FILE_WRITE);
    put(&mut header, 32, &DATA_WRITE);
    // At 48 the log's identifier: zero, because there is nothing to replay.
    put(&mut header, 66, &1_u16.to_le_bytes()); // version
    put(&mut header, 68, &length(MIB)); // length of the log
    put(&mut header, 72, &(LOG_START as u64).to_le_bytes());
    seal(&mut header);
    header
}

fn region_table() -> Vec<u8> {
    let mut table = vec![0; 64 * KIB];
    put(&mut table, 0, b"regi");
    put(&mut table, 8, &2_u32.to_le_bytes());
    for (index, (region, start)) in [(BAT_REGION, BAT_START), (METADATA_REGION, METADATA_START)]
        .into_iter()
        .enumerate()
    {
        let entry = 16 + 32 * index;
        put(&mut table, entry, &region);
        put(&mut table, entry + 16, &(start as u64).to_le_bytes());
        put(&mut table, entry + 24, &length(MIB));
        put(&mut table, entry + 28, &1_u32.to_le_bytes()); // required
    }
    seal(&mut table);
    table
}

fn metadata(disk_size: u64) -> Vec<u8> {
    /// The item describes the virtual disk, and a reader has to know it.
    const DISK: u32 = 6;
    /// The item describes the file, and a reader has to know it.
    const FILE: u32 = 4;
    let mut parameters = [0; 8];
    put(&mut parameters, 0, &length(BLOCK));
    let items: [([u8; 16], &[u8], u32); 5] = [
        (FILE_PARAMETERS, &parameters, FILE),
        (DISK_SIZE, &disk_size.to_le_bytes(), DISK),
        (DISK_ID, &THIS_DISK, DISK),
        (LOGICAL_SECTOR, &512_u32.to_le_bytes(), DISK),
        (PHYSICAL_SECTOR, &4096_u32.to_le_bytes(), DISK),
    ];
    let mut region = vec![0; 128 * KIB];
    put(&mut region, 0, b"metadata");
    put(&mut region, 10, &length(items.len())[..2]);
    let mut value_at = 64 * KIB;
    for (index, (item, value, flags)) in items.into_iter().enumerate() {
        let entry = 32 + 32 * index;
        put(&mut region, entry, &item);
        put(&mut region, entry + 16, &length(value_at));
        put(&mut region, entry + 20, &length(value.len()));
        put(&mut region, entry + 24, &flags.to_le_bytes());
        put(&mut region, value_at, value);
        value_at += value.len();
    }
    region
}

/// Returns the block allocation table, and which blocks of the disk are in the file, in order.
fn allocation_table(disk: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut present = Vec::new();
    let mut table = Vec::new();
    for (index, block) in disk.chunks(BLOCK).enumerate() {
        if index > 0 && index.is_multiple_of(CHUNK_BLOCKS) {
            table.extend(0_u64.to_le_bytes()); // a sector bitmap, which only differencing disks have
        }
        let mut entry = 0;
        if block.iter().any(|byte| *byte != 0) {
            let position_mib = (BLOCKS_START + present.len() * BLOCK) / MIB;
            entry = (position_mib as u64) << 20 | FULLY_PRESENT;
            present.push(index);
        }
        table.extend(entry.to_le_bytes());
    }
    (table, present)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(disk: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        write(disk, &mut file).unwrap();
        file
    }

    #[test]
    fn only_blocks_with_contents_are_in_the_file() {
        let mut disk = vec![0; 9 * MIB];
        disk[4 * MIB + 5] = 1;
        disk[9 * MIB - 1] = 2;
        let file = written(&disk);
        assert_eq!(file.len(), BLOCKS_START + 2 * BLOCK);
        assert_eq!(file[BLOCKS_START + 5], 1);
        assert_eq!(
            file[BLOCKS_START + BLOCK + MIB - 1],
            2,
            "the last block is half a block"
        );
        let entry = |index: usize| u64::from_le_bytes(file[BAT_START + 8 * index..][..8].try_into().unwrap());
        assert_eq!([0, 1, 2, 3, 4].map(entry), [0, 0, 4 << 20 | 6, 0, 6 << 20 | 6]);
    }

    #[test]
    fn the_structures_carry_their_checksums() {
        let file = written(&vec![1; MIB]);
        for (offset, length, signature) in [
            (64 * KIB, 4 * KIB, b"head"),
            (128 * KIB, 4 * KIB, b"head"),
            (192 * KIB, 64 * KIB, b"regi"),
        ] {
            let mut structure = file[offset..offset + length].to_vec();
            assert_eq!(&structure[..4], signature);
            let stored = u32::from_le_bytes(structure[4..8].try_into().unwrap());
            structure[4..8].fill(0);
            assert_eq!(stored, Crc::<u32>::new(&CRC_32_ISCSI).checksum(&structure));
        }
        // The checksum is the one that the specification means: CRC-32C of "123456789" is known.
        assert_eq!(CHECKSUM.checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_size_that_is_not_whole_mib_is_refused() {
        assert!(write(&[0; 512], &mut Vec::new()).is_err());
        assert!(write(&[], &mut Vec::new()).is_err());
    }
}
