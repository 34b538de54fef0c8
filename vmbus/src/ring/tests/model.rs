//! A ring against a queue: any order of operations, the same packets.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::support::{Peer, padded_pattern, pattern};
use crate::ring::{Header, ReadError, Room, WriteError};

#[derive(Clone, Debug)]
enum Step {
    Send { len: usize },
    Reserve { len: usize, cut: usize, finish: bool },
    Revert,
    Commit,
    Read { count: usize, publish: bool },
    Skip,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop_oneof![0..80_usize, 0..5000_usize].prop_map(|len| Step::Send { len }),
        3 => (0..700_usize, any::<prop::sample::Index>(), prop::bool::weighted(0.8))
            .prop_map(|(len, cut, finish)| Step::Reserve { len, cut: cut.index(len + 1), finish }),
        1 => Just(Step::Revert),
        4 => Just(Step::Commit),
        5 => (1..8_usize, any::<bool>()).prop_map(|(count, publish)| Step::Read { count, publish }),
        1 => Just(Step::Skip),
        1 => Just(Step::Wait),
    ]
}

fn run(pages: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let peer = Peer::new(pages);
    let (mut producer, mut consumer) = peer.pair::<640>();
    let capacity = pages * 4096 - 8;
    // Staged, visible, and read but not given back.
    let (mut staged, mut visible, mut kept) = (VecDeque::new(), VecDeque::new(), 0);
    let size = |len: usize| len.next_multiple_of(8) + 24;
    let (mut next_id, mut waits) = (0_u64, None::<usize>);
    for step in steps {
        let used =
            |staged: &VecDeque<(u64, usize)>| -> usize { staged.iter().map(|&(_, len)| size(len)).sum::<usize>() };
        let free = capacity - used(&staged) - used(&visible) - kept;
        match step {
            Step::Send { len } => {
                let sent = producer.send(Header::in_band_with_completion(next_id), &pattern(next_id, len));
                if size(len) > capacity {
                    let refused = matches!(sent, Err(WriteError::TooLarge { .. }));
                    prop_assert!(refused);
                } else if size(len) > free {
                    prop_assert_eq!(
                        sent,
                        Err(WriteError::Full {
                            needed: u32::try_from(size(len)).unwrap()
                        })
                    );
                } else {
                    prop_assert_eq!(sent, Ok(()));
                    staged.push_back((next_id, len));
                    next_id += 1;
                }
            }
            Step::Reserve { len, cut, finish } => {
                if let Ok(mut reservation) = producer.reserve(Header::in_band_with_completion(next_id), 0, len) {
                    prop_assert!(size(len) <= free);
                    let bytes = pattern(next_id, len);
                    reservation.write(&bytes[..cut]).unwrap();
                    reservation.write(&bytes[cut..]).unwrap();
                    if finish {
                        reservation.finish();
                        staged.push_back((next_id, len));
                        next_id += 1;
                    }
                } else {
                    prop_assert!(size(len) > free);
                }
            }
            Step::Revert => {
                producer.revert();
                staged.clear();
            }
            Step::Commit => {
                let was_empty = visible.is_empty() && kept == 0;
                let signal = producer.commit();
                prop_assert_eq!(signal.is_needed(), was_empty && !staged.is_empty());
                visible.append(&mut staged);
            }
            Step::Read { count, publish } => {
                for _ in 0..count {
                    match (consumer.next(), visible.pop_front()) {
                        (Ok(packet), Some((id, len))) => {
                            prop_assert_eq!(packet.transaction_id(), id);
                            prop_assert_eq!(packet.payload(), padded_pattern(id, len));
                            kept += size(len);
                        }
                        (Err(ReadError::Empty), None) => {}
                        (read, expected) => prop_assert!(false, "{read:?} for {expected:?}"),
                    }
                }
                if publish {
                    let crossed = waits.is_some_and(|waits| {
                        let before = capacity - used(&visible) - kept;
                        before < waits && before + kept >= waits
                    });
                    // Staged packets are not visible to the reader.
                    prop_assert_eq!(consumer.commit().is_needed(), crossed);
                    kept = 0;
                }
            }
            Step::Skip => match (consumer.peek(), visible.pop_front()) {
                (Ok(packet), Some((id, len))) => {
                    prop_assert_eq!(packet.transaction_id(), id);
                    packet.skip();
                    kept += size(len);
                }
                (Err(ReadError::Empty), None) => {}
                (read, expected) => prop_assert!(false, "{read:?} for {expected:?}"),
            },
            Step::Wait => {
                let needed = 3000;
                let room = producer.wait_for_room(needed).unwrap();
                prop_assert_eq!(room == Room::Available, free >= 3000);
                waits = (room == Room::Awaited).then_some(3000);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_is_a_queue(
        pages in 1..4_usize,
        steps in proptest::collection::vec(step(), 1..if cfg!(miri) { 40 } else { 300 }),
    ) {
        run(pages, steps)?;
    }
}
