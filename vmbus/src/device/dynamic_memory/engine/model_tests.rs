//! Random hosts: whatever they do, no page is returned that is not held, and none is lost.

use std::collections::BTreeSet;
use std::vec::Vec;

use proptest::prelude::*;

use super::support::{
    Sent, TestPool, at, balloon_request, balloon_response, bits, connect, hot_add_request, message, settle,
    unballoon_request,
};
use super::*;
use crate::device::dynamic_memory::PageRange;
use crate::memory::Pfn;

const BOOT_PAGES: u64 = 1500;
const ADD_AT: u64 = 40_000;
const ADDABLE_PAGES: u64 = 700;

#[derive(Clone, Debug)]
enum Action {
    Balloon(u32),
    /// Gives back the ranges that it was told of, from the n-th on.
    Unballoon {
        skip: usize,
        ranges: usize,
        more: bool,
    },
    /// Gives back whatever it likes.
    UnballoonLies(Vec<(u64, u64)>),
    HotAdd {
        start: u64,
        count: u64,
    },
    HotAddLies([u8; 16]),
    Bytes {
        message_type: u8,
        body: Vec<u8>,
    },
    Garbage(Vec<u8>),
    Poll {
        times: u8,
        room: usize,
    },
    /// The channel goes away; the host may forget what it took.
    Reopen {
        forgets: bool,
    },
    Gone,
    /// The system uses or frees some pages.
    System(i16),
}

fn action() -> impl Strategy<Value = Action> {
    let page = 0..ADD_AT + ADDABLE_PAGES + 100;
    prop_oneof![
        6 => prop_oneof![0_u32..1200, Just(512), Just(u32::MAX)].prop_map(Action::Balloon),
        6 => (0_usize..20, 0_usize..520, any::<bool>())
            .prop_map(|(skip, ranges, more)| Action::Unballoon { skip, ranges, more }),
        2 => prop::collection::vec((page.clone(), 0_u64..50), 0..20).prop_map(Action::UnballoonLies),
        2 => (0_u64..ADDABLE_PAGES + 10, 0_u64..400)
            .prop_map(|(start, count)| Action::HotAdd { start: ADD_AT - 5 + start, count }),
        1 => any::<[u8; 16]>().prop_map(Action::HotAddLies),
        1 => (0_u8..16, prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(message_type, body)| Action::Bytes { message_type, body }),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Action::Garbage),
        8 => (1_u8..50, 0_usize..4).prop_map(|(times, room)| Action::Poll { times, room }),
        1 => any::<bool>().prop_map(|forgets| Action::Reopen { forgets }),
        1 => Just(Action::Gone),
        2 => (-200_i16..200).prop_map(Action::System),
    ]
}

/// A host that believes what it is told.
struct Host {
    engine: Engine<TestPool>,
    sent: Sent,
    /// The pages that it was told of and has not given back.
    has: BTreeSet<u64>,
    forgotten: BTreeSet<u64>,
    requests: usize,
    answers: usize,
}

impl Host {
    fn new(longest_run: u64, slice_steps: u32, reserve: u64) -> Self {
        // Holes of three pages every ten: runs, but not endless ones.
        let mut pool = TestPool::with_free((0..BOOT_PAGES).filter(|page| page % 10 > 2));
        pool.used = (0..BOOT_PAGES).filter(|page| page % 10 <= 2).collect();
        pool.longest_run = longest_run;
        pool.reserve = reserve;
        pool.addable = PageRange::new(Pfn::new(ADD_AT), ADDABLE_PAGES);
        let config = Config {
            slice_steps,
            ..Config::default()
        };
        let mut engine = Engine::new(config, pool).unwrap();
        connect(&mut engine);
        Self {
            engine,
            sent: Sent::default(),
            has: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            requests: 0,
            answers: 0,
        }
    }

    /// Delivers a packet, or drops it if the engine is busy, as no driver would: the host has to live with it.
    fn deliver(&mut self, packet: &[u8]) -> bool {
        self.engine.on_packet(packet) == Delivery::Taken
    }

    fn read(&mut self) {
        for message in std::mem::take(&mut self.sent.messages) {
            match message[0] {
                7 => {
                    let (more, ranges) = balloon_response(&message);
                    for page in ranges.into_iter().flat_map(|(start, count)| start..start + count) {
                        assert!(self.has.insert(page), "page {page:#x} was ballooned twice");
                        assert!(!self.forgotten.contains(&page), "page {page:#x} belongs to nobody");
                    }
                    self.answers += usize::from(!more);
                }
                9 | 11 => self.answers += 1,
                other => panic!("message {other} from a guest that runs"),
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Balloon(pages) => {
                let is_taken = self.deliver(&balloon_request(pages));
                self.requests += usize::from(is_taken);
            }
            Action::Unballoon { skip, ranges, more } => {
                let pages: Vec<u64> = self.has.iter().copied().skip(skip).take(ranges).collect();
                let ranges: Vec<(u64, u64)> = pages.iter().map(|page| (*page, 1)).collect();
                if ranges.len() <= 510 && self.deliver(&unballoon_request(&ranges, more)) {
                    self.has.retain(|page| !pages.contains(page));
                    self.requests += usize::from(!more);
                }
            }
            Action::UnballoonLies(ranges) => {
                // A lie that names pages which the host has is the truth about these.
                let named: u64 = ranges.iter().map(|(_, count)| count).sum();
                let is_believed = named <= self.engine.held().page_count();
                if self.deliver(&unballoon_request(&ranges, false)) {
                    self.requests += 1;
                    if is_believed {
                        for (start, count) in ranges {
                            self.has.retain(|page| !(start..start + count).contains(page));
                            self.forgotten.retain(|page| !(start..start + count).contains(page));
                        }
                    }
                }
            }
            Action::HotAdd { start, count } => {
                let is_taken = self.deliver(&hot_add_request(start, count));
                self.requests += usize::from(is_taken);
            }
            Action::HotAddLies(body) => {
                let is_taken = self.deliver(&message(10, &body));
                self.requests += usize::from(is_taken);
            }
            // Whatever these are, they must not be what the other actions keep books of.
            Action::Bytes { message_type, body } => {
                if !matches!(message_type, 6 | 8 | 10) {
                    self.deliver(&message(message_type, &body));
                }
            }
            Action::Garbage(bytes) => {
                if !matches!(bytes.first(), Some(6 | 8 | 10)) {
                    self.deliver(&bytes);
                }
            }
            Action::Poll { times, room } => {
                self.sent.room = Some(room);
                for _ in 0..times {
                    let _ = self.engine.poll(at(0), &mut self.sent);
                }
                self.sent.room = None;
            }
            Action::Reopen { forgets } => {
                self.read();
                self.engine.on_closed();
                connect(&mut self.engine);
                if forgets {
                    self.forgotten.append(&mut self.has);
                }
                self.requests = 0;
                self.answers = 0;
            }
            Action::Gone => {
                self.sent.is_gone = true;
                let _ = settle(&mut self.engine, at(0), &mut self.sent);
                self.sent.is_gone = false;
                if self.engine.state() == State::Closed {
                    self.act(Action::Reopen { forgets: false });
                }
            }
            Action::System(pages) => {
                let pool = self.engine.pool_mut();
                for _ in 0..pages.unsigned_abs() {
                    if pages > 0 {
                        pool.used.extend(pool.free.pop_last());
                    } else {
                        pool.free.extend(pool.used.pop_last());
                    }
                }
            }
        }
        self.read();
    }

    fn check(&self) {
        let pool = self.engine.pool();
        let mut held = Vec::new();
        self.engine
            .held()
            .for_each_run(|run| held.extend(run.start().get()..run.end().get()));
        assert!(
            held.iter().eq(&pool.taken),
            "held by the engine {held:x?}, taken from the pool {:x?}",
            pool.taken
        );
        assert_eq!(held.len() as u64, self.engine.held().page_count());
        assert!(
            self.has.is_subset(&pool.taken),
            "the host has pages that the guest uses"
        );
        assert_eq!(
            pool.total(),
            BOOT_PAGES + pool.added_pages,
            "no page is lost, none is made"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 200 }, ..ProptestConfig::default() })]

    #[test]
    fn q12_whatever_the_host_does_no_page_is_returned_that_is_not_held_and_none_is_lost(
        actions in prop::collection::vec(action(), 1..if cfg!(miri) { 12 } else { 60 }),
        longest_run in prop_oneof![Just(1_u64), Just(7), Just(512)],
        slice_steps in 1_u32..200,
        reserve in 0_u64..500,
    ) {
        let mut host = Host::new(longest_run, slice_steps, reserve);
        for action in actions {
            host.act(action);
            host.check();
        }

        // In the end every request has been answered exactly once, and everything comes back.
        prop_assert_eq!(settle(&mut host.engine, at(0), &mut host.sent), Progress::Idle);
        host.read();
        prop_assert_eq!(host.answers, host.requests);
        host.check();
        let mut everything: Vec<u64> = host.engine.pool().taken.iter().copied().collect();
        while !everything.is_empty() {
            let part: Vec<(u64, u64)> = everything.drain(..everything.len().min(510)).map(|page| (page, 1)).collect();
            prop_assert!(host.deliver(&unballoon_request(&part, false)));
            settle(&mut host.engine, at(0), &mut host.sent);
        }
        prop_assert_eq!(host.engine.held().page_count(), 0);
        prop_assert!(host.engine.pool().taken.is_empty());
        prop_assert!(host.engine.held().bookkeeping_bytes() < 16 * 1024);
    }
}

#[test]
fn the_model_host_reads_ranges_as_they_are_written() {
    assert_eq!(bits(0x80_0000, 0x8000), [0, 0, 0x80, 0, 0, 0, 0x80, 0]);
}
