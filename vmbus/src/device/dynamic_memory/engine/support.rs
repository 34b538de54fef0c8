//! For the tests: a page allocator that checks every call, and a host whose bytes are written out by hand.

use std::collections::{BTreeSet, VecDeque};
use std::vec::Vec;

use super::super::{AddRefused, PageRange};
use super::*;
use crate::memory::Pfn;

/// A page allocator that fails the test when the engine breaks its contract.
#[derive(Debug, Default)]
pub(in crate::device::dynamic_memory) struct TestPool {
    pub(in crate::device::dynamic_memory) free: BTreeSet<u64>,
    /// What `take` has given and `give_back` has not got back.
    pub(in crate::device::dynamic_memory) taken: BTreeSet<u64>,
    /// In use by the operating system.
    pub(in crate::device::dynamic_memory) used: BTreeSet<u64>,
    pub(in crate::device::dynamic_memory) reserve: u64,
    /// The longest run that `take` gives.
    pub(in crate::device::dynamic_memory) longest_run: u64,
    /// Where memory may be added.
    pub(in crate::device::dynamic_memory) addable: Option<PageRange>,
    /// From this page on, nothing is added, for this reason.
    pub(in crate::device::dynamic_memory) add_refused: Option<(u64, AddRefused)>,
    pub(in crate::device::dynamic_memory) added_pages: u64,
    pub(in crate::device::dynamic_memory) calls: u64,
    /// What `take` returns next, whatever it is.
    pub(in crate::device::dynamic_memory) broken_take: Option<PageRange>,
}

impl TestPool {
    pub(in crate::device::dynamic_memory) fn with_free(pages: impl IntoIterator<Item = u64>) -> Self {
        Self {
            free: pages.into_iter().collect(),
            longest_run: u64::MAX,
            ..Self::default()
        }
    }

    pub(in crate::device::dynamic_memory) fn total(&self) -> u64 {
        (self.free.len() + self.taken.len() + self.used.len()) as u64
    }
}

impl MemoryPool for TestPool {
    fn figures(&self) -> Figures {
        Figures {
            total_pages: self.total(),
            free_pages: self.free.len() as u64,
            committed_pages: self.used.len() as u64,
        }
    }

    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        assert!((1..=32_768).contains(&max_pages), "{max_pages}");
        self.calls += 1;
        if self.broken_take.is_some() {
            return self.broken_take.take();
        }
        let start = *self.free.first()?;
        let mut count = 0;
        while count < max_pages.min(self.longest_run) && self.free.remove(&(start + count)) {
            assert!(self.taken.insert(start + count));
            count += 1;
        }
        PageRange::new(Pfn::new(start), count)
    }

    fn give_back(&mut self, pages: PageRange) {
        self.calls += 1;
        for page in pages.start().get()..pages.end().get() {
            assert!(self.taken.remove(&page), "page {page:#x} was given back and not taken");
            assert!(self.free.insert(page));
        }
    }

    fn add(&mut self, pages: PageRange) -> Result<u64, AddRefused> {
        assert!(pages.page_count() <= 32_768, "{pages}");
        self.calls += 1;
        if let Some((from, refused)) = self.add_refused
            && pages.start().get() >= from
        {
            return Err(refused);
        }
        let is_new = |page: &u64| {
            let at = PageRange::new(Pfn::new(*page), 1).unwrap();
            self.addable.is_some_and(|addable| addable.covers(at))
                && ![&self.free, &self.taken, &self.used]
                    .into_iter()
                    .any(|set| set.contains(page))
        };
        let added: Vec<u64> = (pages.start().get()..pages.end().get()).take_while(is_new).collect();
        self.free.extend(&added);
        self.added_pages += added.len() as u64;
        match added.len() {
            0 => Err(AddRefused::Never),
            count => Ok(count as u64),
        }
    }

    fn reserve_pages(&self) -> u64 {
        self.reserve
    }
}

/// A channel that keeps what is sent.
#[derive(Debug, Default)]
pub(in crate::device::dynamic_memory) struct Sent {
    pub(in crate::device::dynamic_memory) messages: Vec<Vec<u8>>,
    /// How many more messages fit; `None`: any number.
    pub(in crate::device::dynamic_memory) room: Option<usize>,
    pub(in crate::device::dynamic_memory) is_gone: bool,
}

impl Outbox for Sent {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        if self.is_gone {
            return Err(SendError::Gone);
        }
        match &mut self.room {
            Some(0) => return Err(SendError::Full),
            Some(room) => *room -= 1,
            None => {}
        }
        self.messages.push(message.to_vec());
        Ok(())
    }
}

impl Inbox for VecDeque<Vec<u8>> {
    fn front(&mut self) -> Option<&[u8]> {
        Self::front(self).map(Vec::as_slice)
    }

    fn pop(&mut self) {
        assert!(self.pop_front().is_some(), "nothing was there to be let go of");
    }
}

pub(in crate::device::dynamic_memory) fn at(milliseconds: u64) -> Instant {
    Instant::from_reference_units(milliseconds * 10_000)
}

/// Polls until there is nothing left to do at this moment.
pub(in crate::device::dynamic_memory) fn settle(
    engine: &mut Engine<TestPool>,
    now: Instant,
    sent: &mut Sent,
) -> Progress {
    for _ in 0..1_000_000 {
        match engine.poll(now, sent) {
            Progress::More => {}
            progress => return progress,
        }
    }
    panic!("the engine never comes to rest: {engine:?}");
}

/// Hands a packet over as a driver does.
pub(in crate::device::dynamic_memory) fn deliver(engine: &mut Engine<TestPool>, packet: &[u8], sent: &mut Sent) {
    assert_eq!(engine.on_packet(packet), Delivery::Taken);
    settle(engine, at(0), sent);
}

pub(in crate::device::dynamic_memory) fn message(message_type: u8, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(8 + body.len()).unwrap();
    [
        &[message_type, 0],
        &size.to_le_bytes()[..],
        &[0xdd, 0xcc, 0xbb, 0xaa],
        body,
    ]
    .concat()
}

pub(in crate::device::dynamic_memory) fn balloon_request(pages: u32) -> Vec<u8> {
    message(6, &[&pages.to_le_bytes()[..], &[0; 4]].concat())
}

pub(in crate::device::dynamic_memory) fn bits(start: u64, count: u64) -> [u8; 8] {
    assert!(start < 1 << 40 && count < 1 << 24);
    (start | count << 40).to_le_bytes()
}

pub(in crate::device::dynamic_memory) fn unballoon_request(ranges: &[(u64, u64)], more: bool) -> Vec<u8> {
    let mut body = [
        u32::from(more).to_le_bytes(),
        u32::try_from(ranges.len()).unwrap().to_le_bytes(),
    ]
    .concat();
    for (start, count) in ranges {
        body.extend(bits(*start, *count));
    }
    message(8, &body)
}

pub(in crate::device::dynamic_memory) fn hot_add_request(start: u64, count: u64) -> Vec<u8> {
    message(10, &[bits(start, count), bits(start, count)].concat())
}

/// The `more` flag and the ranges of a balloon response.
pub(in crate::device::dynamic_memory) fn balloon_response(bytes: &[u8]) -> (bool, Vec<(u64, u64)>) {
    assert_eq!(bytes[..2], [7, 0], "a balloon response: {bytes:x?}");
    assert_eq!(usize::from(u16::from_le_bytes([bytes[2], bytes[3]])), bytes.len());
    assert_eq!(bytes[8..12], [0; 4]);
    let packed = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
    let ranges: Vec<(u64, u64)> = bytes[16..]
        .chunks(8)
        .map(|range| {
            let range = u64::from_le_bytes(range.try_into().unwrap());
            (range & 0xff_ffff_ffff, range >> 40)
        })
        .collect();
    assert_eq!(ranges.len(), (packed >> 1) as usize);
    (packed & 1 != 0, ranges)
}

pub(in crate::device::dynamic_memory) const VERSION_ACCEPTED: [u8; 16] =
    [2, 0, 16, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
pub(in crate::device::dynamic_memory) const VERSION_REFUSED: [u8; 16] =
    [2, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// As QEMU answers with `status-report=off`: accepted, hot remove, no reports.
pub(in crate::device::dynamic_memory) const CAPABILITIES_ACCEPTED_QUIETLY: [u8; 16] =
    [4, 0, 16, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
pub(in crate::device::dynamic_memory) const CAPABILITIES_ACCEPTED: [u8; 16] =
    [4, 0, 16, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];

pub(in crate::device::dynamic_memory) fn engine_with(config: Config, pool: TestPool) -> Engine<TestPool> {
    Engine::new(config, pool).unwrap()
}

/// An engine that runs and sends no reports.
pub(in crate::device::dynamic_memory) fn running(pool: TestPool) -> Engine<TestPool> {
    running_with(Config::default(), pool)
}

pub(in crate::device::dynamic_memory) fn running_with(config: Config, pool: TestPool) -> Engine<TestPool> {
    let mut engine = engine_with(config, pool);
    connect(&mut engine);
    engine
}

pub(in crate::device::dynamic_memory) fn connect(engine: &mut Engine<TestPool>) {
    let mut sent = Sent::default();
    engine.start();
    settle(engine, at(0), &mut sent);
    deliver(engine, &VERSION_ACCEPTED, &mut sent);
    deliver(engine, &CAPABILITIES_ACCEPTED_QUIETLY, &mut sent);
    assert!(matches!(engine.state(), State::Running { .. }), "{:?}", engine.state());
}

pub(in crate::device::dynamic_memory) fn held(engine: &Engine<TestPool>) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    engine
        .held()
        .for_each_run(|run| pages.extend(run.start().get()..run.end().get()));
    pages
}
