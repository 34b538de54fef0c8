//! The engine against a scripted host, whose bytes are written out by hand, and against a pool that checks every call.

use std::collections::BTreeSet;
use std::vec::Vec;

use super::super::protocol::ProtocolVersion;
use super::super::{AddRefused, PageRange};
use super::*;
use crate::memory::Pfn;

/// A page allocator that fails the test when the engine breaks its contract.
#[derive(Debug, Default)]
pub(super) struct TestPool {
    pub(super) free: BTreeSet<u64>,
    /// What `take` has given and `give_back` has not got back.
    pub(super) taken: BTreeSet<u64>,
    /// In use by the operating system.
    pub(super) used: BTreeSet<u64>,
    pub(super) reserve: u64,
    /// The longest run that `take` gives.
    pub(super) longest_run: u64,
    /// Where memory may be added.
    pub(super) addable: Option<PageRange>,
    pub(super) add_refused: Option<AddRefused>,
    pub(super) added_pages: u64,
    pub(super) calls: u64,
    /// What `take` returns next, whatever it is.
    pub(super) broken_take: Option<PageRange>,
}

impl TestPool {
    pub(super) fn with_free(pages: impl IntoIterator<Item = u64>) -> Self {
        Self {
            free: pages.into_iter().collect(),
            longest_run: u64::MAX,
            ..Self::default()
        }
    }

    pub(super) fn total(&self) -> u64 {
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
        if let Some(refused) = self.add_refused {
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
pub(super) struct Sent {
    pub(super) messages: Vec<Vec<u8>>,
    /// How many more messages fit; `None`: any number.
    pub(super) room: Option<usize>,
    pub(super) is_gone: bool,
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

pub(super) fn at(milliseconds: u64) -> Instant {
    Instant::from_reference_units(milliseconds * 10_000)
}

/// Polls until there is nothing left to do at this moment.
pub(super) fn settle(engine: &mut Engine<TestPool>, now: Instant, sent: &mut Sent) -> Progress {
    for _ in 0..1_000_000 {
        match engine.poll(now, sent) {
            Progress::More => {}
            progress => return progress,
        }
    }
    panic!("the engine never comes to rest: {engine:?}");
}

/// Hands a packet over as a driver does.
pub(super) fn deliver(engine: &mut Engine<TestPool>, packet: &[u8], sent: &mut Sent) {
    assert_eq!(engine.on_packet(packet), Delivery::Taken);
    settle(engine, at(0), sent);
}

pub(super) fn message(message_type: u8, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(8 + body.len()).unwrap();
    [
        &[message_type, 0],
        &size.to_le_bytes()[..],
        &[0xdd, 0xcc, 0xbb, 0xaa],
        body,
    ]
    .concat()
}

pub(super) fn balloon_request(pages: u32) -> Vec<u8> {
    message(6, &[&pages.to_le_bytes()[..], &[0; 4]].concat())
}

pub(super) fn bits(start: u64, count: u64) -> [u8; 8] {
    assert!(start < 1 << 40 && count < 1 << 24);
    (start | count << 40).to_le_bytes()
}

pub(super) fn unballoon_request(ranges: &[(u64, u64)], more: bool) -> Vec<u8> {
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

pub(super) fn hot_add_request(start: u64, count: u64) -> Vec<u8> {
    message(10, &[bits(start, count), bits(start, count)].concat())
}

/// The `more` flag and the ranges of a balloon response.
pub(super) fn balloon_response(bytes: &[u8]) -> (bool, Vec<(u64, u64)>) {
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

pub(super) const VERSION_ACCEPTED: [u8; 16] = [2, 0, 16, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
pub(super) const VERSION_REFUSED: [u8; 16] = [2, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// As QEMU answers with `status-report=off`: accepted, hot remove, no reports.
pub(super) const CAPABILITIES_ACCEPTED_QUIETLY: [u8; 16] = [4, 0, 16, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
pub(super) const CAPABILITIES_ACCEPTED: [u8; 16] = [4, 0, 16, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn engine_with(config: Config, pool: TestPool) -> Engine<TestPool> {
    Engine::new(config, pool).unwrap()
}

/// An engine that runs and sends no reports.
pub(super) fn running(pool: TestPool) -> Engine<TestPool> {
    running_with(Config::default(), pool)
}

pub(super) fn running_with(config: Config, pool: TestPool) -> Engine<TestPool> {
    let mut engine = engine_with(config, pool);
    connect(&mut engine);
    engine
}

pub(super) fn connect(engine: &mut Engine<TestPool>) {
    let mut sent = Sent::default();
    engine.start();
    settle(engine, at(0), &mut sent);
    deliver(engine, &VERSION_ACCEPTED, &mut sent);
    deliver(engine, &CAPABILITIES_ACCEPTED_QUIETLY, &mut sent);
    assert!(matches!(engine.state(), State::Running { .. }), "{:?}", engine.state());
}

fn held(engine: &Engine<TestPool>) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    engine
        .held()
        .for_each_run(|run| pages.extend(run.start().get()..run.end().get()));
    pages
}

#[test]
fn a_whole_conversation_byte_for_byte() {
    // 1000 pages from 0x100, of which 900 may go; and room for more at 32 GiB.
    let mut pool = TestPool::with_free(0x100..0x100 + 1000);
    pool.reserve = 100;
    pool.used = (0..7).collect();
    pool.addable = PageRange::new(Pfn::new(0x80_0000), 0x8000);
    let mut engine = engine_with(Config::default(), pool);
    let mut sent = Sent::default();
    assert_eq!(engine.next_wakeup(), None);

    engine.start();
    assert_eq!(engine.poll(at(0), &mut sent), Progress::Idle);
    assert_eq!(sent.messages, [[1, 0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]]);

    sent.messages.clear();
    deliver(&mut engine, &VERSION_ACCEPTED, &mut sent);
    let report: &[u8] = &[
        3, 0, 32, 0, 2, 0, 0, 0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff,
    ];
    assert_eq!(sent.messages, [report]);

    sent.messages.clear();
    deliver(&mut engine, &CAPABILITIES_ACCEPTED, &mut sent);
    assert_eq!(
        engine.state(),
        State::Running {
            version: ProtocolVersion::V3
        }
    );
    // 1000 free; 7 used and 100 in reserve are 107 committed.
    let status: &[u8] = &[
        5, 0, 48, 0, 3, 0, 0, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0, 107, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(sent.messages, [status]);

    sent.messages.clear();
    deliver(
        &mut engine,
        &[
            12, 0, 32, 0, 9, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
        ],
        &mut sent,
    );
    assert_eq!(engine.host_limit_pages(), Some(0x10_0000));

    // 600 pages: one range from 0x100.
    deliver(
        &mut engine,
        &[6, 0, 16, 0, 9, 0, 0, 0, 0x58, 2, 0, 0, 0, 0, 0, 0],
        &mut sent,
    );
    let response: &[u8] = &[
        7, 0, 24, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0x58, 2, 0,
    ];
    assert_eq!(sent.messages, [response]);
    assert_eq!(held(&engine), (0x100..0x100 + 600).collect());

    // A second report, a second later: 400 free, 600 held.
    sent.messages.clear();
    assert_eq!(engine.next_wakeup(), Some(at(1000)));
    engine.poll(at(999), &mut sent);
    assert_eq!(sent.messages.len(), 0);
    engine.poll(at(1000), &mut sent);
    assert_eq!(
        sent.messages[0][8..24],
        [0x90, 1, 0, 0, 0, 0, 0, 0, 0xc3, 2, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(engine.last_status().unwrap().committed_pages, 707);

    // The host gives 16 pages from 0x110 back, in two messages; only the second is answered.
    sent.messages.clear();
    deliver(
        &mut engine,
        &[
            8, 0, 24, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0x10, 1, 0, 0, 0, 8, 0, 0,
        ],
        &mut sent,
    );
    assert_eq!(sent.messages.len(), 0);
    deliver(
        &mut engine,
        &[
            8, 0, 24, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x18, 1, 0, 0, 0, 8, 0, 0,
        ],
        &mut sent,
    );
    assert_eq!(sent.messages, [[9, 0, 8, 0, 6, 0, 0, 0]]);
    assert_eq!(held(&engine), (0x100..0x110).chain(0x120..0x100 + 600).collect());

    // 0x8000 pages at 32 GiB, with their region.
    sent.messages.clear();
    deliver(
        &mut engine,
        &[
            10, 0, 24, 0, 9, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0x80, 0,
        ],
        &mut sent,
    );
    assert_eq!(sent.messages, [[11, 0, 16, 0, 7, 0, 0, 0, 0, 0x80, 0, 0, 1, 0, 0, 0]]);
    assert!(engine.pool().free.contains(&0x80_7fff));
    let counters = *engine.counters();
    assert_eq!(
        (
            counters.ballooned_pages,
            counters.unballooned_pages,
            counters.hot_added_pages
        ),
        (600, 16, 0x8000)
    );
}

#[test]
fn each_version_is_tried_from_the_newest_on() {
    for (refusals, version) in ProtocolVersion::LADDER.into_iter().enumerate() {
        let mut engine = engine_with(Config::default(), TestPool::default());
        let mut sent = Sent::default();
        engine.start();
        settle(&mut engine, at(0), &mut sent);
        for _ in 0..refusals {
            deliver(&mut engine, &VERSION_REFUSED, &mut sent);
        }
        deliver(&mut engine, &VERSION_ACCEPTED, &mut sent);
        let proposals: Vec<&[u8]> = sent.messages[..=refusals].iter().map(|message| &message[8..]).collect();
        let expected: [[u8; 8]; 3] = [
            [0, 0, 2, 0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0, 0, 0],
            [3, 0, 0, 0, 1, 0, 0, 0],
        ];
        assert_eq!(proposals, expected[..=refusals]);
        assert_eq!(engine.state(), State::Capabilities { version });
        deliver(&mut engine, &CAPABILITIES_ACCEPTED, &mut sent);
        assert_eq!(engine.state(), State::Running { version });
    }
}

#[test]
fn a_host_that_refuses_everything_or_says_nothing_is_given_up_with_the_reason() {
    let mut sent = Sent::default();
    let mut engine = engine_with(Config::default(), TestPool::default());
    engine.start();
    settle(&mut engine, at(0), &mut sent);
    for _ in 0..3 {
        deliver(&mut engine, &VERSION_REFUSED, &mut sent);
    }
    assert_eq!(
        engine.state(),
        State::Faulted(Fault::VersionsRefused {
            newest: ProtocolVersion::V3
        })
    );
    // Quiet from now on.
    let before = sent.messages.len();
    deliver(&mut engine, &VERSION_ACCEPTED, &mut sent);
    deliver(&mut engine, &balloon_request(10), &mut sent);
    assert_eq!(sent.messages.len(), before);
    assert_eq!(engine.counters().unexpected, 2);
    assert_eq!(engine.next_wakeup(), None);

    // It can be started again.
    engine.start();
    settle(&mut engine, at(100), &mut sent);
    assert_eq!(engine.next_wakeup(), Some(at(10_100)));
    engine.poll(at(10_099), &mut sent);
    assert!(matches!(engine.state(), State::Negotiating { .. }));
    engine.poll(at(10_100), &mut sent);
    let timeout = Config::default().answer_timeout;
    assert_eq!(
        engine.state(),
        State::Faulted(Fault::NoAnswerToVersion {
            version: ProtocolVersion::V3,
            timeout
        })
    );

    engine.start();
    settle(&mut engine, at(0), &mut sent);
    deliver(&mut engine, &VERSION_ACCEPTED, &mut sent);
    engine.poll(at(10_000), &mut sent);
    assert_eq!(
        engine.state(),
        State::Faulted(Fault::NoAnswerToCapabilities { timeout })
    );

    engine.start();
    settle(&mut engine, at(0), &mut sent);
    deliver(&mut engine, &VERSION_ACCEPTED, &mut sent);
    deliver(&mut engine, &message(4, &[6, 0, 0, 0, 0, 0, 0, 0]), &mut sent);
    let State::Faulted(fault @ Fault::CapabilitiesRefused { answer: 6, .. }) = engine.state() else {
        panic!("{:?}", engine.state());
    };
    assert_eq!(
        std::format!("{fault}"),
        "the host refused the capabilities Capabilities(0x1f), its answer was 0x6"
    );
}

#[test]
fn answers_that_nobody_waits_for_are_counted_and_change_nothing() {
    let mut sent = Sent::default();
    let mut engine = engine_with(Config::default(), TestPool::default());
    assert_eq!(engine.on_packet(&VERSION_ACCEPTED), Delivery::Taken);
    engine.start();
    // Before the request was even sent.
    assert_eq!(engine.on_packet(&VERSION_ACCEPTED), Delivery::Taken);
    assert!(matches!(engine.state(), State::Negotiating { .. }));
    settle(&mut engine, at(0), &mut sent);
    deliver(&mut engine, &CAPABILITIES_ACCEPTED, &mut sent);
    deliver(&mut engine, &balloon_request(1), &mut sent);
    assert!(matches!(engine.state(), State::Negotiating { .. }));
    deliver(&mut engine, &VERSION_ACCEPTED, &mut sent);
    deliver(&mut engine, &VERSION_REFUSED, &mut sent);
    assert!(matches!(engine.state(), State::Capabilities { .. }));
    deliver(&mut engine, &CAPABILITIES_ACCEPTED, &mut sent);
    deliver(&mut engine, &message(4, &[0; 8]), &mut sent);
    assert!(matches!(engine.state(), State::Running { .. }));
    assert_eq!(engine.counters().unexpected, 6);
    deliver(&mut engine, &message(13, &[0; 16]), &mut sent);
    deliver(&mut engine, &[1, 2, 3], &mut sent);
    assert_eq!((engine.counters().unknown, engine.counters().malformed), (1, 1));
}

#[test]
fn no_reports_are_sent_to_a_host_that_does_not_want_them() {
    let mut engine = running(TestPool::default());
    let mut sent = Sent::default();
    assert_eq!(engine.next_wakeup(), None);
    assert_eq!(engine.poll(at(5000), &mut sent), Progress::Idle);
    assert_eq!(sent.messages.len(), 0);
}

#[test]
fn the_largest_request_of_fragmented_pages_is_answered_in_as_many_messages_as_it_takes() {
    // Every second page: no two can be joined.
    let mut engine = running(TestPool::with_free((0..2 * 585_728).step_by(2)));
    let mut sent = Sent::default();
    assert_eq!(engine.on_packet(&balloon_request(585_728)), Delivery::Taken);
    let mut slices = 1;
    let mut calls_before = 0;
    while engine.poll(at(0), &mut sent) == Progress::More {
        let calls = engine.pool().calls - calls_before;
        assert!(calls <= 1024, "{calls} calls in one slice");
        calls_before = engine.pool().calls;
        slices += 1;
    }
    assert_eq!(slices, 585_728_usize.div_ceil(1024));
    assert_eq!(sent.messages.len(), 585_728_usize.div_ceil(510));
    let mut pages = BTreeSet::new();
    for (index, message) in sent.messages.iter().enumerate() {
        let (more, ranges) = balloon_response(message);
        assert_eq!(more, index + 1 < sent.messages.len());
        assert!(message.len() <= 4096);
        for (start, count) in ranges {
            assert_eq!(count, 1);
            assert!(pages.insert(start));
        }
    }
    assert_eq!(pages.len(), 585_728);
    assert_eq!(engine.held().page_count(), 585_728);
    assert!(engine.held().bookkeeping_bytes() < 512 * 1024);

    // And back, in the largest range that fits over all of them, half of which the host does not have.
    deliver(&mut engine, &unballoon_request(&[(0, 585_728)], false), &mut sent);
    assert_eq!(sent.messages.last().unwrap()[..2], [9, 0]);
    assert_eq!(engine.held().page_count(), 585_728 / 2);
    assert_eq!(engine.counters().unknown_pages, 585_728 / 2);
    assert_eq!(engine.pool().free.len(), 585_728 / 2);
}

#[test]
fn neighbouring_runs_are_joined_into_one_range() {
    let mut pool = TestPool::with_free(0x1000..0x1000 + 5000);
    pool.longest_run = 512;
    let mut engine = running(pool);
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(5000), &mut sent);
    assert_eq!(balloon_response(&sent.messages[0]), (false, vec![(0x1000, 5000)]));
}

#[test]
fn the_reserve_stays_free_and_the_answer_says_so() {
    for (free, reserve, asked, expected) in [
        // Exactly what there is.
        (1000, 100, 900, 900),
        // Not a multiple of 2 MiB asked for: to the page.
        (1000, 100, 901, 900),
        // In units of 2 MiB: whole units.
        (1000, 100, 1024, 512),
        (1000, 600, 512, 0),
        (1000, 1000, 1, 0),
        (10, 100, 1, 0),
        (1000, 0, u32::MAX, 1000),
        (1000, 0, 0, 0),
    ] {
        let mut pool = TestPool::with_free(1..=free);
        pool.reserve = reserve;
        let mut engine = running(pool);
        let mut sent = Sent::default();
        deliver(&mut engine, &balloon_request(asked), &mut sent);
        let (more, ranges) = balloon_response(&sent.messages[0]);
        let answered: u64 = ranges.iter().map(|(_, count)| count).sum();
        assert_eq!(
            (more, answered),
            (false, expected),
            "{free} free, {reserve} in reserve, {asked} asked for"
        );
        assert_eq!(sent.messages.len(), 1);
        assert_eq!(engine.held().page_count(), expected);
        assert_eq!(
            engine.counters().balloon_requests_cut,
            u64::from(expected < asked.into())
        );
        // At the minimum: no ranges, which the host understands as that.
        if expected < asked.into() {
            deliver(&mut engine, &balloon_request(512), &mut sent);
            let (more, ranges) = balloon_response(&sent.messages[1]);
            let rest = (free - expected).saturating_sub(reserve) / 512 * 512;
            assert_eq!((more, ranges.is_empty()), (false, rest == 0));
        }
    }
}

#[test]
fn memory_that_others_took_between_two_slices_is_left_to_them() {
    let config = Config {
        slice_steps: 10,
        ..Config::default()
    };
    let mut pool = TestPool::with_free((0..200).step_by(2));
    pool.reserve = 20;
    let mut engine = running_with(config, pool);
    let mut sent = Sent::default();
    assert_eq!(engine.on_packet(&balloon_request(80)), Delivery::Taken);
    assert_eq!(engine.poll(at(0), &mut sent), Progress::More);
    assert_eq!(engine.held().page_count(), 10);
    // 90 are free; the system takes 65 of them: 5 are left above the reserve.
    let pool = engine.pool_mut();
    for _ in 0..65 {
        let page = pool.free.pop_last().unwrap();
        pool.used.insert(page);
    }
    assert_eq!(settle(&mut engine, at(0), &mut sent), Progress::Idle);
    let (more, ranges) = balloon_response(&sent.messages[0]);
    assert_eq!((more, ranges.len()), (false, 15));
    assert_eq!(engine.pool().free.len(), 20);
}

#[test]
fn without_memory_for_bookkeeping_no_page_is_taken() {
    let mut engine = running(TestPool::with_free(0..1000));
    let mut sent = Sent::default();
    engine.held.refuse_reservations = true;
    deliver(&mut engine, &balloon_request(100), &mut sent);
    assert_eq!(balloon_response(&sent.messages[0]), (false, vec![]));
    assert_eq!((engine.pool().calls, engine.counters().bookkeeping_failures), (0, 1));
    engine.held.refuse_reservations = false;
    deliver(&mut engine, &balloon_request(100), &mut sent);
    assert_eq!(balloon_response(&sent.messages[1]), (false, vec![(0, 100)]));
}

#[test]
fn a_pool_that_breaks_its_contract_ends_the_request_and_is_counted() {
    let run = |start, count| PageRange::new(Pfn::new(start), count);
    // A page that the host has already: nobody may have it.
    let mut engine = running(TestPool::with_free(0..10));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(5), &mut sent);
    engine.pool_mut().broken_take = run(4, 1);
    deliver(&mut engine, &balloon_request(5), &mut sent);
    assert_eq!(balloon_response(&sent.messages[1]), (false, vec![]));
    assert_eq!((engine.counters().pool_faults, engine.held().page_count()), (1, 5));
    // Too many pages, or beyond what a message can name: given back.
    for broken in [run(20, 6), run(1 << 40, 1)] {
        let pool = engine.pool_mut();
        pool.broken_take = broken;
        pool.taken
            .extend(broken.map(|pages| pages.start().get()..pages.end().get()).unwrap());
        deliver(&mut engine, &balloon_request(5), &mut sent);
        assert_eq!(balloon_response(sent.messages.last().unwrap()), (false, vec![]));
    }
    assert_eq!((engine.counters().pool_faults, engine.held().page_count()), (3, 5));
    assert_eq!(engine.pool().taken.len(), 5);
}

#[test]
fn q12_only_pages_that_are_held_are_returned() {
    let mut engine = running(TestPool::with_free(100..200));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(50), &mut sent);
    // Held: 100 to 149. Half of this range is.
    deliver(&mut engine, &unballoon_request(&[(90, 20)], false), &mut sent);
    assert_eq!(held(&engine), (110..150).collect());
    assert_eq!(engine.counters().unknown_pages, 10);
    // Twice in one message, and an empty range.
    deliver(
        &mut engine,
        &unballoon_request(&[(110, 5), (112, 0), (110, 5)], false),
        &mut sent,
    );
    assert_eq!(held(&engine), (115..150).collect());
    assert_eq!(engine.counters().unknown_pages, 15);
    // The same message again.
    deliver(&mut engine, &unballoon_request(&[(110, 5), (110, 5)], false), &mut sent);
    assert_eq!(held(&engine), (115..150).collect());
    assert_eq!(engine.counters().unknown_pages, 25);
    // Every request was answered.
    assert_eq!(sent.messages.iter().filter(|message| message[..2] == [9, 0]).count(), 3);
    assert_eq!(engine.counters().unballooned_pages, 15);
}

#[test]
fn q12_a_message_that_names_more_pages_than_are_held_is_refused_as_a_whole() {
    let mut engine = running(TestPool::with_free(100..200));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(50), &mut sent);
    let calls = engine.pool().calls;
    let flood: Vec<(u64, u64)> = (0..510).map(|index| (index * 0x100_0000, 0xff_ffff)).collect();
    for ranges in [&[(100, 51)][..], &[(100, 26), (100, 25)], &flood] {
        deliver(&mut engine, &unballoon_request(ranges, false), &mut sent);
        assert_eq!(
            sent.messages.last().unwrap()[..2],
            [9, 0],
            "the host waits for the answer"
        );
    }
    assert_eq!(engine.counters().refused_unballoons, 3);
    assert_eq!((engine.held().page_count(), engine.pool().calls), (50, calls));
    // One page less is as many as are held.
    deliver(
        &mut engine,
        &unballoon_request(&[(100, 26), (100, 24)], false),
        &mut sent,
    );
    assert_eq!(engine.held().page_count(), 24);
}

#[test]
fn q12_a_range_count_beyond_the_message_returns_nothing() {
    let mut engine = running(TestPool::with_free(100..200));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(50), &mut sent);
    let mut packet = unballoon_request(&[(100, 1)], false);
    packet[12] = 2;
    deliver(&mut engine, &packet, &mut sent);
    assert_eq!((engine.held().page_count(), engine.counters().malformed), (50, 1));
}

#[test]
fn giving_back_is_done_in_slices_and_the_next_request_waits_for_it() {
    let config = Config {
        slice_steps: 16,
        ..Config::default()
    };
    let mut engine = running_with(config, TestPool::with_free((0..4000).step_by(2)));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(2000), &mut sent);
    let ranges: Vec<(u64, u64)> = (0..400).map(|index| (index * 10, 5)).collect();
    sent.messages.clear();
    assert_eq!(engine.on_packet(&unballoon_request(&ranges, false)), Delivery::Taken);
    let mut slices = 0;
    loop {
        for packet in [
            balloon_request(1),
            unballoon_request(&[], true),
            hot_add_request(1 << 23, 1),
        ] {
            assert_eq!(engine.on_packet(&packet), Delivery::Busy);
        }
        let calls = engine.pool().calls;
        let progress = engine.poll(at(0), &mut sent);
        assert!(engine.pool().calls - calls <= 16 + 4, "{}", engine.pool().calls - calls);
        slices += 1;
        if progress == Progress::Idle {
            break;
        }
    }
    assert!(slices > 50, "{slices}");
    assert_eq!(sent.messages.len(), 1);
    assert_eq!(engine.held().page_count(), 2000 - 400 * 3);
}

#[test]
fn a_full_ring_delays_and_loses_nothing() {
    let mut engine = engine_with(Config::default(), TestPool::with_free((0..4000).step_by(2)));
    let mut sent = Sent {
        room: Some(0),
        ..Sent::default()
    };
    let blocked = |engine: &mut Engine<TestPool>, sent: &mut Sent| {
        assert_eq!(settle(engine, at(0), sent), Progress::Blocked);
        sent.room = Some(1);
        let progress = settle(engine, at(0), sent);
        sent.room = Some(0);
        progress
    };
    engine.start();
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Idle);
    assert_eq!(engine.on_packet(&VERSION_ACCEPTED), Delivery::Taken);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Idle);
    assert_eq!(engine.on_packet(&CAPABILITIES_ACCEPTED), Delivery::Taken);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Idle);
    let kinds: Vec<u8> = sent.messages.drain(..).map(|message| message[0]).collect();
    assert_eq!(kinds, [1, 3, 5]);

    // 1200 ranges are three messages.
    assert_eq!(engine.on_packet(&balloon_request(1200)), Delivery::Taken);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Blocked);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Blocked);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Idle);
    let parts: Vec<(bool, usize)> = sent
        .messages
        .drain(..)
        .map(|message| balloon_response(&message))
        .map(|(more, ranges)| (more, ranges.len()))
        .collect();
    assert_eq!(parts, [(true, 510), (true, 510), (false, 180)]);

    assert_eq!(
        engine.on_packet(&unballoon_request(&[(0, 1000)], false)),
        Delivery::Taken
    );
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Idle);
    assert_eq!(engine.on_packet(&hot_add_request(1 << 23, 1)), Delivery::Taken);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Idle);
    let kinds: Vec<u8> = sent.messages.iter().map(|message| message[0]).collect();
    assert_eq!(kinds, [9, 11]);

    // What the host gives back is taken even while a report does not fit.
    assert_eq!(
        engine.on_packet(&unballoon_request(&[(1000, 600)], true)),
        Delivery::Taken
    );
    assert_eq!(engine.poll(at(1000), &mut sent), Progress::Blocked);
    assert_eq!(engine.held().page_count(), 400);
}

#[test]
fn held_pages_stay_untouched_across_close_reopen_and_a_new_engine() {
    let mut engine = running(TestPool::with_free(0..1000));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(300), &mut sent);
    let pages = held(&engine);
    engine.on_closed();
    assert_eq!(engine.state(), State::Closed);
    assert_eq!((held(&engine), &engine.pool().taken), (pages.clone(), &pages));
    deliver(&mut engine, &unballoon_request(&[(0, 300)], false), &mut sent);
    assert_eq!(held(&engine), pages, "nobody is there to give anything back");

    connect(&mut engine);
    assert_eq!(held(&engine), pages);
    let (pool, kept) = engine.into_parts();
    assert_eq!(pool.taken, pages);
    let mut engine = engine_with(Config::default(), pool).with_held_pages(kept);
    connect(&mut engine);
    assert_eq!(held(&engine), pages);
    // A host that remembers gives them back.
    deliver(&mut engine, &unballoon_request(&[(0, 300)], false), &mut sent);
    assert_eq!((engine.held().page_count(), engine.pool().free.len()), (0, 1000));
}

#[test]
fn pages_that_the_host_was_not_told_of_go_back_when_the_channel_closes() {
    let mut engine = running(TestPool::with_free((0..4000).step_by(2)));
    let mut sent = Sent {
        room: Some(1),
        ..Sent::default()
    };
    assert_eq!(engine.on_packet(&balloon_request(2000)), Delivery::Taken);
    assert_eq!(settle(&mut engine, at(0), &mut sent), Progress::Blocked);
    assert_eq!(engine.held().page_count(), 1020);
    engine.on_closed();
    let (_, told) = balloon_response(&sent.messages[0]);
    assert_eq!(held(&engine), told.into_iter().map(|(start, _)| start).collect());
    assert_eq!(engine.pool().free.len(), 2000 - 510);
    assert_eq!(engine.pool().taken, held(&engine));

    // The same when the channel turns out to be gone while sending.
    connect(&mut engine);
    assert_eq!(engine.on_packet(&balloon_request(5)), Delivery::Taken);
    sent.is_gone = true;
    assert_eq!(engine.poll(at(0), &mut sent), Progress::Idle);
    assert_eq!((engine.state(), engine.held().page_count()), (State::Closed, 510));
}

#[test]
fn pages_that_the_host_gave_back_before_the_close_are_not_lost() {
    let config = Config {
        slice_steps: 4,
        ..Config::default()
    };
    for reopens in [false, true] {
        let mut engine = running_with(config, TestPool::with_free((0..4000).step_by(2)));
        let mut sent = Sent::default();
        deliver(&mut engine, &balloon_request(2000), &mut sent);
        sent.messages.clear();
        assert_eq!(
            engine.on_packet(&unballoon_request(&[(0, 2000)], false)),
            Delivery::Taken
        );
        assert_eq!(engine.poll(at(0), &mut sent), Progress::More);
        if reopens {
            engine.on_closed();
            engine.start();
            settle(&mut engine, at(0), &mut sent);
            assert_eq!(
                sent.messages.len(),
                1,
                "the version request and no answer to what was before it"
            );
            assert_eq!(engine.pool().free.len(), 1000);
        } else {
            let (pool, kept) = engine.into_parts();
            assert_eq!((pool.free.len(), kept.page_count()), (1000, 1000));
        }
    }
}

#[test]
fn memory_is_added_as_far_as_the_pool_takes_it() {
    let answer = |pool: TestPool, packet: &[u8]| {
        let mut engine = running(pool);
        let mut sent = Sent::default();
        deliver(&mut engine, packet, &mut sent);
        assert_eq!(sent.messages.len(), 1);
        let message = &sent.messages[0];
        assert_eq!(message[..4], [11, 0, 16, 0]);
        let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
        assert_eq!(engine.counters().hot_added_pages, u64::from(word(8)));
        (word(8), word(12))
    };
    let pool = |start, count| {
        let mut pool = TestPool::with_free(0..10);
        pool.addable = PageRange::new(Pfn::new(start), count);
        pool
    };
    // 2 GiB is 16 calls; all of it, a part that ends within a call, nothing ever.
    assert_eq!(
        answer(pool(1 << 23, 1 << 19), &hot_add_request(1 << 23, 1 << 19)),
        (1 << 19, 1)
    );
    assert_eq!(
        answer(pool(1 << 23, 100_000), &hot_add_request(1 << 23, 1 << 19)),
        (100_000, 1)
    );
    assert_eq!(answer(pool(1 << 24, 1), &hot_add_request(1 << 23, 1 << 19)), (0, 1));
    // Nothing now, perhaps later.
    let mut short = pool(1 << 23, 1 << 19);
    short.add_refused = Some(AddRefused::NotNow);
    assert_eq!(answer(short, &hot_add_request(1 << 23, 1)), (0, 0));
    // Without a region, with an empty one, and not aligned: the pool decides.
    let body = bits((1 << 23) + 3, 5);
    assert_eq!(answer(pool(1 << 23, 100), &message(10, &body)), (5, 1));
    assert_eq!(
        answer(pool(1 << 23, 100), &message(10, &[body, [0; 8]].concat())),
        (5, 1)
    );
}

#[test]
fn hot_add_requests_that_make_no_sense_are_refused_for_good() {
    let mut pool = TestPool::with_free(0..100);
    pool.addable = PageRange::new(Pfn::new(0), 1 << 24);
    let mut engine = running(pool);
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(50), &mut sent);
    let calls = engine.pool().calls;
    let outside = [bits(1 << 23, 100), bits((1 << 23) + 1, 100)].concat();
    // Not in its region; no pages; pages that the host took.
    for (count, body) in [&outside[..], &bits(1 << 23, 0), &bits(40, 5)].into_iter().enumerate() {
        sent.messages.clear();
        deliver(&mut engine, &message(10, body), &mut sent);
        assert_eq!(sent.messages[0][8..], [0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(engine.counters().refused_hot_adds, count as u64 + 1);
    }
    assert_eq!(engine.pool().calls, calls);

    // A system that cannot grow does not say that it can, and refuses politely if asked anyway.
    let config = Config {
        hot_add_alignment: None,
        ..Config::default()
    };
    let mut pool = TestPool::with_free(0..100);
    pool.addable = PageRange::new(Pfn::new(1 << 23), 1);
    let mut engine = running_with(config, pool);
    deliver(&mut engine, &hot_add_request(1 << 23, 1), &mut sent);
    assert_eq!(sent.messages[1][8..], [0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(engine.pool().calls, 0);
    assert_eq!(engine.capabilities(), Capabilities(1));
}

#[test]
fn hot_adding_is_sliced_and_what_was_added_before_a_close_is_counted() {
    let mut pool = TestPool::with_free(0..10);
    pool.addable = PageRange::new(Pfn::new(1 << 23), 1 << 19);
    let mut engine = running(pool);
    let mut sent = Sent::default();
    assert_eq!(engine.on_packet(&hot_add_request(1 << 23, 1 << 19)), Delivery::Taken);
    assert_eq!(engine.poll(at(0), &mut sent), Progress::More);
    assert_eq!(engine.pool().calls, 2, "two pieces of 128 MiB a slice");
    engine.on_closed();
    assert_eq!(engine.counters().hot_added_pages, 65_536);
    assert_eq!(sent.messages.len(), 0);
    connect(&mut engine);
    assert_eq!(engine.pool().free.len(), 10 + 65_536);
}
