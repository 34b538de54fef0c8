//! Bytes as what a target makes of them.

use arbitrary::{Arbitrary, Unstructured};

/// Returns the input in the bytes, or `None` if there are too few.
pub(crate) fn input<'a, T: Arbitrary<'a>>(data: &'a [u8]) -> Option<T> {
    T::arbitrary(&mut Unstructured::new(data)).ok()
}
