//! Reading physical memory, as the parsers see it.
//!
//! The kernel implements [`PhysicalMemory`] over the identity map that it has at its entry; the tests over a few arrays.

/// The address is not one that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("physical address {0:#x} cannot be read")]
pub struct Unreadable(pub u64);

/// A source of bytes at physical addresses.
pub trait PhysicalMemory {
    /// Copies the bytes at `address` into the whole of `into`.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if any of these bytes lies outside of what can be read; `into` is then unspecified.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable>;

    /// Reads a little-endian 16-bit number.
    ///
    /// # Errors
    ///
    /// As [`PhysicalMemory::read`].
    fn read_u16(&self, address: u64) -> Result<u16, Unreadable> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes).map(|()| u16::from_le_bytes(bytes))
    }

    /// Reads a little-endian 32-bit number.
    ///
    /// # Errors
    ///
    /// As [`PhysicalMemory::read`].
    fn read_u32(&self, address: u64) -> Result<u32, Unreadable> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian 64-bit number.
    ///
    /// # Errors
    ///
    /// As [`PhysicalMemory::read`].
    fn read_u64(&self, address: u64) -> Result<u64, Unreadable> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes).map(|()| u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Physical memory made of a few pieces.

    use super::{PhysicalMemory, Unreadable};

    /// Pieces of memory at their addresses; everything between them is unreadable.
    #[derive(Default)]
    pub(crate) struct Pieces(Vec<(u64, Vec<u8>)>);

    impl Pieces {
        pub(crate) fn with(mut self, address: u64, bytes: impl Into<Vec<u8>>) -> Self {
            self.0.push((address, bytes.into()));
            self
        }
    }

    impl PhysicalMemory for Pieces {
        fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
            for (start, bytes) in &self.0 {
                let Some(offset) = address.checked_sub(*start).and_then(|o| usize::try_from(o).ok()) else {
                    continue;
                };
                let Some(end) = offset.checked_add(into.len()) else {
                    continue;
                };
                if let Some(found) = bytes.get(offset..end) {
                    into.copy_from_slice(found);
                    return Ok(());
                }
            }
            Err(Unreadable(address))
        }
    }
}
