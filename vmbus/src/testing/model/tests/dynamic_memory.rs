//! The dynamic-memory device, spoken to in literal bytes.

use std::vec::Vec;

use super::RawGuest;
use super::guest::{bytes, words};
use crate::memory::SharedPages;
use crate::testing::model::dynamic_memory::{Config as DeviceConfig, Control, DynamicMemory, Phase};
use crate::testing::model::{Config, Personality};

/// A guest with the device open: rings of 3 data pages each.
struct Session {
    guest: RawGuest,
    control: Control,
    rings: SharedPages,
    connection: u32,
    write: usize,
    read: usize,
}

const RING: usize = 3 * 4096;

impl Session {
    fn new(device: DeviceConfig) -> Self {
        let mut guest = RawGuest::new(Config::new(Personality::HyperV));
        let (device, control) = DynamicMemory::new(device);
        let channel = guest.host.offer_with(DynamicMemory::offer(), device);
        guest.contact(0x5_0003, 4).unwrap();
        guest.post(&[3, 0]);
        let connection = words(&guest.take().unwrap())[48];
        guest.take_all();
        let rings = SharedPages::allocate(guest.platform, 8).unwrap();
        guest.gpadl(channel, 1, &rings);
        guest.post(&RawGuest::open_words(channel, 2, 1, 4));
        assert_eq!(guest.take_all().last().unwrap()[16..20], [0; 4]);
        Self {
            guest,
            control,
            rings,
            connection,
            write: 0,
            read: 0,
        }
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            self.rings.write_at(4096 + (at + index) % RING, &[*byte]).unwrap();
        }
    }

    fn send(&mut self, message: &[u32]) {
        let message = bytes(message);
        let len = 16 + message.len().next_multiple_of(8);
        let units = u8::try_from(len / 8).unwrap();
        let mut packet = [6, 0, 2, 0, units, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
        packet.extend_from_slice(&message);
        packet.resize(len, 0);
        packet.extend_from_slice(&((self.write as u64) << 32).to_le_bytes());
        self.put(self.write, &packet);
        self.write = (self.write + packet.len()) % RING;
        self.rings
            .write_at(0, &u32::try_from(self.write).unwrap().to_le_bytes())
            .unwrap();
        assert_eq!(self.guest.signal(self.connection), 0);
    }

    fn receive(&mut self) -> Option<Vec<u32>> {
        self.guest.host.run();
        let mut index = [0; 4];
        self.rings.read_at(4 * 4096, &mut index).unwrap();
        if u32::from_le_bytes(index) as usize == self.read {
            return None;
        }
        let byte = |at: usize| {
            let mut byte = [0];
            self.rings
                .read_at(5 * 4096 + (self.read + at) % RING, &mut byte)
                .unwrap();
            byte[0]
        };
        assert_eq!([byte(0), byte(2)], [6, 2]);
        let len = usize::from(byte(4)) * 8;
        let message: Vec<u8> = (16..len).map(byte).collect();
        self.read = (self.read + len + 8) % RING;
        self.rings
            .write_at(4 * 4096 + 4, &u32::try_from(self.read).unwrap().to_le_bytes())
            .unwrap();
        Some(words(&message))
    }

    fn agree(&mut self) {
        self.send(&[1 | 16 << 16, 1, 0x2_0000, 0]);
        assert_eq!(self.receive().unwrap()[2..], [1, 0]);
        self.send(&[3 | 32 << 16, 2, 3, 0, 0x100, 0, 0x7fff, 0]);
        assert_eq!(self.receive().unwrap()[2..], [1, 0]);
        self.guest.platform.advance(core::time::Duration::from_secs(50));
    }
}

const fn range(first: u32, count: u32) -> [u32; 2] {
    [first, count << 8]
}

#[test]
fn versions_go_down_until_one_is_accepted() {
    let mut session = Session::new(DeviceConfig {
        max_version: 3,
        ..DeviceConfig::default()
    });
    for (version, last, accepted) in [(0x2_0000, 0, 0), (0x1_0000, 0, 0), (3, 1, 1)] {
        session.send(&[1 | 16 << 16, 1, version, last]);
        let answer = session.receive().unwrap();
        assert_eq!((answer[0], &answer[2..]), (2 | 16 << 16, &[accepted, 0][..]));
    }
    assert_eq!(session.control.version(), Some(3));
    assert_eq!(session.control.asked_versions(), [0x2_0000, 0x1_0000, 3]);
    session.guest.host.assert_no_violations();
}

#[test]
fn a_balloon_goes_up_in_parts_and_down_again() {
    let mut session = Session::new(DeviceConfig::default());
    session.agree();
    session.send(&[5 | 48 << 16, 3, 1000, 0, 24, 0, 0, 0, 0, 0, 0, 0]);
    session.control.balloon(100);
    assert_eq!(session.receive().unwrap()[2..], [100, 0]);
    let [a, b] = range(0x500, 40);
    session.send(&[7 | 24 << 16, 4, 0, 1 << 1 | 1, a, b]);
    assert_eq!(session.receive(), None, "more follow");
    let [a, b] = range(0x600, 20);
    session.send(&[7 | 24 << 16, 4, 0, 1 << 1, a, b]);
    assert_eq!(session.receive().unwrap()[2..], [40, 0], "the rest is asked for again");
    session.send(&[7 | 16 << 16, 5, 0, 0]);
    assert_eq!(session.control.phase(), Phase::Idle);
    assert_eq!(session.control.ballooned_ranges(), [(0x500, 40), (0x600, 20)]);

    session.control.unballoon(50);
    let request = session.receive().unwrap();
    assert_eq!(
        (request[0], &request[2..]),
        (8 | 32 << 16, &[0, 2, 0x500, 40 << 8, 0x600, 10 << 8][..])
    );
    session.send(&[9 | 8 << 16, 6]);
    assert_eq!(session.control.ballooned_ranges(), [(0x60a, 10)]);
    assert_eq!(session.control.responses(), (3, 1));
    assert_eq!(session.control.statuses()[0].available, 1000);

    session
        .control
        .hot_add((0x80_0000, 0x8000), Some((0x80_0000, 0x1_0000)));
    assert_eq!(
        session.receive().unwrap()[2..],
        [0x80_0000, 0x8000 << 8, 0x80_0000, 0x1_0000 << 8]
    );
    session.send(&[11 | 16 << 16, 7, 0x8000, 1]);
    assert_eq!(session.control.hot_adds(), [(0x8000, 1)]);
    session.guest.host.assert_no_violations();
}

#[test]
fn pages_given_twice_and_answers_that_nobody_asked_for_are_violations() {
    let mut session = Session::new(DeviceConfig::default());
    session.send(&[9 | 8 << 16, 6]);
    assert!(session.guest.host.take_violations()[0].contains("type 9 while Version"));
    session.agree();
    session.control.balloon(100);
    session.receive().unwrap();
    let [a, b] = range(0x500, 40);
    let [c, d] = range(0x527, 1);
    session.send(&[7 | 32 << 16, 4, 0, 2 << 1, a, b, c, d]);
    assert!(session.guest.host.take_violations()[0].contains("given twice"));
}

#[test]
fn nothing_is_asked_for_in_the_first_fifty_seconds() {
    let mut session = Session::new(DeviceConfig::default());
    session.agree();
    let session_control = session.control.clone();
    session_control.balloon(1);
    assert!(session.receive().is_some(), "after them");
    let mut early = Session::new(DeviceConfig::default());
    early.send(&[1 | 16 << 16, 1, 0x2_0000, 0]);
    early.receive().unwrap();
    early.send(&[3 | 32 << 16, 2, 3, 0, 0x100, 0, 0x7fff, 0]);
    early.receive().unwrap();
    early.control.balloon(1);
    assert_eq!(early.receive(), None);
    assert_eq!(early.control.phase(), Phase::Resting);
}
