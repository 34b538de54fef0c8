//! The other end of a ring, written from the wire format: no structure and no constant of the crate.
//!
//! ```text
//! control page:  write index @0   read index @4   interrupt mask @8   pending send size @12   feature bits @64
//! packet:        type @0 (2)   data offset / 8 @2 (2)   length / 8 @4 (2)   flags @6 (2)   transaction id @8 (8)
//! ```

use arbitrary::Arbitrary;

pub(crate) const WRITE_INDEX: u32 = 0;
pub(crate) const READ_INDEX: u32 = 4;
pub(crate) const MASK: u32 = 8;
pub(crate) const PENDING: u32 = 12;
pub(crate) const FEATURES: u32 = 64;

/// Memory of a ring, as its other end reaches it.
pub(crate) trait Wire {
    /// Bytes of data.
    fn size(&self) -> u32;
    /// Stores a word of the control page.
    fn set(&self, offset: u32, value: u32);
    /// Loads a word of the control page.
    fn get(&self, offset: u32) -> u32;
    /// Stores eight bytes of the data; the place is a multiple of 8, and goes round.
    fn store(&self, at: u32, word: u64);
}

/// The types of packets: those that there are, and any.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Kind {
    InBand,
    Completion,
    GpaDirect,
    TransferPages,
    Any(u16),
}

impl Kind {
    const fn number(self) -> u16 {
        match self {
            Self::InBand => 6,
            Self::Completion => 11,
            Self::GpaDirect => 9,
            Self::TransferPages => 7,
            Self::Any(number) => number,
        }
    }
}

/// The transaction id of a packet.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Id {
    Small(u8),
    Any(u64),
}

impl Id {
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Small(number) => u64::from(number),
            Self::Any(number) => number,
        }
    }
}

/// A range of a packet that describes memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Range {
    count: u16,
    offset: u16,
    /// Added to the upper half of both.
    high: u8,
    /// How many page numbers really follow, modulo 4; `None`: as many as are right.
    pages: Option<u8>,
}

/// A packet as it is put into the ring, right or wrong.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) id: Id,
    /// Ranges, if the type has them; the count says one more or less for `miscount`.
    pub(crate) ranges: Vec<Range>,
    pub(crate) miscount: Option<u32>,
    /// Words of the payload.
    pub(crate) payload: u8,
    pub(crate) fill: u64,
    /// The two numbers of the header, if they are to be wrong.
    pub(crate) data_offset8: Option<u16>,
    pub(crate) length8: Option<u16>,
    /// Leaves that many words of the trailer out.
    pub(crate) short: bool,
}

impl Packet {
    /// The packet's words, with its trailer if it has one.
    pub(crate) fn words(&self) -> Vec<u64> {
        let kind = self.kind.number();
        let mut external = Vec::new();
        if matches!(kind, 7 | 9) {
            let count = self.miscount.unwrap_or(self.ranges.len().min(4) as u64 as u32);
            let set = if kind == 7 { self.fill & 0xffff } else { 0 };
            external.push(set | u64::from(count) << 32);
            for range in self.ranges.iter().take(4) {
                let high = u32::from(range.high & 1) << 31;
                let (count, offset) = (u32::from(range.count) | high, u32::from(range.offset) | high);
                external.push(u64::from(count) | u64::from(offset) << 32);
                if kind == 9 {
                    let right = (u64::from(offset % 4096) + u64::from(count)).div_ceil(4096).min(20);
                    let pages = range.pages.map_or(right, |pages| u64::from(pages % 4));
                    external.extend((0..pages).map(|page| self.fill.wrapping_add(page)));
                }
            }
        }
        let data_offset8 = self.data_offset8.unwrap_or(2 + external.len() as u64 as u16);
        let length8 = self
            .length8
            .unwrap_or(2 + external.len() as u64 as u16 + u16::from(self.payload));
        let first = u64::from(kind)
            | u64::from(data_offset8) << 16
            | u64::from(length8) << 32
            // Mostly a flag that there is, and none.
            | u64::from(if self.flags < 0xf0 { self.flags & 1 } else { self.flags }) << 48;
        let mut words = vec![first, self.id.number()];
        words.append(&mut external);
        words.extend((0..u64::from(self.payload)).map(|word| self.fill.wrapping_mul(word | 1)));
        if !self.short {
            words.push(0);
        }
        words
    }
}

/// What the other end of a ring does to it.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Deed {
    /// Puts a packet behind what it has sent, and tells.
    Send(Packet),
    /// Puts a packet, and does not tell.
    Put(Packet),
    /// Writes words anywhere in the data.
    Words {
        at: u16,
        words: [u64; 2],
    },
    /// Changes a byte, counted from where the next packet would be written, backwards.
    Flip {
        back: u16,
        mask: u8,
    },
    /// Tells of so many words more.
    Advance(u8),
    /// Writes any word of the control page.
    WriteIndex(u32),
    ReadIndex(u32),
    Pending(u32),
    Mask(u32),
    Features(u32),
    /// Says that it has read up to the write index that it sees.
    ReadAll,
    /// Says that it has read so many words more.
    ReadWords(u8),
}

/// The other end of one ring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) write: u32,
    pub(crate) read: u32,
}

impl Peer {
    pub(crate) fn act(&mut self, wire: &impl Wire, deed: &Deed) {
        let size = wire.size();
        match deed {
            Deed::Send(packet) => {
                let len = self.put(wire, packet);
                self.write = (self.write + len) % size;
                wire.set(WRITE_INDEX, self.write);
            }
            Deed::Put(packet) => {
                self.put(wire, packet);
            }
            Deed::Words { at, words } => {
                for (at, word) in (u32::from(*at)..).step_by(8).zip(words) {
                    wire.store(at & !7, *word);
                }
            }
            Deed::Flip { back, mask } => {
                let at = (self.write + size - u32::from(*back) % size) % size;
                // Not read first: the other end of a real ring would not, either.
                wire.store(at & !7, u64::from(*mask).wrapping_mul(0x0101_0101_0101_0101));
            }
            Deed::Advance(words) => {
                self.write = (self.write + u32::from(*words) * 8) % size;
                wire.set(WRITE_INDEX, self.write);
            }
            Deed::WriteIndex(value) => wire.set(WRITE_INDEX, *value),
            Deed::ReadIndex(value) => wire.set(READ_INDEX, *value),
            Deed::Pending(value) => wire.set(PENDING, *value),
            Deed::Mask(value) => wire.set(MASK, *value),
            Deed::Features(value) => wire.set(FEATURES, *value),
            Deed::ReadAll => {
                self.read = wire.get(WRITE_INDEX) % size;
                wire.set(READ_INDEX, self.read);
            }
            Deed::ReadWords(words) => {
                self.read = (self.read + u32::from(*words) * 8) % size;
                wire.set(READ_INDEX, self.read);
            }
        }
    }

    fn put(self, wire: &impl Wire, packet: &Packet) -> u32 {
        let words = packet.words();
        for (at, word) in (self.write..).step_by(8).zip(&words) {
            wire.store(at, *word);
        }
        words.len() as u64 as u32 * 8
    }
}
