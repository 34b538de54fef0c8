//! The host does wrong what it is told to do wrong.

use core::time::Duration;
use std::vec::Vec;

use super::RawGuest;
use super::guest::words;
use super::protocol::offer;
use crate::memory::SharedPages;
use crate::testing::model::{
    Config, Echo, GuestRange, Pace, Personality, Reply, RingError, Scrambler, VersionEcho, When,
};
use crate::testing::wait_until;

fn contacted(config: Config, version: u32, connection: u32) -> RawGuest {
    let mut guest = RawGuest::new(config);
    guest.contact(version, connection).unwrap();
    guest
}

/// A guest with an open channel without a device: rings of one data page each.
fn opened(config: Config) -> (RawGuest, u32, SharedPages) {
    let guest = contacted(config, 0x5_0003, 4);
    let channel = guest.host.offer(offer());
    guest.post(&[3, 0]);
    let rings = SharedPages::allocate(guest.platform, 4).unwrap();
    guest.gpadl(channel, 5, &rings);
    guest.post(&RawGuest::open_words(channel, 1, 5, 2));
    assert_eq!(words(guest.take_all().last().unwrap()), [6, 0, channel, 1, 0]);
    (guest, channel, rings)
}

#[test]
fn replies_are_spoilt_as_told() {
    let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
    let ask = |reply: Reply| {
        guest.host.set_next_replies(3, reply, 1);
        guest.post(&[3, 0]);
        let answers: Vec<Vec<u32>> = guest.take_all().iter().map(|answer| words(answer)).collect();
        answers
    };
    assert_eq!(ask(Reply::Normal), [[4, 0]]);
    assert_eq!(ask(Reply::Silent), Vec::<Vec<u32>>::new());
    assert_eq!(ask(Reply::Ignore), Vec::<Vec<u32>>::new());
    assert_eq!(ask(Reply::Twice), [[4, 0], [4, 0]]);
    assert_eq!(ask(Reply::Truncated(4)), [[4]]);
    assert_eq!(ask(Reply::Instead([9; 8].into())), [[0x0909_0909, 0x0909_0909]]);
    assert_eq!(ask(Reply::After([17, 0, 0, 0, 0, 0, 0, 0].into())), [[17, 0], [4, 0]]);
    assert_eq!(ask(Reply::Late(Duration::from_secs(3))), Vec::<Vec<u32>>::new());
    guest.platform.advance(Duration::from_secs(3));
    assert_eq!(guest.take_words(), [4, 0]);
    guest.host.set_reply(3, Reply::Silent);
    guest.post(&[3, 0]);
    guest.post(&[3, 0]);
    assert!(guest.take().is_none());
    guest.host.set_reply(3, Reply::Normal);
    guest.post(&[3, 0]);
    assert_eq!(guest.take_words(), [4, 0]);
}

#[test]
fn failures_carry_their_status_and_nothing_is_kept() {
    let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
    let channel = guest.host.offer(offer());
    let pages = SharedPages::allocate(guest.platform, 4).unwrap();
    guest.host.set_next_replies(8, Reply::Status(0xc000_0017), 1);
    guest.gpadl(channel, 5, &pages);
    assert_eq!(guest.take_words(), [10, 0, channel, 5, 0xc000_0017]);
    assert_eq!(guest.host.gpadl_count(), 0);
    guest.host.set_next_replies(8, Reply::OtherKey, 1);
    guest.gpadl(channel, 5, &pages);
    assert_eq!(guest.take_words(), [10, 0, channel, 5 ^ 0x40, 0]);
    guest.host.set_next_replies(5, Reply::Status(0xc000_0017), 1);
    guest.post(&RawGuest::open_words(channel, 1, 5, 2));
    assert_eq!(guest.take_words()[4], 0xc000_0017);
    assert!(!guest.host.channel(channel).is_open());
    // A teardown that is not answered: the host still has the memory.
    guest.host.set_next_replies(11, Reply::Late(Duration::from_secs(1)), 1);
    guest.post(&[11, 0, channel, 5]);
    assert!(guest.take().is_none());
    drop(pages);
    assert!(guest.host.take_violations()[0].contains("GPADL 5"));
    guest.platform.advance(Duration::from_secs(1));
    assert_eq!(guest.take_words(), [12, 0, 5]);
    assert_eq!(guest.host.gpadl_count(), 0);
}

#[test]
fn posts_fail_so_often_as_told() {
    let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
    guest.host.fail_posts(0x13, 2);
    guest.host.fail_posts(0x12, 1);
    let request = [3, 0, 0, 0, 0, 0, 0, 0];
    let results = [0; 4].map(|_| guest.post_at(0, 4, &request));
    assert_eq!(results, [0x13, 0x13, 0x12, 0]);
}

#[test]
fn a_slow_host_runs_out_of_buffers_and_catches_up() {
    let guest = contacted(Config::new(Personality::Qemu), 0x4_0000, 1);
    let request = [13, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let results: Vec<u64> = (0..18).map(|_| guest.post_at(0, 1, &request)).collect();
    assert_eq!(results.iter().filter(|status| **status == 0).count(), 16);
    assert_eq!(results[16..], [0x13, 0x13]);
    guest.host.run();
    assert_eq!(guest.post_at(0, 1, &request), 0);
}

#[test]
fn a_redirected_connection_is_where_messages_have_to_go() {
    let mut config = Config::new(Personality::HyperV);
    config.message_connection = 0x23;
    let guest = contacted(config, 0x5_0003, 4);
    assert_eq!(guest.connection, 0x23);
    guest.post(&[3, 0]);
    assert_eq!(guest.take_words(), [4, 0]);
    guest.host.assert_no_violations();
}

#[test]
fn an_answer_may_lack_its_echo_or_claim_too_much() {
    let mut config = Config::new(Personality::HyperV);
    config.echo = VersionEcho::Absent;
    let mut guest = RawGuest::new(config);
    assert_eq!(guest.contact(0x4_0000, 1).unwrap(), [15, 0, 1, 0]);
    guest.host.configure(|config| config.echo = VersionEcho::Present);
    assert_eq!(guest.contact(0x4_0000, 1).unwrap(), [15, 0, 1, 0x4_0000]);
    guest.host.configure(|config| config.extra_features = 0x80);
    let message = super::guest::bytes(&[14, 0, 0x6_0000, 0, 2, 3, 0, 0, 0, 0]);
    assert_eq!(guest.post_at(0, 4, &message), 0);
    assert_eq!(guest.take_words(), [15, 0, 1, 4, 0x83]);
    assert_eq!(guest.host.features(), 3);
}

#[test]
fn a_rescind_at_a_step_meets_the_request() {
    for (when, is_answered) in [(When::Before, false), (When::After, true)] {
        let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
        let channel = guest.host.offer(offer());
        guest.post(&[3, 0]);
        guest.take_all();
        let pages = SharedPages::allocate(guest.platform, 1).unwrap();
        guest
            .host
            .at_step(guest.host.step_count(), when, move |host, _| host.rescind(channel));
        guest.gpadl(channel, 5, &pages);
        let kinds: Vec<u8> = guest.take_all().iter().map(|message| message[0]).collect();
        assert_eq!(kinds, if is_answered { &[10, 2][..] } else { &[2][..] });
        drop(pages);
        guest.post(&[13, 0, channel]);
        assert_eq!(guest.host.gpadl_count(), 0);
        guest.host.assert_no_violations();
    }
}

#[test]
fn messages_of_any_kind_and_length_can_be_sent() {
    let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
    guest.host.send_raw(&[2, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0]);
    assert_eq!(guest.take_words(), [2, 0, 77]);
    guest.host.send_slot(0x4711, 255, &[1, 2, 3]);
    let slot = guest.host.slot_address(0, 2).unwrap();
    let mut head = [0; 19];
    guest.platform.guest_read(slot, &mut head).unwrap();
    assert_eq!(
        (&head[..5], &head[16..]),
        (&[0x11, 0x47, 0, 0, 255][..], &[1, 2, 3][..])
    );
    guest.platform.guest_write(slot, &[0; 4]).unwrap();
    let channel = guest.host.offer(offer());
    guest.post(&[3, 0]);
    guest.take_all();
    guest.host.offer_as(channel, offer());
    assert_eq!(guest.take_words()[46], channel, "the same number twice");
    assert_eq!(guest.host.channels(), [channel]);
}

#[test]
fn packets_of_all_types_and_broken_ones_reach_the_ring() {
    let (guest, channel, rings) = opened(Config::new(Personality::HyperV));
    let end = guest.host.channel(channel);
    let at = |offset: usize, len: usize| {
        let mut bytes: Vec<u8> = (0..len).map(|_| 0).collect();
        rings.read_at(3 * 4096 + offset, &mut bytes).unwrap();
        bytes
    };
    end.send_in_band(0x1234, 1, b"abc").unwrap();
    assert_eq!(
        at(0, 24),
        [
            6, 0, 2, 0, 3, 0, 1, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c', 0, 0, 0, 0, 0
        ]
    );
    let range = GuestRange {
        len_bytes: 5,
        offset: 4094,
        page_numbers: [7, 9].into(),
    };
    end.send_gpa_direct(2, 0, &[range], b"x").unwrap();
    assert_eq!(at(32, 8), [9, 0, 6, 0, 7, 0, 0, 0]);
    assert_eq!(words(&at(48, 32)), [0, 1, 5, 4094, 7, 0, 9, 0]);
    assert_eq!(
        at(32 + 56, 8),
        [0, 0, 0, 0, 32, 0, 0, 0],
        "the trailer names where the packet began"
    );
    end.send_transfer_pages(3, 1, 0xcafe, &[(10, 20)], &[]).unwrap();
    assert_eq!(at(96, 8), [7, 0, 4, 0, 4, 0, 1, 0]);
    assert_eq!(words(&at(112, 16)), [0x0001_cafe, 1, 10, 20]);
    end.send_bytes(&[0xff; 8]).unwrap();
    assert_eq!(at(136, 8), [0xff; 8]);
    assert_eq!(end.counters().signals_sent, 1, "only the first found the ring empty");
    // What comes next can be changed under the guest's feet.
    let gpa = end.address_of_next(0).unwrap();
    end.send_completion(4, &[]).unwrap();
    guest.platform.guest_write(gpa + 4, &[0xff, 0xff]).unwrap();
    assert_eq!(at(144, 6), [11, 0, 2, 0, 0xff, 0xff]);
    core::mem::forget(rings);
}

#[test]
fn a_full_ring_asks_for_room() {
    let (guest, channel, rings) = opened(Config::new(Personality::HyperV));
    let end = guest.host.channel(channel);
    let word = |offset: usize| {
        let mut bytes = [0; 4];
        rings.read_at(offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    end.send_in_band(1, 0, &[0; 2000]).unwrap();
    assert_eq!(
        end.send_in_band(2, 0, &[0; 2048]),
        Err(RingError::Full),
        "2024 and 2072 are exactly all"
    );
    assert_eq!(word(2 * 4096 + 12), 2080);
    end.send_in_band(2, 0, &[0; 2040]).unwrap();
    assert_eq!(word(2 * 4096 + 12), 0, "and no longer");
    end.set_pending_send_size(Some(4095));
    assert_eq!(end.send_in_band(2, 0, &[]), Err(RingError::Full));
    assert_eq!(word(2 * 4096 + 12), 4095);
    rings.write_at(2 * 4096 + 4, &[3, 0]).unwrap();
    assert_eq!(end.send_in_band(2, 0, &[]), Err(RingError::Broken));
    assert!(guest.host.take_violations()[0].contains("read index"));
    core::mem::forget(rings);
}

#[test]
fn a_guest_that_waits_for_room_is_signalled_when_there_is() {
    let (guest, channel, rings) = opened(Config::new(Personality::HyperV));
    // Two packets of 16 bytes, and a guest that waits for more than 4096 - 32 bytes of room.
    for at in [0_usize, 24] {
        let mut packet = [0; 24];
        packet[..6].copy_from_slice(&[6, 0, 2, 0, 2, 0]);
        packet[20..].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
        rings.write_at(4096 + at, &packet).unwrap();
    }
    rings.write_at(0, &[48]).unwrap();
    rings.write_at(12, &4064_u32.to_le_bytes()).unwrap();
    let end = guest.host.channel(channel);
    assert!(end.receive().is_some());
    assert_eq!(end.counters().signals_sent, 1, "4072 is more than 4064");
    assert!(end.receive().is_some());
    assert_eq!(end.counters().signals_sent, 1, "it was enough before");
    core::mem::forget(rings);
}

#[test]
fn useless_signals_are_counted() {
    let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
    let channel = guest.host.offer_with(offer(), Echo);
    guest.post(&[3, 0]);
    let connection = words(&guest.take().unwrap())[48];
    assert_eq!(guest.signal(connection), 0x12, "not open yet");
    let rings = SharedPages::allocate(guest.platform, 4).unwrap();
    guest.gpadl(channel, 5, &rings);
    guest.post(&RawGuest::open_words(channel, 1, 5, 2));
    guest.take_all();
    assert_eq!(guest.signal(connection), 0);
    let counters = guest.host.channel(channel).counters();
    assert_eq!((counters.signals, counters.useless_signals), (1, 1));
    assert_eq!(guest.host.counters().stray_signals, 1);
    core::mem::forget(rings);
}

#[test]
fn memory_changes_under_the_guests_feet() {
    let guest = contacted(Config::new(Personality::HyperV), 0x5_0003, 4);
    guest.host.send_raw(&[1; 196]);
    let slot = guest.host.slot_address(0, 2).unwrap();
    let scrambler = Scrambler::start(guest.platform, slot + 4, [[196].into(), [255].into()].into());
    let mut seen = [false; 2];
    wait_until("both patterns", || {
        seen[usize::from(guest.claimed_len() == 255)] = true;
        seen == [true; 2]
    });
    assert!(scrambler.rounds() > 0);
    drop(scrambler);
    guest.platform.guest_write(slot, &[0; 4]).unwrap();
}

#[test]
fn a_late_host_works_while_the_guest_waits() {
    let mut guest = RawGuest::new(Config::new(Personality::HyperV).pace(Pace::Later));
    guest.contact(0x5_0003, 4).unwrap();
    guest.post(&[3, 0]);
    let slot = guest.host.slot_address(0, 2).unwrap();
    let is_there = || {
        let mut kind = [0];
        guest.platform.guest_read(slot, &mut kind).unwrap();
        kind[0] != 0
    };
    assert!(!is_there());
    let now = || crate::Instant::from_reference_units(guest.rdmsr(0x4000_0020));
    let mut ready = is_there;
    crate::Platform::wait(guest.platform, &mut crate::platform::Wait::new(&mut ready, &now, None)).unwrap();
    assert!(is_there());
}

#[test]
fn answers_can_come_on_another_processor() {
    let mut guest = RawGuest::new(Config::with_processors(Personality::HyperV, 2));
    guest.contact(0x5_0003, 4).unwrap();
    let page = SharedPages::allocate(guest.platform, 1).unwrap();
    {
        let _there = guest.platform.on_processor(1);
        guest.wrmsr(0x4000_0083, page.gpa().unwrap().get() | 1);
        guest.wrmsr(0x4000_0080, 1);
    }
    guest.host.set_message_processor(Some(1));
    guest.post(&[16, 0]);
    assert!(guest.take().is_none());
    let mut message = [0; 17];
    page.read_at(2 * 256, &mut message).unwrap();
    assert_eq!((message[0], message[16]), (1, 17));
    core::mem::forget(page);
}
