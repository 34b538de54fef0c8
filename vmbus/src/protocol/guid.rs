//! GUIDs as they stand on the wire: the first three fields little-endian, the rest as bytes.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID: 16 bytes in wire order.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Guid([u8; 16]);

/// A text is no GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a GUID is written as xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, in hexadecimal")]
pub struct GuidError;

/// Positions in the wire order of the bytes as they are written.
const WRITTEN_ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// The GUID of only zeros.
    pub const ZERO: Self = Self([0; 16]);

    /// Makes a GUID from bytes in wire order.
    #[must_use]
    pub const fn from_wire(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes in wire order.
    #[must_use]
    pub const fn to_wire(self) -> [u8; 16] {
        self.0
    }

    /// Parses the usual form, `ba6163d9-04a1-4d29-b605-72e2ffb1dc7f`, in either case and without braces.
    ///
    /// # Errors
    ///
    /// [`GuidError`] for any other text.
    pub const fn parse(text: &str) -> Result<Self, GuidError> {
        let text = text.as_bytes();
        if text.len() != 36 {
            return Err(GuidError);
        }
        let mut wire = [0; 16];
        let (mut position, mut byte) = (0, 0);
        while byte < 16 {
            if matches!(position, 8 | 13 | 18 | 23) {
                if text[position] != b'-' {
                    return Err(GuidError);
                }
                position += 1;
            }
            let (Some(high), Some(low)) = (digit(text[position]), digit(text[position + 1])) else {
                return Err(GuidError);
            };
            wire[WRITTEN_ORDER[byte]] = high << 4 | low;
            position += 2;
            byte += 1;
        }
        Ok(Self(wire))
    }

    /// Parses a literal at compile time: `const CLASS: Guid = Guid::literal("...")`.
    ///
    /// # Panics
    ///
    /// If the text is no GUID; in a `const` that is a compile error.
    #[must_use]
    #[expect(clippy::panic, reason = "meant for constants, where it is a compile error")]
    pub const fn literal(text: &str) -> Self {
        match Self::parse(text) {
            Ok(guid) => guid,
            Err(_) => panic!("not a GUID"),
        }
    }
}

const fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (written, wire) in WRITTEN_ORDER.into_iter().enumerate() {
            if matches!(written, 4 | 6 | 8 | 10) {
                formatter.write_str("-")?;
            }
            write!(formatter, "{:02x}", self.0[wire])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_order_differ_as_windows_has_it() {
        let guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
        assert_eq!(
            guid.to_wire(),
            [
                0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d, 0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f
            ]
        );
        assert_eq!(std::format!("{guid}"), "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
        assert_eq!(Guid::parse("BA6163D9-04A1-4D29-B605-72E2FFB1DC7F"), Ok(guid));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ba6163d9-04a1-4d29-b605-72e2ffb1dc7",
            "ba6163d9x04a1-4d29-b605-72e2ffb1dc7f",
            "zz6163d9-04a1-4d29-b605-72e2ffb1dc7f",
        ] {
            assert_eq!(Guid::parse(text), Err(GuidError), "{text}");
        }
    }
}
