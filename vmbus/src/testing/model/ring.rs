//! The host's end of a channel's two rings.
//!
//! ```text
//! control page:  write index @0   read index @4   interrupt mask @8   pending send size @12   feature bits @64
//! data pages:    packets, each followed by 8 bytes whose upper half is where the packet began
//! packet:        type @0 (2)   data offset / 8 @2 (2)   length / 8 @4 (2)   flags @6 (2)   transaction id @8 (8)
//! ```

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use super::bytes::{is_zero, join, len32, low16, to_usize, u16_at, u32_at, u64_at};
use super::server::GuestRange;
use crate::testing::FakePlatform;

/// A packet from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// 6: in-band, 7: transfer pages, 9: GPA-direct, 11: completion.
    pub kind: u16,
    /// Bit 0: a completion is requested.
    pub flags: u16,
    /// The transaction's id.
    pub transaction: u64,
    /// What is between the first 16 bytes and the payload.
    pub descriptor: Vec<u8>,
    /// The payload, with its padding to a multiple of 8.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Returns the ranges of a GPA-direct packet, or `None` if they do not fit it.
    #[must_use]
    pub fn ranges(&self) -> Option<Vec<GuestRange>> {
        if self.kind != 9 {
            return None;
        }
        // Four reserved bytes, the count, then the ranges.
        let count = to_usize(u64::from(u32_at(&self.descriptor, 4)));
        let words: Vec<u64> = self
            .descriptor
            .get(8..)?
            .chunks_exact(8)
            .map(|word| u64_at(word, 0))
            .collect();
        GuestRange::parse_words(count, &words)
    }

    /// Returns whether the payload is `expected`, padded with zeros to a multiple of 8 and no further.
    #[must_use]
    pub fn is_payload(&self, expected: &[u8]) -> bool {
        self.payload.len() == expected.len().next_multiple_of(8)
            && self.payload.starts_with(expected)
            && is_zero(&self.payload[expected.len()..])
    }
}

/// A packet cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// There is no room now; the guest was asked for a signal when there is.
    #[error("the ring is full")]
    Full,
    /// The channel is not open.
    #[error("the channel is not open")]
    Closed,
    /// The guest broke the ring. The violation is recorded.
    #[error("the guest broke the ring")]
    Broken,
}

/// What the other end has to be told after an access to the ring.
pub(super) struct Outcome<T> {
    pub(super) value: T,
    pub(super) is_signal_due: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Half {
    control: u64,
    data: Vec<u64>,
}

impl Half {
    fn new(pages: &[u64]) -> Self {
        Self {
            control: pages.first().map_or(0, |page| page * 4096),
            data: pages.get(1..).unwrap_or(&[]).to_vec(),
        }
    }

    fn size(&self) -> u32 {
        len32(self.data.len() * 4096)
    }

    fn load(&self, platform: &FakePlatform, offset: u64) -> u32 {
        platform
            .guest_word32(self.control + offset, |word| word.load(Ordering::Acquire))
            .unwrap_or(0)
    }

    fn store(&self, platform: &FakePlatform, offset: u64, value: u32) {
        // A page that is gone is recorded by the platform.
        let _ = platform.guest_word32(self.control + offset, |word| word.store(value, Ordering::Release));
    }

    fn read(&self, platform: &FakePlatform, start: u32, target: &mut [u8]) {
        let (size, mut at, mut done) = (self.size(), start % self.size(), 0);
        while done < target.len() {
            let in_page = to_usize(u64::from(at % 4096));
            let part = (4096 - in_page).min(target.len() - done);
            let page = self.data[to_usize(u64::from(at / 4096))];
            let _ = platform.guest_read(page * 4096 + in_page as u64, &mut target[done..done + part]);
            done += part;
            at = (at + len32(part)) % size;
        }
    }

    fn write(&self, platform: &FakePlatform, start: u32, source: &[u8]) {
        let (size, mut at, mut done) = (self.size(), start % self.size(), 0);
        while done < source.len() {
            let in_page = to_usize(u64::from(at % 4096));
            let part = (4096 - in_page).min(source.len() - done);
            let page = self.data[to_usize(u64::from(at / 4096))];
            let _ = platform.guest_write(page * 4096 + in_page as u64, &source[done..done + part]);
            done += part;
            at = (at + len32(part)) % size;
        }
    }
}

/// The host's end of both rings. Its own indices are here; the copies in shared memory are only written.
#[derive(Clone, Debug)]
pub(super) struct Rings {
    /// Guest to host.
    from_guest: Half,
    /// Host to guest.
    to_guest: Half,
    read: u32,
    write: u32,
    mask: u32,
    pending: u32,
    /// What the host asks to wait for when the ring is full, instead of what it needs.
    pub(super) pending_override: Option<u32>,
    /// The host signals for room that equals what the guest waits for, not only for more.
    pub(super) signals_at_equality: bool,
}

impl Rings {
    pub(super) fn new(from_guest: &[u64], to_guest: &[u64]) -> Self {
        Self {
            from_guest: Half::new(from_guest),
            to_guest: Half::new(to_guest),
            read: 0,
            write: 0,
            mask: 0,
            pending: 0,
            pending_override: None,
            signals_at_equality: false,
        }
    }

    /// Checks that the control pages are as they have to be before an open.
    pub(super) fn check_fresh(&self, platform: &FakePlatform) -> Result<(), String> {
        for half in [&self.from_guest, &self.to_guest] {
            for (offset, name) in [
                (0, "write index"),
                (4, "read index"),
                (8, "mask"),
                (12, "pending send size"),
            ] {
                let value = half.load(platform, offset);
                if value != 0 {
                    return Err(format!("the {name} of a new ring is {value:#x}, not zero (R14)"));
                }
            }
            // Miri takes long for all of it.
            let mut rest = vec![0; if cfg!(miri) { 188 } else { 4096 - 68 }];
            let read = platform.guest_read(half.control + 68, &mut rest);
            if read.is_err() || !is_zero(&rest) {
                return Err(String::from("the control page of a new ring is not zeroed (R14, M13)"));
            }
        }
        Ok(())
    }

    pub(super) fn start(&self, platform: &FakePlatform, feature_bits: u32) {
        self.to_guest.store(platform, 64, feature_bits);
    }

    pub(super) const fn set_mask(&mut self, value: u32) {
        self.mask = value;
    }

    pub(super) fn publish_mask(&self, platform: &FakePlatform) {
        self.from_guest.store(platform, 8, self.mask);
    }

    /// Returns the guest-physical addresses of both control pages: from the guest, to the guest.
    pub(super) const fn controls(&self) -> (u64, u64) {
        (self.from_guest.control, self.to_guest.control)
    }

    /// Returns the guest-physical addresses of all pages of both rings, each with its control page first.
    pub(super) fn pages(&self) -> (Vec<u64>, Vec<u64>) {
        let pages = |half: &Half| {
            let data = half.data.iter().map(|number| number * 4096);
            core::iter::once(half.control).chain(data).collect()
        };
        (pages(&self.from_guest), pages(&self.to_guest))
    }

    /// Returns the guest-physical address of a byte of the data that the host sends.
    pub(super) fn address_to_guest(&self, offset: u32) -> u64 {
        let page = self.to_guest.data[to_usize(u64::from(offset % self.to_guest.size() / 4096))];
        page * 4096 + u64::from(offset % 4096)
    }

    /// Returns the index at which the next packet to the guest begins.
    pub(super) const fn write_index(&self) -> u32 {
        self.write
    }

    /// Returns how many bytes wait to be read from the guest, or what is wrong with its index.
    pub(super) fn waiting(&self, platform: &FakePlatform) -> Result<u32, String> {
        let (size, write) = (self.from_guest.size(), self.from_guest.load(platform, 0));
        if write >= size || !write.is_multiple_of(8) {
            return Err(format!(
                "the guest's write index is {write:#x} in a ring of {size:#x} bytes"
            ));
        }
        if self.from_guest.load(platform, 8) != self.mask {
            return Err(String::from(
                "the guest changed the mask of the ring that it sends with",
            ));
        }
        if self.from_guest.load(platform, 4) != self.read {
            return Err(String::from(
                "the guest changed the read index of the ring that it sends with",
            ));
        }
        Ok((write + size - self.read) % size)
    }

    /// Returns whether a signal now tells the host nothing: nothing to read, and it does not wait for room.
    pub(super) fn is_signal_useless(&self, platform: &FakePlatform) -> bool {
        self.from_guest.load(platform, 0) == self.read && self.pending == 0
    }

    /// Takes the next packet.
    pub(super) fn receive(&mut self, platform: &FakePlatform) -> Result<Outcome<Option<Packet>>, String> {
        let waiting = self.waiting(platform)?;
        if waiting == 0 {
            return Ok(Outcome {
                value: None,
                is_signal_due: false,
            });
        }
        let size = self.from_guest.size();
        if waiting < 24 {
            return Err(format!("{waiting} bytes in the ring are less than any packet"));
        }
        let mut head = [0; 16];
        self.from_guest.read(platform, self.read, &mut head);
        let (kind, flags) = (u16_at(&head, 0), u16_at(&head, 6));
        let (data_at, len) = (u32::from(u16_at(&head, 2)) * 8, u32::from(u16_at(&head, 4)) * 8);
        if !matches!(kind, 6 | 7 | 9 | 11) {
            return Err(format!("a packet of type {kind}"));
        }
        if data_at < 16 || data_at > len || len + 8 > waiting {
            return Err(format!(
                "a packet of {len} bytes, data at {data_at}, with {waiting} in the ring"
            ));
        }
        if flags & !1 != 0 {
            return Err(format!("a packet with flags {flags:#x}"));
        }
        let mut bytes = vec![0; to_usize(u64::from(len) + 8)];
        self.from_guest.read(platform, self.read, &mut bytes);
        let (packet, trailer) = bytes.split_at(to_usize(u64::from(len)));
        // R13: the upper half is the index before this packet.
        if u64_at(trailer, 0) != u64::from(self.read) << 32 {
            return Err(format!(
                "the trailer is {:#018x} behind a packet that began at {:#x} (R13)",
                u64_at(trailer, 0),
                self.read
            ));
        }
        let data_at = to_usize(u64::from(data_at));
        let packet = Packet {
            kind,
            flags,
            transaction: u64_at(&head, 8),
            descriptor: packet[16..data_at].to_vec(),
            payload: packet[data_at..].to_vec(),
        };
        if kind == 9 {
            match packet.ranges() {
                None => return Err(String::from("the ranges of a GPA-direct packet do not fit it")),
                Some(ranges) if ranges.is_empty() => return Err(String::from("a GPA-direct packet without ranges")),
                Some(_) if !is_zero(&packet.descriptor[..4]) => {
                    return Err(String::from(
                        "the reserved bytes of a GPA-direct packet are not zero (M13)",
                    ));
                }
                Some(_) => {}
            }
        }
        // One unit is never filled, so that full and empty differ.
        let room_before = size - waiting;
        self.read = (self.read + len + 8) % size;
        self.from_guest.store(platform, 4, self.read);
        fence(Ordering::SeqCst);
        let pending = self.from_guest.load(platform, 12);
        let room_after = room_before + len + 8;
        // The public header says "greater than"; some hosts are more generous.
        let is_enough = |room| room > pending || (self.signals_at_equality && room == pending);
        let is_signal_due = pending != 0 && !is_enough(room_before) && is_enough(room_after);
        Ok(Outcome {
            value: Some(packet),
            is_signal_due,
        })
    }

    /// Sends raw bytes (a multiple of 8) followed by a trailer.
    pub(super) fn send(&mut self, platform: &FakePlatform, bytes: &[u8]) -> Result<Outcome<()>, RingError> {
        let trailer = (u64::from(self.write) << 32).to_le_bytes();
        self.send_exactly(platform, &join(&[bytes, &trailer]))
    }

    /// Sends raw bytes (a multiple of 8) and nothing else.
    pub(super) fn send_exactly(&mut self, platform: &FakePlatform, bytes: &[u8]) -> Result<Outcome<()>, RingError> {
        let size = self.to_guest.size();
        let read = self.to_guest.load(platform, 4);
        if read >= size || !read.is_multiple_of(8) {
            return Err(RingError::Broken);
        }
        let old_write = self.write;
        let room = size - (old_write + size - read) % size;
        let needed = len32(bytes.len());
        if needed >= room {
            self.pending = self.pending_override.unwrap_or(needed + 8);
            self.to_guest.store(platform, 12, self.pending);
            fence(Ordering::SeqCst);
            return Err(RingError::Full);
        }
        if self.pending != 0 {
            self.pending = 0;
            self.to_guest.store(platform, 12, 0);
        }
        self.to_guest.write(platform, old_write, bytes);
        self.write = (old_write + needed) % size;
        self.to_guest.store(platform, 0, self.write);
        fence(Ordering::SeqCst);
        // A reader that had not yet read everything looks again by itself.
        let is_masked = self.to_guest.load(platform, 8) != 0;
        let was_empty = self.to_guest.load(platform, 4) == old_write;
        Ok(Outcome {
            value: (),
            is_signal_due: !is_masked && was_empty,
        })
    }
}

/// Makes a packet's bytes, without the trailer.
pub(super) fn packet_bytes(kind: u16, flags: u16, transaction: u64, descriptor: &[u8], payload: &[u8]) -> Vec<u8> {
    let data_at = 16 + descriptor.len().next_multiple_of(8);
    let len = data_at + payload.len().next_multiple_of(8);
    let mut bytes = join(&[
        &kind.to_le_bytes(),
        &low16(data_at as u64 / 8).to_le_bytes(),
        &low16(len as u64 / 8).to_le_bytes(),
        &flags.to_le_bytes(),
        &transaction.to_le_bytes(),
        descriptor,
    ]);
    bytes.resize(data_at, 0);
    bytes.extend_from_slice(payload);
    bytes.resize(len, 0);
    bytes
}

/// The part of a GPA-direct packet before its payload.
pub(super) fn gpa_direct_descriptor(ranges: &[GuestRange]) -> Vec<u8> {
    let mut bytes = join(&[&[0; 4], &len32(ranges.len()).to_le_bytes()]);
    for range in ranges {
        bytes.extend_from_slice(&range.len_bytes.to_le_bytes());
        bytes.extend_from_slice(&range.offset.to_le_bytes());
        for number in &range.page_numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    bytes
}

/// The part of a transfer-page packet before its payload: the set of pages, and (length, offset) of each range in it.
pub(super) fn transfer_page_descriptor(set: u16, ranges: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = join(&[&set.to_le_bytes(), &[1, 0], &len32(ranges.len()).to_le_bytes()]);
    for (len_bytes, offset) in ranges {
        bytes.extend_from_slice(&len_bytes.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
    }
    bytes
}
