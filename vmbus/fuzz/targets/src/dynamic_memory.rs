//! Dynamic memory under a host that says anything: no page goes back to the system that the host was not given, none is lost,
//! none is made, and every request that was heard is answered once.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use vmbus::Instant;
use vmbus::device::dynamic_memory::{Config, Engine, Inbox, Outbox, Progress, SendError, State};

use crate::input::input;
use crate::observe::{note, note_counter};
use crate::pool::{FIRST, PAGES, Pool};

#[derive(Arbitrary, Debug)]
struct Input {
    /// What the engine works in a slice.
    slice: u8,
    longest_run: u8,
    reserve: u8,
    /// Whether the handshake is done as it should be, first.
    is_running: bool,
    deeds: Vec<Deed>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Deed {
    Balloon(u16),
    /// Gives back ranges, counted from the first page of the machine.
    Unballoon {
        ranges: Vec<(u16, u8)>,
        more: bool,
    },
    /// Gives back what it was told of last.
    UnballoonRight {
        more: bool,
    },
    UnballoonAll,
    HotAdd {
        start: u16,
        count: u16,
        region: Option<(u16, u16)>,
    },
    Version(bool),
    Capabilities(u64),
    /// A message of any type, with a size that is right or not.
    Any {
        kind: u8,
        size: Option<u16>,
        body: Vec<u8>,
    },
    Bytes(Vec<u8>),
    Work(u8),
    /// So many messages fit from now on.
    Room(u8),
    Time(u16),
    Close,
    Reopen,
    System(u8, bool),
    BrokenPool(u16, u8),
}

/// The host's ends of the channel.
#[derive(Debug, Default)]
struct Ends {
    to_guest: VecDeque<Vec<u8>>,
    room: usize,
    is_gone: bool,
    /// Ranges of balloon responses.
    told: Vec<(u64, u64)>,
    answers: [u64; 3],
}

/// What the guest sends, read with literal offsets.
struct Sent<'a> {
    room: &'a mut usize,
    is_gone: bool,
    told: &'a mut Vec<(u64, u64)>,
    answers: &'a mut [u64; 3],
}

impl Outbox for Sent<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        if self.is_gone {
            return Err(SendError::Gone);
        }
        if *self.room == 0 {
            return Err(SendError::Full);
        }
        *self.room -= 1;
        assert!(message.len() >= 8 && message.len() <= 4096);
        assert_eq!(usize::from(u16::from_le_bytes([message[2], message[3]])), message.len());
        match message[0] {
            7 => {
                let packed = word(message, 12);
                let ranges = message[16..].chunks_exact(8).map(|range| {
                    let range = range.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                    (range & 0xff_ffff_ffff, range >> 40)
                });
                self.told.extend(ranges);
                assert_eq!((message.len() - 16) / 8, (packed >> 1) as usize);
                self.answers[0] += u64::from(packed & 1 == 0);
            }
            9 => self.answers[1] += 1,
            11 => self.answers[2] += 1,
            1 | 3 | 5 => {}
            other => panic!("a guest sends no message of type {other}"),
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn message(kind: u8, size: Option<u16>, body: &[u8]) -> Vec<u8> {
    let len = 8 + body.len() as u64;
    let size = size.unwrap_or(len as u16);
    let mut bytes = vec![kind, 0];
    bytes.extend(size.to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

/// A range as it is written: the page in 40 bits, the count in 24.
const fn range(start: u64, count: u64) -> [u8; 8] {
    (start & 0xff_ffff_ffff | count << 40).to_le_bytes()
}

fn unballoon(ranges: impl IntoIterator<Item = (u64, u64)>, more: bool) -> Vec<u8> {
    let ranges: Vec<u8> = ranges
        .into_iter()
        .flat_map(|(start, count)| range(start, count))
        .collect();
    let count = ranges.len() as u64 as u32 / 8;
    let mut body = u32::from(more).to_le_bytes().to_vec();
    body.extend(count.to_le_bytes());
    body.extend(ranges);
    message(8, None, &body)
}

struct World {
    engine: Engine<Pool>,
    ends: Ends,
    now: u64,
}

/// The engine of dynamic memory.
pub fn dynamic_memory(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    let config = Config {
        slice_steps: u32::from(input.slice) + 1,
        ..Config::default()
    };
    let pool = Pool::new(u64::from(input.longest_run) + 1, u64::from(input.reserve));
    let Ok(engine) = Engine::new(config, pool) else {
        panic!("memory enough");
    };
    let mut world = World {
        engine,
        ends: Ends {
            room: usize::MAX,
            ..Ends::default()
        },
        now: 1,
    };
    if input.is_running {
        world.handshake();
    }
    for deed in &input.deeds {
        world.act(deed);
        world.check();
    }
    world.end();
}

impl World {
    fn handshake(&mut self) {
        self.engine.start();
        self.work(4);
        self.ends
            .to_guest
            .push_back(message(2, None, &[1, 0, 0, 0, 0, 0, 0, 0]));
        self.work(4);
        self.ends
            .to_guest
            .push_back(message(4, None, &[7, 0, 0, 0, 0, 0, 0, 0]));
        self.work(4);
    }

    fn act(&mut self, deed: &Deed) {
        let queue = &mut self.ends.to_guest;
        match deed {
            Deed::Balloon(pages) => {
                let mut body = u32::from(*pages).to_le_bytes().to_vec();
                body.extend([0; 4]);
                queue.push_back(message(6, None, &body));
            }
            Deed::Unballoon { ranges, more } => {
                let ranges = ranges.iter().take(500);
                let ranges = ranges.map(|(start, count)| (FIRST + u64::from(*start), u64::from(*count)));
                queue.push_back(unballoon(ranges, *more));
            }
            Deed::UnballoonRight { more } => {
                let from = self.ends.told.len().saturating_sub(500);
                queue.push_back(unballoon(self.ends.told.drain(from..), *more));
            }
            Deed::UnballoonAll => queue.push_back(unballoon([(FIRST, PAGES)], false)),
            Deed::HotAdd { start, count, region } => {
                let at = |(start, count): (u16, u16)| range(FIRST + u64::from(start) * 16, u64::from(count));
                let region = region.map_or([0; 8], at);
                queue.push_back(message(10, None, &[at((*start, *count)), region].concat()));
            }
            Deed::Version(is_accepted) => {
                queue.push_back(message(2, None, &[u8::from(*is_accepted), 0, 0, 0, 0, 0, 0, 0]));
            }
            Deed::Capabilities(answer) => queue.push_back(message(4, None, &answer.to_le_bytes())),
            Deed::Any { kind, size, body } => queue.push_back(message(kind % 16, *size, body)),
            Deed::Bytes(bytes) => queue.push_back(bytes.clone()),
            Deed::Work(times) => self.work(u32::from(*times)),
            Deed::Room(room) => self.ends.room = if *room == 255 { usize::MAX } else { usize::from(*room) },
            Deed::Time(milliseconds) => self.now += u64::from(*milliseconds) * 10_000,
            Deed::Close => self.engine.on_closed(),
            Deed::Reopen => {
                self.ends.to_guest.clear();
                self.ends.told.clear();
                self.engine.start();
            }
            Deed::System(pages, takes) => self.engine.pool_mut().system(u64::from(*pages) * 8, *takes),
            Deed::BrokenPool(start, count) => {
                self.engine.pool_mut().broken = Some((FIRST + u64::from(*start), u64::from(*count)));
            }
        }
    }

    fn work(&mut self, times: u32) {
        for _ in 0..times {
            let mut sent = Sent {
                room: &mut self.ends.room,
                is_gone: self.ends.is_gone,
                told: &mut self.ends.told,
                answers: &mut self.ends.answers,
            };
            let mut inbox = Queue(&mut self.ends.to_guest);
            let now = Instant::from_reference_units(self.now);
            if self.engine.pump(now, &mut inbox, &mut sent) != Progress::More {
                break;
            }
        }
    }

    fn check(&self) {
        let (pool, held) = (self.engine.pool(), self.engine.held());
        pool.check_count(held);
        assert!(held.bookkeeping_bytes() < 64 * 1024);
    }

    /// The host may say nothing more and read everything: the engine comes to rest.
    fn end(&mut self) {
        self.ends.room = usize::MAX;
        self.engine.pool_mut().broken = None;
        for round in 0.. {
            assert!(
                round < 100_000,
                "the engine never comes to rest: {:?}",
                self.engine.state()
            );
            let mut sent = Sent {
                room: &mut self.ends.room,
                is_gone: self.ends.is_gone,
                told: &mut self.ends.told,
                answers: &mut self.ends.answers,
            };
            let mut inbox = Queue(&mut self.ends.to_guest);
            let now = Instant::from_reference_units(self.now);
            if self.engine.pump(now, &mut inbox, &mut sent) != Progress::More {
                break;
            }
        }
        self.check();
        self.engine.pool().check(self.engine.held());
        if let State::Faulted(fault) = self.engine.state() {
            note("Fault", &fault);
        }
        let counters = self.engine.counters();
        for (name, value) in [
            ("malformed", counters.malformed),
            ("unknown", counters.unknown),
            ("unexpected", counters.unexpected),
            ("unknown_pages", counters.unknown_pages),
            ("refused_unballoons", counters.refused_unballoons),
            ("refused_hot_adds", counters.refused_hot_adds),
            ("pool_faults", counters.pool_faults),
        ] {
            note_counter("dynamic_memory", name, value);
        }
        assert_eq!(
            (counters.balloon_requests, counters.hot_add_requests),
            (self.ends.answers[0], self.ends.answers[2]),
            "each request is answered once"
        );
    }
}

struct Queue<'a>(&'a mut VecDeque<Vec<u8>>);

impl Inbox for Queue<'_> {
    fn front(&mut self) -> Option<&[u8]> {
        self.0.front().map(Vec::as_slice)
    }

    fn pop(&mut self) {
        assert!(self.0.pop_front().is_some(), "nothing was there to be let go of");
    }
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
