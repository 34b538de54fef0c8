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
        let mut text = text.as_bytes();
        let mut written = [0; 16];
        let mut rest: &mut [u8] = &mut written;
        while let [byte, behind @ ..] = rest {
            // Bytes 4, 6, 8 and 10 have a dash in front.
            if matches!(behind.len(), 11 | 9 | 7 | 5) {
                let [b'-', digits @ ..] = text else {
                    return Err(GuidError);
                };
                text = digits;
            }
            let [high, low, digits @ ..] = text else {
                return Err(GuidError);
            };
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(GuidError);
            };
            *byte = high << 4 | low;
            (text, rest) = (digits, behind);
        }
        if !text.is_empty() {
            return Err(GuidError);
        }
        Ok(Self(reordered(written)))
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
    // In each arm the character is at least what is subtracted.
    match character {
        b'0'..=b'9' => Some(character.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(character.wrapping_sub(b'a' - 10)),
        b'A'..=b'F' => Some(character.wrapping_sub(b'A' - 10)),
        _ => None,
    }
}

/// From wire order to the order in which the bytes are written, and back: the first three fields are turned round.
const fn reordered([a, b, c, d, e, f, g, h, rest @ ..]: [u8; 16]) -> [u8; 16] {
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

impl fmt::Display for Guid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in reordered(self.0).into_iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                formatter.write_str("-")?;
            }
            write!(formatter, "{byte:02x}")?;
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
