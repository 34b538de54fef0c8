//! The one thing that we want of the machine's AML program: the sleep type of the state "soft off", `\_S5`.
//!
//! A name object with a package of integers is written in one way only, so it is found by its bytes; nothing is interpreted.
//! Source: ACPI Specification 6.5, sections 7.4.2.6, 20.2.

/// What to write into the sleep type fields of the two PM1 control registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepType {
    /// For PM1a.
    pub a: u8,
    /// For PM1b.
    pub b: u8,
}

const NAME_OP: u8 = 0x08;
const ROOT: u8 = b'\\';
const PACKAGE_OP: u8 = 0x12;

/// Finds the sleep types of `\_S5` in the bytes of a DSDT or SSDT (without its header). Looks at each byte once.
#[must_use]
pub fn soft_off(program: &[u8]) -> Option<SleepType> {
    program
        .windows(5)
        .enumerate()
        .filter(|(_, window)| *window == b"_S5_\x12")
        .filter(|(at, _)| is_named(program.get(..*at).unwrap_or(&[])))
        .find_map(|(at, _)| package(program.get(at + 4..)?))
}

/// Whether the bytes before a name make it the name of a new object: `Name (_S5, ...)` or `Name (\_S5, ...)`.
fn is_named(before: &[u8]) -> bool {
    matches!(before, [.., NAME_OP] | [.., NAME_OP, ROOT])
}

/// Reads the first two integers of a package.
fn package(bytes: &[u8]) -> Option<SleepType> {
    let [PACKAGE_OP, rest @ ..] = bytes else { return None };
    let lead = *rest.first()?;
    let more = usize::from(lead >> 6);
    let mut length = usize::from(lead & if more == 0 { 0x3f } else { 0x0f });
    for (index, byte) in rest.get(1..=more)?.iter().enumerate() {
        length |= usize::from(*byte) << (4 + 8 * index);
    }
    // The length counts from its own first byte.
    let body = rest.get(..length)?.get(1 + more..)?;
    let [count, elements @ ..] = body else { return None };
    let (a, elements) = integer(elements)?;
    let b = if *count >= 2 { integer(elements)?.0 } else { 0 };
    (*count >= 1 && a <= 7 && b <= 7).then_some(SleepType { a, b })
}

/// Reads an integer whose value fits a byte.
fn integer(bytes: &[u8]) -> Option<(u8, &[u8])> {
    match bytes {
        [value @ (0 | 1), rest @ ..] | [0x0a, value, rest @ ..] | [0x0b, value, 0, rest @ ..] => Some((*value, rest)),
        [0x0c, value, 0, 0, 0, rest @ ..] => Some((*value, rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn program(object: &[u8]) -> Vec<u8> {
        [
            b"\x5b\x80REGS\x01_S5_junk".as_slice(),
            object,
            b"\x14\x05_PTS\x01\x70_S5_",
        ]
        .concat()
    }

    #[test]
    fn the_usual_forms_are_found() {
        // Name (\_S5, Package (4) { 5, 5, 0, 0 }), and with Zero and One for the numbers, and without the root.
        let forms: [(&[u8], SleepType); 5] = [
            (
                b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00",
                SleepType { a: 5, b: 5 },
            ),
            (b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00", SleepType { a: 0, b: 0 }),
            (b"\x08_S5_\x12\x06\x04\x01\x00\x00\x00", SleepType { a: 1, b: 0 }),
            (b"\x08_S5_\x12\x07\x02\x0a\x07\x0a\x02", SleepType { a: 7, b: 2 }),
            (
                b"\x08_S5_\x12\x4b\x00\x02\x0b\x05\x00\x0c\x03\x00\x00\x00",
                SleepType { a: 5, b: 3 },
            ),
        ];
        for (bytes, expected) in forms {
            assert_eq!(soft_off(&program(bytes)), Some(expected), "{bytes:x?}");
        }
    }

    #[test]
    fn other_mentions_and_damaged_packages_are_passed_over() {
        assert_eq!(soft_off(&program(b"")), None);
        assert_eq!(soft_off(b"_S5_\x12"), None);
        for bytes in [
            b"\x14_S5_\x12\x06\x04\x01\x00\x00\x00".as_slice(), // a method
            b"\x08_S5_\x12\x3f\x04\x01\x00\x00\x00",            // longer than the program
            b"\x08_S5_\x12\x06\x04\x0a\x08\x00\x00",            // no such sleep type
            b"\x08_S5_\x12\x02\x04",
            b"\x08_S5_\x12\x00",
        ] {
            assert_eq!(soft_off(bytes), None, "{bytes:x?}");
        }
        let two = [
            b"\x08_S5_\x12\x02\x04".as_slice(),
            b"\x08_S5_\x12\x06\x02\x0a\x03\x00\x00",
        ]
        .concat();
        assert_eq!(
            soft_off(&two),
            Some(SleepType { a: 3, b: 0 }),
            "the damaged one is passed over"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_searched_without_panic(head in prop::collection::vec(any::<u8>(), 0..40), tail in prop::collection::vec(any::<u8>(), 0..40)) {
            let bytes = [head.as_slice(), b"\x08_S5_\x12", tail.as_slice()].concat();
            if let Some(sleep) = soft_off(&bytes) {
                prop_assert!(sleep.a <= 7 && sleep.b <= 7);
            }
        }
    }
}
