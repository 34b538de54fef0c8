//! The handshake, the reports and one whole conversation, against a scripted host.

use std::collections::VecDeque;
use std::vec::Vec;

use super::super::PageRange;
use super::support::*;
use super::*;
use crate::memory::Pfn;

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
    assert_eq!(engine.counters().status_reports, 1);

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
    // The second one comes half a period after the first: not on the host's whole seconds since the handshake.
    assert_eq!(engine.next_wakeup(), Some(at(500)));
    engine.poll(at(499), &mut sent);
    assert_eq!(sent.messages.len(), 0);
    engine.poll(at(500), &mut sent);
    assert_eq!(engine.next_wakeup(), Some(at(1500)));
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

    if cfg!(miri) {
        // A quarter of an hour there: page by page into the test's pool.
        return;
    }
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
fn a_host_that_never_makes_room_for_the_handshake_is_given_up() {
    let mut sent = Sent {
        room: Some(0),
        ..Sent::default()
    };
    let mut engine = engine_with(Config::default(), TestPool::default());
    engine.start();
    assert_eq!(engine.poll(at(5), &mut sent), Progress::Blocked);
    assert_eq!(engine.poll(at(10_004), &mut sent), Progress::Blocked);
    assert_eq!(engine.next_wakeup(), Some(at(10_005)));
    assert_eq!(engine.poll(at(10_005), &mut sent), Progress::Idle);
    assert!(
        matches!(engine.state(), State::Faulted(Fault::NoAnswerToVersion { .. })),
        "{:?}",
        engine.state()
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
    assert_eq!(engine.on_packet(&VERSION_ACCEPTED), Delivery::Taken);
    assert_eq!(engine.on_packet(&CAPABILITIES_ACCEPTED), Delivery::Taken);
    assert!(
        matches!(engine.state(), State::Capabilities { .. }),
        "not even asked for"
    );
    settle(&mut engine, at(0), &mut sent);
    deliver(&mut engine, &VERSION_REFUSED, &mut sent);
    assert!(matches!(engine.state(), State::Capabilities { .. }));
    deliver(&mut engine, &CAPABILITIES_ACCEPTED, &mut sent);
    deliver(&mut engine, &message(4, &[0; 8]), &mut sent);
    assert!(matches!(engine.state(), State::Running { .. }));
    assert_eq!(engine.counters().unexpected, 7);
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
fn pumping_takes_packets_in_order_and_leaves_what_has_to_wait() {
    let config = Config {
        slice_steps: 50,
        ..Config::default()
    };
    let mut engine = engine_with(config, TestPool::with_free((0..4000).step_by(2)));
    let mut sent = Sent::default();
    let mut inbox = VecDeque::new();
    engine.start();
    assert_eq!(engine.pump(at(0), &mut inbox, &mut sent), Progress::Idle);
    // The whole handshake and three requests, read at one go by a driver that was late.
    inbox.extend([VERSION_ACCEPTED.to_vec(), CAPABILITIES_ACCEPTED_QUIETLY.to_vec()]);
    inbox.extend([
        balloon_request(700),
        unballoon_request(&[(0, 10)], false),
        balloon_request(1),
    ]);
    let mut calls = 0;
    loop {
        let before = engine.pool().calls;
        let progress = engine.pump(at(0), &mut inbox, &mut sent);
        assert!(engine.pool().calls - before <= 60, "one slice a call");
        calls += 1;
        if progress != Progress::More {
            assert_eq!(progress, Progress::Idle);
            break;
        }
    }
    assert!(calls >= 700 / 50, "{calls}");
    assert!(inbox.is_empty());
    let kinds: Vec<u8> = sent.messages.drain(..).map(|message| message[0]).collect();
    assert_eq!(kinds, [1, 3, 7, 7, 9, 7]);

    // A host that does not read: one request is begun, the next one waits outside.
    sent.room = Some(0);
    inbox.extend([balloon_request(1), balloon_request(2)]);
    for _ in 0..3 {
        assert_eq!(engine.pump(at(0), &mut inbox, &mut sent), Progress::Blocked);
        assert_eq!(inbox.len(), 1);
    }
    sent.room = None;
    assert_eq!(engine.pump(at(0), &mut inbox, &mut sent), Progress::Idle);
    assert_eq!((inbox.len(), sent.messages.len()), (0, 2));

    // A flood of packets does not keep the caller for ever.
    inbox.extend((0..100).map(|_| message(99, &[])));
    assert_eq!(engine.pump(at(0), &mut inbox, &mut sent), Progress::More);
    assert_eq!(inbox.len(), 100 - 16);
}

#[test]
fn what_a_host_repeats_fills_no_log() {
    let logged: Vec<u64> = (1..=1000).filter(|count| is_worth_a_line(*count)).collect();
    assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
}

#[test]
fn a_function_is_an_outbox() {
    let mut function = |message: &[u8]| {
        if message.is_empty() {
            Err(SendError::Full)
        } else {
            Ok(())
        }
    };
    let outbox: &mut dyn Outbox = &mut function;
    assert_eq!((outbox.send(&[]), outbox.send(&[1])), (Err(SendError::Full), Ok(())));
}
