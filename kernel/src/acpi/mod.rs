//! ACPI: the few tables that the kernel reads, by hand.
//!
//! From the root pointer over the list of tables (XSDT, else RSDT) to a table by its signature. Everything is an allegation of
//! firmware's: lengths are bounded, checksums are checked, and what cannot be read does not exist. Source: ACPI 6.5, chapter 5.2.

pub mod aml;
pub mod fadt;
pub mod madt;

use alloc::vec::Vec;
use boot::PhysicalMemory;

/// Bytes of a table's header.
const HEADER: u64 = 36;

/// Longest table that is read.
const LONGEST: u64 = 256 << 10;

/// A table whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Physical address.
    pub address: u64,
    /// Bytes, header included.
    pub length: u64,
}

impl Table {
    /// The table at an address, if it has the signature, a length that makes sense and a right checksum.
    pub fn at(memory: &impl PhysicalMemory, address: u64, signature: [u8; 4]) -> Option<Self> {
        if memory.read_u32(address).ok()? != u32::from_le_bytes(signature) {
            return None;
        }
        let length = u64::from(memory.read_u32(address.checked_add(4)?).ok()?);
        if !(HEADER..=LONGEST).contains(&length) {
            return None;
        }
        let table = Self { address, length };
        table.sums_to_zero(memory).then_some(table)
    }

    /// Reads as much of the table as fits, its header included.
    pub fn read<'a>(self, memory: &impl PhysicalMemory, into: &'a mut [u8]) -> Option<&'a [u8]> {
        let length = usize::try_from(self.length).ok()?.min(into.len());
        let bytes = into.get_mut(..length)?;
        memory.read(self.address, bytes).ok()?;
        Some(bytes)
    }

    /// Reads the whole table without its header, if it has at most `limit` bytes and there is memory for it.
    pub fn read_whole(self, memory: &impl PhysicalMemory, limit: usize) -> Option<Vec<u8>> {
        let length = usize::try_from(self.length.checked_sub(HEADER)?)
            .ok()
            .filter(|length| *length <= limit)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).ok()?;
        bytes.resize(length, 0);
        memory.read(self.address.checked_add(HEADER)?, &mut bytes).ok()?;
        Some(bytes)
    }

    fn sums_to_zero(self, memory: &impl PhysicalMemory) -> bool {
        let mut sum = 0u8;
        let mut chunk = [0; 64];
        let mut at = self.address;
        let mut left = self.length;
        while left > 0 {
            let length = left.min(chunk.len() as u64);
            let Some(bytes) = usize::try_from(length).ok().and_then(|length| chunk.get_mut(..length)) else {
                return false;
            };
            if memory.read(at, bytes).is_err() {
                return false;
            }
            sum = bytes.iter().fold(sum, |sum, byte| sum.wrapping_add(*byte));
            let Some(next) = at.checked_add(length) else {
                return false;
            };
            at = next;
            left -= length;
        }
        sum == 0
    }

    /// Addresses of the entries of a list of tables, each `size` bytes long.
    fn entries(self, size: u64) -> impl Iterator<Item = u64> {
        (0..(self.length - HEADER) / size).map(move |index| self.address + HEADER + index * size)
    }
}

/// Finds a table by its signature.
pub fn find(memory: &impl PhysicalMemory, rsdp: u64, signature: [u8; 4]) -> Option<Table> {
    if !boot::rsdp::is_valid(memory, rsdp) {
        return None;
    }
    let mut revision = [0];
    memory.read(rsdp.checked_add(15)?, &mut revision).ok()?;
    let at = |offset: u64| rsdp.checked_add(offset);
    if revision >= [2]
        && let Ok(address) = memory.read_u64(at(24)?)
        && let Some(list) = Table::at(memory, address, *b"XSDT")
    {
        return list
            .entries(8)
            .find_map(|entry| Table::at(memory, memory.read_u64(entry).ok()?, signature));
    }
    let list = Table::at(memory, u64::from(memory.read_u32(at(16)?).ok()?), *b"RSDT")?;
    list.entries(4)
        .find_map(|entry| Table::at(memory, u64::from(memory.read_u32(entry).ok()?), signature))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Firmware's memory made of golden tables.

    use boot::PhysicalMemory;
    use boot::physical::Unreadable;

    pub(crate) struct Firmware(pub(crate) Vec<(u64, Vec<u8>)>);

    impl PhysicalMemory for Firmware {
        fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
            for (start, bytes) in &self.0 {
                let Some(from) = address.checked_sub(*start).and_then(|from| usize::try_from(from).ok()) else {
                    continue;
                };
                if let Some(found) = from.checked_add(into.len()).and_then(|end| bytes.get(from..end)) {
                    into.copy_from_slice(found);
                    return Ok(());
                }
            }
            Err(Unreadable(address))
        }
    }

    /// Makes the byte at `at` such that all bytes add up to zero.
    pub(crate) fn seal(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        bytes[at] = 0;
        bytes[at] = bytes
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
            .wrapping_neg();
        bytes
    }

    pub(crate) fn table(signature: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend_from_slice(&u32::try_from(36 + content.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(b"\x01\0HOSTIDTABLEID1\0\0\0\0AUTHORID");
        bytes.truncate(36);
        bytes.resize(36, 0);
        bytes.extend_from_slice(content);
        seal(bytes, 9)
    }

    /// A root pointer of the given revision, at 0xe0000, with an RSDT at 0x1000 and an XSDT at 0x2000.
    pub(crate) fn root(revision: u8) -> Vec<u8> {
        let mut bytes = b"RSD PTR \0HOSTID".to_vec();
        bytes.push(revision);
        bytes.extend_from_slice(&0x1000u32.to_le_bytes());
        let mut bytes = seal(bytes, 8);
        bytes.extend_from_slice(&36u32.to_le_bytes());
        bytes.extend_from_slice(&0x2000u64.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        seal(bytes, 32)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Firmware, root, table};
    use super::*;

    fn firmware(revision: u8) -> Firmware {
        Firmware(vec![
            (0xe_0000, root(revision)),
            (0x1000, table(b"RSDT", &[0, 0x30, 0, 0, 0, 0x40, 0, 0])),
            (
                0x2000,
                table(b"XSDT", &[0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0]),
            ),
            (0x3000, table(b"FACP", &[1; 80])),
            (0x4000, table(b"APIC", &[2; 8])),
            (0x5000, table(b"FACP", &[3; 200])),
            (0x6000, table(b"APIC", &[4; 8])),
        ])
    }

    #[test]
    fn the_list_that_fits_the_revision_is_followed() {
        assert_eq!(
            find(&firmware(0), 0xe_0000, *b"APIC"),
            Some(Table {
                address: 0x4000,
                length: 44
            })
        );
        assert_eq!(
            find(&firmware(2), 0xe_0000, *b"APIC"),
            Some(Table {
                address: 0x6000,
                length: 44
            })
        );
        assert_eq!(find(&firmware(2), 0xe_0000, *b"HPET"), None);
    }

    #[test]
    fn a_broken_xsdt_falls_back_to_the_rsdt() {
        let mut firmware = firmware(2);
        firmware.0[2].1[40] ^= 1;
        assert_eq!(
            find(&firmware, 0xe_0000, *b"APIC"),
            Some(Table {
                address: 0x4000,
                length: 44
            })
        );
    }

    #[test]
    fn tables_that_are_broken_or_out_of_reach_do_not_exist() {
        let mut broken = firmware(0);
        broken.0[4].1[40] ^= 1;
        assert_eq!(find(&broken, 0xe_0000, *b"APIC"), None, "checksum");
        let mut long = firmware(0);
        long.0[4].1[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(find(&long, 0xe_0000, *b"APIC"), None, "length");
        let mut short = firmware(0);
        short.0[4].1[4..8].copy_from_slice(&[0; 4]);
        assert_eq!(find(&short, 0xe_0000, *b"APIC"), None, "length below the header's");
        assert_eq!(find(&firmware(0), 0xe_0010, *b"APIC"), None, "no root pointer");
        assert_eq!(find(&firmware(0), u64::MAX - 4, *b"APIC"), None);
    }
}
