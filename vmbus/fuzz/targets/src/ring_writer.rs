//! A ring whose reader is hostile, under the writer: whatever indices it is told, it writes inside the ring, its own words of
//! the control page only, and nothing at all once the ring is broken. As long as the reader is honest, it reads what was sent.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use vmbus::ring::{ExternalToSend, GpaRangeToSend, Header, PacketToSend, Producer, Room, SharedRing, WriteError};

use crate::arena::{Arena, View};
use crate::input::input;
use crate::observe::note;
use crate::wire::{MASK, PENDING, READ_INDEX, WRITE_INDEX, Wire};

#[derive(Arbitrary, Debug)]
struct Input {
    two_pages: bool,
    twice: bool,
    start: Result<u16, (u32, u32)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send {
        len: u16,
        id: u8,
    },
    Write {
        len: u8,
        ranges: Vec<(u16, u16)>,
        transfer: bool,
    },
    Reserve {
        external: u8,
        len: u16,
        pieces: Vec<Piece>,
        finishes: bool,
    },
    Commit,
    Revert,
    Wait(u32),
    StopWaiting,
    Refresh,
    /// The honest reader takes a packet.
    Read,
    /// The other one says anything.
    Lie(u32),
    LieALittle(i8),
    SetMask(u32),
}

#[derive(Arbitrary, Debug)]
enum Piece {
    External(u8),
    Next(u8),
    At(u16, u8),
}

/// A packet that was sent: its first word and id, and its body if that is known.
#[derive(Debug)]
struct Sent {
    id: u64,
    len8: u16,
    payload: Option<Vec<u8>>,
}

struct World {
    arena: Arena,
    producer: Producer<SharedRing>,
    /// Staged, and told.
    staged: VecDeque<Sent>,
    told: VecDeque<Sent>,
    /// Where the honest reader stands.
    read: u32,
    is_honest: bool,
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (seed.wrapping_mul(31).wrapping_add(index as u64 * 7) & 0xff) as u8 ^ 0x5a)
        .collect()
}

/// A writer against any reader.
pub fn ring_writer(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    let arena = Arena::get(input.two_pages);
    let size = arena.size();
    let (write, read) = match input.start {
        Ok(words) => (u32::from(words) * 8 % size, u32::from(words) * 8 % size),
        Err(raw) => raw,
    };
    arena.set(WRITE_INDEX, write);
    arena.set(READ_INDEX, read);
    let view = if input.twice { View::Twice } else { View::Once };
    let producer = match Producer::attach(arena.ring(view)) {
        Ok(producer) => producer,
        Err(error) => {
            let is_index = |raw: u32| raw < size && raw.is_multiple_of(8);
            assert!(!is_index(write) || !is_index(read), "refused {write:#x} and {read:#x}");
            note("InvalidRing", &error);
            return;
        }
    };
    let mut world = World {
        arena,
        producer,
        staged: VecDeque::new(),
        told: VecDeque::new(),
        read: write,
        is_honest: write == read,
    };
    for step in &input.steps {
        world.act(step);
        world.check();
    }
    arena.check();
    world.check_control();
}

impl World {
    fn act(&mut self, step: &Step) {
        let fault = self.producer.fault();
        match step {
            Step::Send { len, id } => {
                let payload = pattern(u64::from(*id), usize::from(*len) % 9000);
                let result = self.producer.send(Header::in_band(u64::from(*id)), &payload);
                self.sent(result, u64::from(*id), 2, &payload, true);
            }
            Step::Write { len, ranges, transfer } => self.write(usize::from(*len), ranges, *transfer),
            Step::Reserve {
                external,
                len,
                pieces,
                finishes,
            } => self.reserve(usize::from(*external) * 8, usize::from(*len) % 9000, pieces, *finishes),
            Step::Commit => {
                let _ = self.producer.commit();
                self.told.append(&mut self.staged);
            }
            Step::Revert => {
                self.producer.revert();
                self.staged.clear();
            }
            Step::Wait(needed) => match self.producer.wait_for_room(*needed) {
                Ok(Room::Awaited) => assert_eq!(self.arena.get(PENDING), (*needed + 7) & !7),
                Ok(Room::Available) => assert!(self.producer.room() >= *needed),
                Err(error) => met(&error),
            },
            Step::StopWaiting => {
                self.producer.stop_waiting();
                assert_eq!(self.arena.get(PENDING), 0);
            }
            Step::Refresh => {
                let result = self.producer.refresh_room();
                if let Err(error) = result {
                    met(&error);
                }
            }
            Step::Read => self.read(),
            Step::Lie(raw) => {
                self.is_honest = false;
                self.arena.set(READ_INDEX, *raw);
            }
            Step::LieALittle(words) => {
                self.is_honest = false;
                let raw = self.read.wrapping_add_signed(i32::from(*words) * 8) % self.arena.size();
                self.arena.set(READ_INDEX, raw);
            }
            Step::SetMask(value) => self.arena.set(MASK, *value),
        }
        if fault.is_some() {
            assert_eq!(self.producer.fault(), fault, "the first fault stays");
        }
    }

    fn sent(&mut self, result: Result<(), WriteError>, id: u64, head: usize, payload: &[u8], is_known: bool) {
        match result {
            Ok(()) => {
                let len8 = head + payload.len().div_ceil(8);
                self.staged.push_back(Sent {
                    id,
                    len8: u16::try_from(len8).unwrap_or(0),
                    payload: is_known.then(|| payload.to_vec()),
                });
            }
            Err(error) => met(&error),
        }
    }

    fn write(&mut self, len: usize, ranges: &[(u16, u16)], is_transfer: bool) {
        let payload = pattern(3, len);
        let pfns = [0x1000_u64; 40];
        let ranges: Vec<_> = ranges.iter().take(6).collect();
        let gpa: Vec<GpaRangeToSend<'_>> = ranges
            .iter()
            .map(|(count, offset)| {
                let pages = (usize::from(*offset) + usize::from(*count)).div_ceil(4096);
                GpaRangeToSend {
                    byte_count: u32::from(*count),
                    byte_offset: u32::from(*offset),
                    pfns: pfns.get(..pages).unwrap_or(&pfns),
                }
            })
            .collect();
        let pages: Vec<_> = ranges
            .iter()
            .map(|(count, offset)| vmbus::protocol::packet::TransferPageRange {
                byte_count: u32::from(*count).into(),
                byte_offset: u32::from(*offset).into(),
            })
            .collect();
        let (header, external, head) = if is_transfer {
            let external = ExternalToSend::TransferPages {
                set_id: 1,
                ranges: &pages,
            };
            (Header::transfer_pages(4), external, 3 + pages.len())
        } else {
            let words: usize = gpa.iter().map(|range| 1 + range.pfns.len()).sum();
            (Header::gpa_direct(4), ExternalToSend::GpaDirect(&gpa), 3 + words)
        };
        let result = self.producer.write(&PacketToSend {
            header,
            external,
            pieces: &[&payload],
        });
        self.sent(result, 4, head, &payload, false);
    }

    fn reserve(&mut self, external: usize, len: usize, pieces: &[Piece], finishes: bool) {
        let mut payload = vec![0; len];
        let mut filled = 0;
        let mut reservation = match self.producer.reserve(Header::in_band(5), external, len) {
            Ok(reservation) => reservation,
            Err(error) => return met(&error),
        };
        let bytes = pattern(9, 256);
        for piece in pieces {
            match piece {
                Piece::External(words) => {
                    let _ = reservation.write_external(&bytes[..usize::from(*words) & !7]);
                }
                Piece::Next(count) => {
                    let bytes = &bytes[..usize::from(*count)];
                    if reservation.write(bytes).is_ok() {
                        payload[filled..filled + bytes.len()].copy_from_slice(bytes);
                        filled += bytes.len();
                    }
                }
                Piece::At(offset, count) => {
                    let (offset, bytes) = (usize::from(*offset), &bytes[..usize::from(*count)]);
                    if reservation.write_at(offset, bytes).is_ok() {
                        payload[offset..offset + bytes.len()].copy_from_slice(bytes);
                        filled = filled.max(offset + bytes.len());
                    }
                }
            }
            assert_eq!(reservation.remaining(), len - filled);
        }
        if finishes {
            reservation.finish();
            self.sent(Ok(()), 5, 2 + external / 8, &payload, external == 0);
        }
    }

    /// Reads one packet from the memory as it is, if the reader has not lied.
    fn read(&mut self) {
        if !self.is_honest {
            return;
        }
        let Some(sent) = self.told.pop_front() else {
            assert_eq!(
                self.arena.get(WRITE_INDEX),
                self.read,
                "nothing was told that was not sent"
            );
            return;
        };
        let first = self.arena.load(self.read);
        let (data8, len8, flags) = (first >> 16 & 0xffff, first >> 32 & 0xffff, first >> 48);
        assert_eq!((len8, self.arena.load(self.read + 8)), (u64::from(sent.len8), sent.id));
        assert!(
            data8 >= 2 && data8 <= len8 && flags <= 1,
            "{first:#x} at {:#x}: {sent:?}",
            self.read
        );
        if let Some(payload) = &sent.payload {
            let words = (data8..len8).map(|word| self.arena.load(self.read + u32::try_from(word * 8).unwrap_or(0)));
            let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            assert!(
                bytes.split_off(payload.len()).iter().all(|byte| *byte == 0),
                "the padding is zero"
            );
            assert_eq!(bytes, *payload);
        }
        let len = u32::from(sent.len8) * 8;
        assert_eq!(
            self.arena.load(self.read + len),
            u64::from(self.read) << 32,
            "the trailer"
        );
        self.read = (self.read + len + 8) % self.arena.size();
        self.arena.set(READ_INDEX, self.read);
    }

    fn check(&self) {
        let (size, write) = (self.arena.size(), self.arena.get(WRITE_INDEX));
        assert!(write < size && write.is_multiple_of(8), "the write index is {write:#x}");
        assert!(self.producer.room() <= self.producer.limit());
        if self.is_honest {
            assert_eq!(self.producer.fault(), None, "an honest reader breaks nothing");
            let told: u32 = self.told.iter().map(|sent| u32::from(sent.len8) * 8 + 8).sum();
            assert_eq!((self.read + told) % size, write);
        }
        if let Some(fault) = self.producer.fault() {
            note("Corruption", &fault);
            assert_eq!(self.producer.room(), 0);
        }
    }

    /// The rest of the control page is as it was.
    fn check_control(&self) {
        for index in 2..512 {
            if index != 8 {
                assert_eq!(self.arena.control_word(index), 0, "word {index} of the control page");
            }
        }
    }
}

fn met(error: &WriteError) {
    note("WriteError", error);
    if let WriteError::Corrupt(corruption) = error {
        note("Corruption", corruption);
    }
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
