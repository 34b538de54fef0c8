//! Numbers at literal offsets of byte strings: all that the model knows of structures.

use alloc::vec::Vec;

/// Reads a byte, or 0 behind the end.
pub(super) fn u8_at(bytes: &[u8], offset: usize) -> u8 {
    bytes.get(offset).copied().unwrap_or(0)
}

/// Reads a little-endian number; bytes behind the end are 0.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([u8_at(bytes, offset), u8_at(bytes, offset + 1)])
}

/// Reads a little-endian number; bytes behind the end are 0.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

/// Reads a little-endian number; bytes behind the end are 0.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

/// Overwrites bytes, as far as they are there.
pub(super) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    for (index, byte) in value.iter().enumerate() {
        if let Some(target) = bytes.get_mut(offset + index) {
            *target = *byte;
        }
    }
}

/// Joins byte strings.
pub(super) fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Returns whether all bytes are 0.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Whole slices at a time: in an interpreter that is one step, not one for each byte.
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()])
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
pub(super) const fn low32(value: u64) -> u32 {
    value as u32
}

/// The low 16 bits.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
pub(super) const fn low16(value: u64) -> u16 {
    value as u16
}

/// The low 8 bits.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
pub(super) const fn low8(value: u64) -> u8 {
    value as u8
}

/// A length as the 32 bits of a wire field. Test data is never longer.
pub(super) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A number from the wire as a length.
pub(super) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Turns a GUID's usual text into its bytes on the wire.
///
/// # Panics
///
/// If it is not one: it is a literal of a test.
#[expect(clippy::panic, reason = "a mistake in a test's literal")]
pub(super) fn guid(text: &str) -> [u8; 16] {
    let mut digits = text.bytes().filter(|byte| *byte != b'-').map(|byte| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        _ => panic!("{text} is not a GUID"),
    });
    let mut written = [0; 16];
    for byte in &mut written {
        let (Some(high), Some(low)) = (digits.next(), digits.next()) else {
            panic!("{text} is not a GUID");
        };
        *byte = high << 4 | low;
    }
    let [a, b, c, d, e, f, g, h, rest @ ..] = written;
    let mut wire = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    wire[8..].copy_from_slice(&rest);
    wire
}
