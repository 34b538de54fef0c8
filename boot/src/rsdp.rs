//! The ACPI root pointer (ACPI 6.5, section 5.2.5), and the search for it where nobody tells.

use crate::physical::PhysicalMemory;

const SIGNATURE: u64 = u64::from_le_bytes(*b"RSD PTR ");

/// Where the BIOS puts read-only data.
const BIOS_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// Searches the BIOS area (0xE0000 to 0xFFFFF) for a root pointer with a right checksum. The extended BIOS data area is not
/// searched: hosts with direct boot have none.
pub fn find(memory: &impl PhysicalMemory) -> Option<u64> {
    BIOS_AREA
        .step_by(16)
        .find(|&address| memory.read_u64(address) == Ok(SIGNATURE) && is_valid(memory, address))
}

/// Whether a root pointer with a right checksum stands at `address`.
pub fn is_valid(memory: &impl PhysicalMemory, address: u64) -> bool {
    let mut bytes = [0; 20];
    memory.read(address, &mut bytes).is_ok()
        && bytes.starts_with(&SIGNATURE.to_le_bytes())
        && bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::physical::testing::Pieces;

    /// A root pointer of ACPI 1.0 with its RSDT at 0x1234.
    pub(crate) fn golden() -> Vec<u8> {
        let mut bytes = b"RSD PTR \0BOCHS \0\x34\x12\0\0".to_vec();
        let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[8] = 0u8.wrapping_sub(sum);
        bytes
    }

    #[test]
    fn the_first_valid_root_pointer_is_found() {
        let mut area = vec![0; 0x2_0000];
        let mut broken = golden();
        broken[16] ^= 1;
        area[0x100..0x114].copy_from_slice(&broken);
        area[0x208..0x21c].copy_from_slice(&golden()); // not on a 16-byte boundary
        area[0x1_f300..0x1_f314].copy_from_slice(&golden());
        assert_eq!(find(&Pieces::default().with(0xe_0000, area)), Some(0xf_f300));
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        assert_eq!(find(&Pieces::default()), None);
        assert_eq!(find(&Pieces::default().with(0xe_0000, vec![0; 0x2_0000])), None);
    }
}
