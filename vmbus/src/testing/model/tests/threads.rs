//! Several threads of a guest, each on its processor.

use core::sync::atomic::{AtomicU32, Ordering};

use super::RawGuest;
use super::guest::words;
use super::protocol::offer;
use crate::memory::SharedPages;
use crate::testing::model::{Config, Echo, Personality};
use crate::testing::wait_until;

const PACKETS: u32 = if cfg!(miri) { 5 } else { 300 };

#[test]
fn threads_on_channels_of_their_own_do_not_meet() {
    let mut guest = RawGuest::new(Config::with_processors(Personality::HyperV, 2));
    guest.contact(0x5_0003, 4).unwrap();
    let channels = [0; 2].map(|_| guest.host.offer_with(offer(), Echo));
    guest.post(&[3, 0]);
    let offers = guest.take_all();
    let mut ends = channels.iter().map(|channel| {
        let rings = SharedPages::allocate(guest.platform, 4).unwrap();
        guest.gpadl(*channel, 50 + channel, &rings);
        guest.post(&RawGuest::open_words(*channel, 1, 50 + channel, 2));
        assert_eq!(words(guest.take_all().last().unwrap())[4], 0);
        let offer = offers
            .iter()
            .map(|offer| words(offer))
            .find(|offer| offer[46] == *channel)
            .unwrap();
        (rings, offer[48])
    });
    let ends = [ends.next().unwrap(), ends.next().unwrap()];
    let guest = &guest;
    std::thread::scope(|scope| {
        for (index, (rings, connection)) in ends.iter().enumerate() {
            scope.spawn(move || {
                let _here = guest.platform.on_processor(u32::try_from(index).unwrap());
                for number in 0..PACKETS {
                    echo(guest, rings, *connection, number);
                }
            });
        }
    });
    guest.host.assert_no_violations();
    guest.platform.assert_no_faults();
    for channel in channels {
        let counters = guest.host.channel(channel).counters();
        assert_eq!(
            (counters.received, counters.sent),
            (u64::from(PACKETS), u64::from(PACKETS))
        );
    }
    core::mem::forget(ends);
}

/// Sends a packet of 32 bytes, its trailer included, and waits for the one that answers it.
fn echo(guest: &RawGuest, rings: &SharedPages, connection: u32, number: u32) {
    let at = number * 32 % 4096;
    let packet = [6 | 2 << 16, 3 | 1 << 16, number, 0, !number, 0, 0, at];
    rings
        .write_at(4096 + at as usize, &super::guest::bytes(&packet))
        .unwrap();
    let index: &AtomicU32 = rings.word(0).unwrap();
    index.store((at + 32) % 4096, Ordering::SeqCst);
    assert_eq!(guest.signal(connection), 0);
    let index: &AtomicU32 = rings.word(2 * 4096).unwrap();
    // The host may be at it on the other thread.
    wait_until("the echo", || index.load(Ordering::SeqCst) != at);
    let mut answer = [0; 24];
    rings.read_at(3 * 4096 + at as usize, &mut answer).unwrap();
    assert_eq!(words(&answer), [11 | 2 << 16, 3, number, 0, !number, 0]);
    let index: &AtomicU32 = rings.word(2 * 4096 + 4).unwrap();
    index.store((at + 32) % 4096, Ordering::SeqCst);
}
