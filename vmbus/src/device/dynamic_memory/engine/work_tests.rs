//! Balloon, unballoon and hot add requests, against a scripted host.

use std::collections::BTreeSet;
use std::vec::Vec;

use super::super::{AddRefused, PageRange};
use super::support::*;
use super::*;
use crate::memory::Pfn;

#[test]
fn the_largest_request_of_fragmented_pages_is_answered_in_as_many_messages_as_it_takes() {
    // What QEMU asks for at most; fewer where each page costs a hundred times as much.
    const PAGES: u64 = if cfg!(miri) { 1_100 } else { 585_728 };
    // Every second page: no two can be joined.
    let mut engine = running(TestPool::with_free((0..2 * PAGES).step_by(2)));
    let mut sent = Sent::default();
    assert_eq!(
        engine.on_packet(&balloon_request(u32::try_from(PAGES).unwrap())),
        Delivery::Taken
    );
    let mut slices = 1;
    let mut calls_before = 0;
    while engine.poll(at(0), &mut sent) == Progress::More {
        let calls = engine.pool().calls - calls_before;
        assert!(calls <= 1024, "{calls} calls in one slice");
        calls_before = engine.pool().calls;
        slices += 1;
    }
    assert_eq!(slices, PAGES.div_ceil(1024));
    assert_eq!(sent.messages.len() as u64, PAGES.div_ceil(510));
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
    assert_eq!(pages.len() as u64, PAGES);
    assert_eq!(engine.held().page_count(), PAGES);
    assert!(engine.held().bookkeeping_bytes() < 512 * 1024);

    // And back, in the largest range that fits over all of them, half of which the host does not have.
    deliver(&mut engine, &unballoon_request(&[(0, PAGES)], false), &mut sent);
    assert_eq!(sent.messages.last().unwrap()[..2], [9, 0]);
    assert_eq!(engine.held().page_count(), PAGES / 2);
    assert_eq!(engine.counters().unknown_pages, PAGES / 2);
    assert_eq!(engine.pool().free.len() as u64, PAGES / 2);
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
        let counters = engine.counters();
        assert_eq!(
            (counters.balloon_requests, counters.balloon_requests_cut),
            (1, u64::from(expected < asked.into()))
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
    let counters = engine.counters();
    assert_eq!((counters.unballoon_requests, counters.unballooned_pages), (3, 15));
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
    let (held, given_back) = if cfg!(miri) { (300, 60) } else { (2000, 400) };
    let mut engine = running_with(config, TestPool::with_free((0..4000).step_by(2)));
    let mut sent = Sent::default();
    deliver(&mut engine, &balloon_request(held), &mut sent);
    let ranges: Vec<(u64, u64)> = (0..given_back).map(|index| (index * 10, 5)).collect();
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
    assert!(slices > given_back / 8, "{slices}");
    assert_eq!(sent.messages.len(), 1);
    assert_eq!(engine.held().page_count(), u64::from(held) - given_back * 3);
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
    // A report that does not fit is left out.
    assert_eq!(settle(&mut engine, at(0), &mut sent), Progress::Idle);
    let counters = engine.counters();
    assert_eq!((counters.status_reports, counters.status_reports_left_out), (0, 1));
    assert_eq!(engine.next_wakeup(), Some(at(500)));
    let kinds: Vec<u8> = sent.messages.drain(..).map(|message| message[0]).collect();
    assert_eq!(kinds, [1, 3]);

    // 1200 ranges are three messages.
    assert_eq!(engine.on_packet(&balloon_request(1200)), Delivery::Taken);
    assert_eq!(blocked(&mut engine, &mut sent), Progress::Blocked);
    assert_eq!(
        engine.next_wakeup(),
        Some(at(20)),
        "in case the host does not say that it has made room"
    );
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

    // What the host gave back is worked through even while nothing can be said on a new channel.
    let returned = unballoon_request(&[(1000, 600)], true);
    assert_eq!(engine.on_packet(&returned), Delivery::Taken);
    engine.start();
    assert_eq!(engine.poll(at(0), &mut sent), Progress::Blocked);
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
#[cfg_attr(
    miri,
    ignore = "a million pages in the test's own tree, a quarter of an hour; nothing unsafe under it"
)]
fn memory_is_added_as_far_as_the_pool_takes_it() {
    let answer = |pool: TestPool, packet: &[u8]| {
        let mut engine = running(pool);
        let mut sent = Sent::default();
        deliver(&mut engine, packet, &mut sent);
        assert_eq!(sent.messages.len(), 1);
        let message = &sent.messages[0];
        assert_eq!(message[..4], [11, 0, 16, 0]);
        let word = |at: usize| u32::from_le_bytes(message[at..at + 4].try_into().unwrap());
        let counters = engine.counters();
        assert_eq!(
            (counters.hot_add_requests, counters.hot_added_pages),
            (1, u64::from(word(8)))
        );
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
    // A hole: what follows it cannot be told, so it is not added.
    let mut holed = pool(1 << 23, 1 << 19);
    holed.used.insert((1 << 23) + 40_000);
    assert_eq!(answer(holed, &hot_add_request(1 << 23, 1 << 19)), (40_000, 1));
    // Nothing now, perhaps later.
    let mut short = pool(1 << 23, 1 << 19);
    short.add_refused = Some((0, AddRefused::NotNow));
    assert_eq!(answer(short, &hot_add_request(1 << 23, 1)), (0, 0));
    // Some now: that is a success, whatever the reason for the end.
    let mut ending = pool(1 << 23, 1 << 19);
    ending.add_refused = Some(((1 << 23) + 32_768, AddRefused::NotNow));
    assert_eq!(answer(ending, &hot_add_request(1 << 23, 1 << 19)), (32_768, 1));
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
#[cfg_attr(
    miri,
    ignore = "65,536 pages in the test's own tree, minutes; nothing unsafe under it"
)]
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
