//! The bytes of a saved state: chunks, each with its length and kind in front.

use super::Error;

/// Marks the beginning of a saved state, and its version.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"kmclsav1");
/// Length and kind in front of each chunk.
pub(super) const HEAD: usize = 8;
pub(super) const BEGINNING: u32 = 1;
pub(super) const REQUEST: u32 = 2;
pub(super) const PACKET: u32 = 3;
pub(super) const END: u32 = 4;
/// The channel's part of a packet: id and the driver's number.
pub(super) const LIBRARY_PART: usize = 16;

/// Writes one chunk.
pub(super) struct Writer<'b> {
    rest: &'b mut [u8],
    pub(super) len: usize,
}

impl<'b> Writer<'b> {
    /// Begins a chunk with a body of `len` bytes, padded; or tells what it takes.
    pub(super) fn new(buffer: &'b mut [u8], kind: u32, len: usize) -> Result<Self, usize> {
        let len = len.saturating_add(HEAD + 7) & !7;
        let field = u32::try_from(len).map_err(|_| usize::MAX)?;
        let rest = buffer.get_mut(..len).ok_or(len)?;
        rest.fill(0);
        let mut writer = Self { rest, len };
        writer.put(&field.to_le_bytes());
        writer.put(&kind.to_le_bytes());
        Ok(writer)
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        // Each chunk has the length of what is put into it.
        if let Some((target, rest)) = core::mem::take(&mut self.rest).split_at_mut_checked(bytes.len()) {
            target.copy_from_slice(bytes);
            self.rest = rest;
        }
    }
}

/// Reads what a [`Writer`] has written, and believes none of it.
pub(super) struct Reader<'b>(pub(super) &'b [u8]);

impl<'b> Reader<'b> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'b [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Error::Corrupt)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.bytes(N)?.try_into().map_err(|_| Error::Corrupt)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes the next chunk apart: its kind and its body.
    pub(super) fn chunk(&mut self) -> Result<Option<(u32, Self)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let len = self.u32()? as usize;
        let kind = self.u32()?;
        let body = len.checked_sub(HEAD).ok_or(Error::Corrupt)?;
        Ok(Some((kind, Self(self.bytes(body)?))))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn chunks_of_any_content_go_there_and_back(
            chunks in prop::collection::vec((any::<u32>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        ) {
            let mut state = Vec::new();
            for (kind, number, content) in &chunks {
                let needed = match Writer::new(&mut [], *kind, 8 + content.len()) {
                    Err(needed) => needed,
                    Ok(_) => panic!("there is room for nothing"),
                };
                prop_assert!(needed.is_multiple_of(8) && (16 + content.len()..24 + content.len()).contains(&needed));
                prop_assert!(Writer::new(&mut vec![0xee; needed - 1], *kind, 8 + content.len()).is_err());
                // What was there before is not in it.
                let mut buffer = vec![0xee; needed + 3];
                let mut writer = Writer::new(&mut buffer, *kind, 8 + content.len()).ok().unwrap();
                writer.put(&number.to_le_bytes());
                writer.put(content);
                prop_assert_eq!(writer.len, needed);
                state.extend_from_slice(&buffer[..needed]);
            }
            let mut reader = Reader(&state);
            for (kind, number, content) in &chunks {
                let (read, mut body) = reader.chunk().unwrap().unwrap();
                prop_assert_eq!((read, body.u64().unwrap()), (*kind, *number));
                prop_assert_eq!(body.bytes(content.len()).unwrap(), content);
                prop_assert!(body.0.len() < 8 && body.0.iter().all(|byte| *byte == 0), "padding");
                prop_assert!(body.bytes(8).is_err());
            }
            prop_assert!(matches!(reader.chunk(), Ok(None)));
        }

        /// Whatever the bytes, each chunk lies in them, and there is an end.
        #[test]
        fn any_bytes_are_chunks_or_corrupt(bytes in prop::collection::vec(any::<u8>(), 0..80), lens in prop::collection::vec(0_u8..40, 6)) {
            let mut bytes = bytes;
            // Lengths that can be are more interesting.
            let mut at = 0;
            for len in lens {
                if let Some(field) = bytes.get_mut(at..at + 4) {
                    field.copy_from_slice(&[len, 0, 0, 0]);
                }
                at += usize::from(len).max(1);
            }
            let mut reader = Reader(&bytes);
            let mut taken = 0;
            while let Ok(Some((_, mut body))) = reader.chunk() {
                taken += HEAD + body.0.len();
                let _ = (body.u32(), body.u64(), body.array::<16>(), body.bytes(usize::MAX));
            }
            prop_assert!(taken <= bytes.len());
        }
    }
}
