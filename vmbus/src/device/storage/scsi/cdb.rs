//! Commands: [`Cdb`].

/// A command descriptor block: what a device is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; 16],
    len: u8,
}

/// The largest block address and count of the ten-byte commands.
const MAX_LBA_10: u64 = u32::MAX as u64;
const MAX_COUNT_10: u32 = u16::MAX as u32;

impl Cdb {
    const fn six(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self {
            bytes: [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            len: 6,
        }
    }

    const fn ten(bytes: [u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Self {
            bytes: [a, b, c, d, e, f, g, h, i, j, 0, 0, 0, 0, 0, 0],
            len: 10,
        }
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Returns the operation code.
    #[must_use]
    pub const fn operation(&self) -> u8 {
        self.bytes[0]
    }

    /// TEST UNIT READY.
    #[must_use]
    pub const fn test_unit_ready() -> Self {
        Self::six([0; 6])
    }

    /// INQUIRY: what is this?
    #[must_use]
    pub const fn inquiry(len: u16) -> Self {
        let [high, low] = len.to_be_bytes();
        Self::six([0x12, 0, 0, high, low, 0])
    }

    /// INQUIRY of a page of vital product data.
    #[must_use]
    pub const fn inquiry_page(page: u8, len: u16) -> Self {
        let [high, low] = len.to_be_bytes();
        Self::six([0x12, 1, page, high, low, 0])
    }

    /// MODE SENSE (6) of all pages, of which only the header is wanted.
    #[must_use]
    pub const fn mode_sense(len: u8) -> Self {
        Self::six([0x1a, 0, 0x3f, 0, len, 0])
    }

    /// REPORT LUNS.
    #[must_use]
    pub const fn report_luns(len: u32) -> Self {
        let [a, b, c, d] = len.to_be_bytes();
        let mut cdb = Self {
            bytes: [0; 16],
            len: 12,
        };
        cdb.bytes = [0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0];
        cdb
    }

    /// READ CAPACITY (10).
    #[must_use]
    pub const fn read_capacity_10() -> Self {
        Self::ten([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// READ CAPACITY (16), for what has 2^32 blocks or more.
    #[must_use]
    pub const fn read_capacity_16(len: u8) -> Self {
        Self {
            bytes: [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len, 0, 0],
            len: 16,
        }
    }

    /// READ, in the ten-byte form wherever that can say it.
    #[must_use]
    pub const fn read(lba: u64, blocks: u32) -> Self {
        Self::transfer(0x28, 0x88, lba, blocks)
    }

    /// WRITE, in the ten-byte form wherever that can say it.
    #[must_use]
    pub const fn write(lba: u64, blocks: u32) -> Self {
        Self::transfer(0x2a, 0x8a, lba, blocks)
    }

    /// WRITE with "force unit access": the data is on the medium when it ends.
    #[must_use]
    pub const fn write_through(lba: u64, blocks: u32) -> Self {
        let mut cdb = Self::write(lba, blocks);
        cdb.bytes[1] = 0x08;
        cdb
    }

    const fn transfer(ten: u8, sixteen: u8, lba: u64, blocks: u32) -> Self {
        let [a, b, c, d, e, f, g, h] = lba.to_be_bytes();
        let [i, j, k, l] = blocks.to_be_bytes();
        if lba <= MAX_LBA_10 && blocks <= MAX_COUNT_10 {
            Self::ten([ten, 0, e, f, g, h, 0, k, l, 0])
        } else {
            Self {
                bytes: [sixteen, 0, a, b, c, d, e, f, g, h, i, j, k, l, 0, 0],
                len: 16,
            }
        }
    }

    /// SYNCHRONIZE CACHE (10) of everything: what was written before it is on the medium after it.
    #[must_use]
    pub const fn synchronize_cache() -> Self {
        Self::ten([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// UNMAP, with `len` bytes of parameters: see [`unmap_parameters`].
    #[must_use]
    pub const fn unmap(len: u16) -> Self {
        let [high, low] = len.to_be_bytes();
        Self::ten([0x42, 0, 0, 0, 0, 0, 0, high, low, 0])
    }
}

/// Returns UNMAP's parameters for one range.
#[must_use]
pub fn unmap_parameters(lba: u64, blocks: u32) -> [u8; 24] {
    let mut bytes = [0; 24];
    // The length of what follows the first field, and of the descriptors.
    bytes[1] = 22;
    bytes[3] = 16;
    bytes[8..16].copy_from_slice(&lba.to_be_bytes());
    bytes[16..20].copy_from_slice(&blocks.to_be_bytes());
    bytes
}
