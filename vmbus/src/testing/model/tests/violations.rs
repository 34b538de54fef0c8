//! What a guest does wrong is noticed.

use super::RawGuest;
use super::guest::words;
use super::protocol::offer;
use crate::memory::SharedPages;
use crate::testing::model::{Config, Offer, Personality};

/// A guest with one channel offered, and the channel's number.
fn connected(personality: Personality) -> (RawGuest, u32) {
    let mut guest = RawGuest::new(Config::new(personality));
    let channel = guest.host.offer(offer());
    let (version, connection) = match personality {
        Personality::Qemu => (0x4_0000, 1),
        _ => (0x5_0003, 4),
    };
    guest.contact(version, connection).unwrap();
    guest.post(&[3, 0]);
    guest.take_all();
    (guest, channel)
}

#[track_caller]
fn expect(guest: &RawGuest, what: &str) {
    guest.host.run();
    let violations = guest.host.take_violations();
    assert!(
        violations.iter().any(|violation| violation.contains(what)),
        "no {what:?} in {violations:?}"
    );
}

#[test]
fn each_mistake_in_the_order_of_messages_is_noticed() {
    let (mut guest, channel) = connected(Personality::HyperV);
    guest.post(&[3, 0]);
    expect(&guest, "a second REQUESTOFFERS");
    guest.post(&[3, 1]);
    expect(&guest, "M13");
    guest.post(&[5, 0, channel]);
    expect(&guest, "OPENCHANNEL of 12 bytes");
    guest.post(&[99, 0]);
    expect(&guest, "type 99");
    guest.post(&[7, 0, channel]);
    expect(&guest, "closed, but not open");
    guest.post(&[13, 0, channel]);
    expect(&guest, "was not rescinded");
    guest.post(&[13, 0, 55]);
    expect(&guest, "never offered");
    guest.post(&[11, 0, channel, 9]);
    expect(&guest, "teardown of GPADL 9, which does not exist");
    guest.post(&[9, 0, 0, 9, 1, 0]);
    expect(&guest, "which was not begun");
    assert_eq!(guest.post_at(0, 1, &[3, 0, 0, 0, 0, 0, 0, 0]), 0);
    expect(&guest, "posted to connection 1, the version response named 4");
    guest.take_all();
    guest.host.rescind(channel);
    assert_eq!(guest.take_words(), [2, 0, channel]);
    guest.post(&[13, 0, channel]);
    guest.host.assert_no_violations();
    guest.post(&[13, 0, channel]);
    expect(&guest, "a second time");
    guest.contact(0x2_0004, 1).unwrap();
    guest.post(&[16, 0]);
    expect(&guest, "UNLOAD on version 0x20004, which has none");
}

#[test]
fn each_mistake_in_a_gpadl_is_noticed() {
    let (guest, channel) = connected(Personality::HyperV);
    let pages = SharedPages::allocate(guest.platform, 30).unwrap();
    guest.gpadl(channel, 5, &pages);
    assert_eq!(guest.take_words(), [10, 0, channel, 5, 0]);
    assert_eq!(guest.host.gpadl(5).unwrap()[0].page_numbers.len(), 30);
    guest.post(&[9, 0, 0, 5, 1, 0]);
    expect(&guest, "an extra body");
    guest.gpadl(channel, 5, &pages);
    expect(&guest, "G7");
    assert_eq!(guest.take_words()[..4], [10, 0, channel, 5]);
    guest.take_all();
    // Two pages named, three given.
    guest.post(&[8, 0, channel, 6, 24 | 1 << 16, 8192, 0, 1, 0, 2, 0, 3, 0]);
    expect(&guest, "do not fit");
    // A page that is no memory.
    guest.post(&[8, 0, channel, 7, 16 | 1 << 16, 4096, 0, 1, 0]);
    expect(&guest, "page 0x1 is not guest memory");
    drop(pages);
    expect(&guest, "released while the host has it as GPADL 5");
}

#[test]
fn gpadls_of_all_sizes_are_put_together() {
    let all = [1, 27, 55, 25, 26, 54, 82];
    for &page_count in &all[..if cfg!(miri) { 3 } else { 7 }] {
        let (guest, channel) = connected(Personality::Qemu);
        let pages = SharedPages::allocate(guest.platform, page_count).unwrap();
        guest.gpadl(channel, 3, &pages);
        assert_eq!(guest.take_words(), [10, 0, channel, 3, 0]);
        let ranges = guest.host.gpadl(3).unwrap();
        let expected: Vec<u64> = (0..page_count).map(|index| pages.pfn(index).unwrap().get()).collect();
        assert_eq!(ranges[0].page_numbers, expected);
        guest.post(&[11, 0, channel, 3]);
        assert_eq!(guest.take_words(), [12, 0, 3]);
        guest.host.assert_no_violations();
    }
}

#[test]
fn several_ranges_with_offsets_are_for_hyper_v_only() {
    for personality in [Personality::HyperV, Personality::Qemu] {
        let (guest, channel) = connected(personality);
        let pages = SharedPages::allocate(guest.platform, 3).unwrap();
        let numbers = [0, 1, 2].map(|index| u32::try_from(pages.pfn(index).unwrap().get()).unwrap());
        let [a, b, c] = numbers;
        // 100 bytes at 4050 take two pages; 10 bytes at 8 take one.
        guest.post(&[8, 0, channel, 4, 40 | 2 << 16, 100, 4050, a, 0, b, 0, 10, 8, c, 0]);
        guest.host.run();
        if personality == Personality::Qemu {
            assert!(guest.take().is_none(), "dropped without an answer");
            expect(&guest, "which is all that QEMU takes");
        } else {
            assert_eq!(guest.take_words(), [10, 0, channel, 4, 0]);
            let ranges = guest.host.gpadl(4).unwrap();
            assert_eq!(
                (ranges[0].len_bytes, ranges[0].offset, ranges[0].page_numbers.len()),
                (100, 4050, 2)
            );
            pages.write_at(4090, b"0123456789").unwrap();
            assert_eq!(
                &guest.host.channel(channel).read_range(&ranges[0])[40..50],
                b"0123456789"
            );
        }
    }
}

#[test]
fn each_mistake_in_an_open_is_noticed() {
    let (guest, channel) = connected(Personality::HyperV);
    let other = guest.host.offer(Offer::new(
        "0e0b6031-5213-4934-818b-38d90ced39db",
        "b6650ff7-33bc-4840-8048-e0676786f393",
    ));
    guest.take_all();
    let rings = SharedPages::allocate(guest.platform, 8).unwrap();
    guest.gpadl(channel, 5, &rings);
    guest.take_all();
    let open = |channel, gpadl, downstream| guest.post(&RawGuest::open_words(channel, 1, gpadl, downstream));
    open(channel, 6, 4);
    expect(&guest, "GPADL 6 does not exist");
    assert_ne!(guest.take_words()[4], 0);
    open(other, 5, 4);
    expect(&guest, "belongs to channel");
    open(channel, 5, 1);
    expect(&guest, "rings of 1 and 7 pages");
    open(channel, 5, 7);
    expect(&guest, "rings of 7 and 1 pages");
    rings.write_at(8, &[1]).unwrap();
    open(channel, 5, 4);
    expect(&guest, "the mask of a new ring");
    rings.write_at(8, &[0]).unwrap();
    // Under Miri the model looks at the beginning only.
    let unused = 4 * 4096 + if cfg!(miri) { 200 } else { 3000 };
    rings.write_at(unused, &[1]).unwrap();
    open(channel, 5, 4);
    expect(&guest, "is not zeroed");
    rings.write_at(unused, &[0]).unwrap();
    guest.take_all();
    open(channel, 5, 4);
    assert_eq!(guest.take_words(), [6, 0, channel, 1, 0]);
    open(channel, 5, 4);
    expect(&guest, "a second time");
    guest.post(&[11, 0, channel, 5]);
    expect(&guest, "while channel 1 is open with it (G3)");
    guest.post(&[16, 0]);
    expect(&guest, "UNLOAD with channels [1] open");
}

#[test]
fn a_failed_open_leaves_the_channel_shut_on_openvmm() {
    for (personality, answers) in [(Personality::OpenVmm, 1), (Personality::HyperV, 2)] {
        let (guest, channel) = connected(personality);
        let rings = SharedPages::allocate(guest.platform, 4).unwrap();
        guest.post(&RawGuest::open_words(channel, 1, 5, 2));
        guest.gpadl(channel, 5, &rings);
        guest.post(&RawGuest::open_words(channel, 2, 5, 2));
        let opened = guest.take_all().into_iter().filter(|message| message[0] == 6).count();
        assert_eq!(opened, answers);
        core::mem::forget(rings);
    }
}

#[test]
fn each_mistake_in_a_ring_stops_the_channel() {
    let packets: [(&str, &[u8]); 7] = [
        ("a packet of type 8", &[8, 0, 2, 0, 2, 0, 0, 0]),
        ("flags 0x2", &[6, 0, 2, 0, 2, 0, 2, 0]),
        ("data at 8", &[6, 0, 1, 0, 2, 0, 0, 0]),
        ("data at 24", &[6, 0, 3, 0, 2, 0, 0, 0]),
        ("a packet of 24 bytes", &[6, 0, 2, 0, 3, 0, 0, 0]),
        ("the trailer is", &[6, 0, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("GPA-direct", &[9, 0, 2, 0, 2, 0, 0, 0]),
    ];
    for (what, packet) in packets {
        let (guest, channel) = connected(Personality::HyperV);
        let rings = SharedPages::allocate(guest.platform, 4).unwrap();
        guest.gpadl(channel, 5, &rings);
        guest.post(&RawGuest::open_words(channel, 1, 5, 2));
        guest.take_all();
        rings.write_at(4096, packet).unwrap();
        rings.write_at(0, &[24]).unwrap();
        assert_eq!(guest.host.channel(channel).receive(), None);
        expect(&guest, what);
        // Nothing more is read, and nothing is said.
        assert_eq!(guest.host.channel(channel).receive(), None);
        guest.host.assert_no_violations();
        core::mem::forget(rings);
    }
}

#[test]
fn a_guest_that_touches_the_hosts_words_in_a_ring_is_noticed() {
    for (offset, value, what) in [
        (4, 8, "changed the read index"),
        (8, 1, "changed the mask"),
        (0, 12, "write index is 0xc"),
    ] {
        let (guest, channel) = connected(Personality::HyperV);
        let rings = SharedPages::allocate(guest.platform, 4).unwrap();
        guest.gpadl(channel, 5, &rings);
        guest.post(&RawGuest::open_words(channel, 1, 5, 2));
        guest.take_all();
        rings.write_at(offset, &[value]).unwrap();
        assert_eq!(guest.host.channel(channel).receive(), None);
        expect(&guest, what);
        core::mem::forget(rings);
    }
}

#[test]
fn registers_in_the_wrong_order_are_noticed() {
    let guest = RawGuest::new(Config::new(Personality::OpenVmm));
    guest.wrmsr(0x4000_0083, 0);
    expect(&guest, "SIMP goes off while SINT 2 is not masked (B7)");
    guest.wrmsr(0x4000_0093, 0x2_0031);
    expect(&guest, "AutoEOI is deprecated");
    guest.wrmsr(0x4000_0094, 3);
    expect(&guest, "vector 0x3 faults");
    guest.wrmsr(0x4000_0082, 0x1234_5001);
    expect(&guest, "SIEFP enabled at 0x12345000, which is not guest memory");
    guest.wrmsr(0x4000_0000, 0);
    expect(&guest, "before the hypercall page");
    guest.wrmsr(0x4000_0001, 0x1001);
    expect(&guest, "before the guest's id is set");
    guest.wrmsr(0x4000_5555, 0);
    expect(&guest, "register 0x40005555 faults");
    assert_eq!(guest.rdmsr(0x4000_5555), 0);
    expect(&guest, "a read of register 0x40005555 faults");
}

#[test]
fn a_contact_that_no_host_answers_gets_no_answer() {
    let guest = RawGuest::new(Config::new(Personality::OpenVmm));
    let contact = |words: &[u32]| {
        assert_eq!(guest.post_at(0, 4, &super::guest::bytes(words)), 0);
        guest.take().map(|answer| words_of(&answer))
    };
    assert_eq!(contact(&[14, 0, 0x5_0000, 9, 2, 0, 0, 0, 0, 0]), None);
    expect(&guest, "virtual processor 9");
    assert_eq!(contact(&[14, 0, 0x5_0000, 0, 0x0102, 0, 0, 0, 0, 0]), None);
    expect(&guest, "trust level 1");
    assert_eq!(contact(&[14, 0, 0x5_0000, 0, 2]), None);
    expect(&guest, "INITIATE_CONTACT of 20 bytes");
    // Only one monitor page, or an unknown version: a refusal.
    let page = SharedPages::allocate(guest.platform, 1).unwrap();
    let gpa = page.gpa().unwrap().get();
    let [low, high] = [
        u32::try_from(gpa & 0xffff_ffff).unwrap(),
        u32::try_from(gpa >> 32).unwrap(),
    ];
    assert_eq!(contact(&[14, 0, 0x5_0000, 0, 2, 0, low, high, 0, 0]).unwrap()[2], 0);
    assert_eq!(contact(&[14, 0, 0x5_0009, 0, 2, 0, 0, 0, 0, 0]).unwrap()[2], 0);
    guest.host.assert_no_violations();
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    words(bytes)
}
