//! A ring whose writer is hostile, under four readers at a time: copied out and looked at in place, mapped once and twice. What
//! one of them makes of it, all do; and once the ring is broken it stays so.

use arbitrary::Arbitrary;
use vmbus::ring::{Consumer, Corruption, External, Packet, Peek, ReadError, SharedRing};

use crate::arena::{Arena, View};
use crate::input::input;
use crate::observe::note;
use crate::wire::{Deed, FEATURES, Peer, READ_INDEX, WRITE_INDEX, Wire};

#[derive(Arbitrary, Debug)]
struct Input {
    two_pages: bool,
    /// Where the ring stands at first, in words; a reader that attaches to something impossible says so.
    start: Result<u16, u32>,
    features: bool,
    /// The room for a packet, in words.
    slot: u16,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Peer(Deed),
    /// Two in a row: the ring of one packet is the least interesting.
    Peers(Deed, Deed),
    Take,
    /// Looks in place, and the memory changes before it is taken.
    Peek(Option<Deed>, Then),
    Commit,
    Mask,
    Unmask,
    HasPackets,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Then {
    Take,
    Skip,
    Load { offset: u16, len: u8 },
}

type Reader = Consumer<SharedRing, Vec<u64>>;

/// What a reader made of a packet.
#[derive(Debug, PartialEq, Eq, Default)]
struct Seen {
    what: Option<(u16, u64, bool)>,
    payload: Vec<u8>,
    error: Option<ReadError>,
    external: u64,
}

impl Seen {
    fn of(result: Result<Packet<'_>, ReadError>) -> Self {
        match result {
            Ok(packet) => Self {
                what: Some((
                    packet.packet_type().0,
                    packet.transaction_id(),
                    packet.is_completion_requested(),
                )),
                payload: packet.payload().to_vec(),
                error: None,
                external: described(&packet),
            },
            Err(error) => Self {
                error: Some(error),
                ..Self::default()
            },
        }
    }
}

/// Goes through everything that a packet describes. Returns a sum over it.
fn described(packet: &Packet<'_>) -> u64 {
    let mut sum = 0_u64;
    match packet.external() {
        External::None => {}
        External::GpaDirect(ranges) => {
            let (mut count, mut total) = (0, 0_u64);
            for range in ranges.iter() {
                let end = u64::from(range.byte_offset) + u64::from(range.byte_count);
                assert!(range.byte_offset < 4096 && range.byte_count > 0);
                assert_eq!(range.pfns.len() as u64, end.div_ceil(4096));
                count += 1;
                total += u64::from(range.byte_count);
                sum = range.pfns.iter().fold(sum, |sum, pfn| sum.rotate_left(7) ^ pfn.get());
            }
            assert_eq!((count, total), (ranges.count(), ranges.total_bytes()));
            assert!(count > 0);
            sum ^= total;
        }
        External::TransferPages(pages) => {
            for buffer_len in [0, 0x1_0000, u64::MAX] {
                match pages.within(buffer_len) {
                    Ok(ranges) => {
                        for (offset, len) in ranges {
                            assert!(u64::from(offset) + u64::from(len) <= buffer_len);
                            sum = sum.rotate_left(9) ^ u64::from(offset) ^ u64::from(len) << 32;
                        }
                    }
                    Err(corruption) => note("Corruption", &corruption),
                }
            }
            sum ^= u64::from(pages.set_id());
        }
    }
    sum
}

/// Arbitrary ring contents under all readers.
pub fn ring_reader(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    let arena = Arena::get(input.two_pages);
    let size = arena.size();
    let start = match input.start {
        Ok(words) => u32::from(words) * 8 % size,
        Err(raw) => raw,
    };
    arena.set(READ_INDEX, start);
    arena.set(WRITE_INDEX, start);
    arena.set(FEATURES, u32::from(input.features));
    let slot = usize::from(input.slot) % 1100;

    let attach = |view| Consumer::attach(arena.ring(view), vec![0; slot]);
    let (Ok(first), Ok(second), Ok(third), Ok(fourth)) = (
        attach(View::Once),
        attach(View::Twice),
        attach(View::Once),
        attach(View::Twice),
    ) else {
        assert!(
            start >= size || !start.is_multiple_of(8),
            "refused a ring at {start:#x}"
        );
        if let Err(error) = attach(View::Once) {
            note("InvalidRing", &error);
        }
        return;
    };
    let mut readers = [first, second, third, fourth];
    let mut peer = Peer {
        write: start,
        read: start,
    };
    let mut broken = None;
    for step in &input.steps {
        act(&mut readers, &arena, &mut peer, step, slot);
        check(&readers, &arena, &mut broken);
    }
    arena.check();
}

fn act(readers: &mut [Reader; 4], arena: &Arena, peer: &mut Peer, step: &Step, slot: usize) {
    match step {
        Step::Peer(deed) => peer.act(arena, deed),
        Step::Peers(one, two) => {
            peer.act(arena, one);
            peer.act(arena, two);
        }
        Step::Take => {
            let mut own = vec![0; slot];
            let [first, second, third, fourth] = readers;
            let seen = Seen::of(first.next());
            assert_eq!(seen, Seen::of(second.next()), "mapped once and twice");
            assert_eq!(seen, Seen::of(third.next_into(&mut own)), "into the caller's memory");
            let looked = fourth.peek().and_then(|peek| peek.take_into(&mut own));
            assert_eq!(seen, Seen::of(looked), "in place");
            if let Some(ReadError::Corrupt(corruption)) = &seen.error {
                note("Corruption", corruption);
            }
        }
        Step::Peek(deed, then) => peek(readers, arena, peer, deed.as_ref(), *then, slot),
        Step::Commit => {
            let signals = readers.each_mut().map(Consumer::commit);
            assert!(signals.iter().all(|signal| *signal == signals[0]));
        }
        Step::Mask => readers.iter_mut().for_each(Consumer::mask),
        Step::Unmask => {
            let results = readers.each_mut().map(Consumer::unmask);
            assert!(results.iter().all(|result| *result == results[0]));
        }
        Step::HasPackets => {
            let results = readers.each_mut().map(Consumer::has_packets);
            assert!(results.iter().all(|result| *result == results[0]));
        }
    }
}

fn peek(readers: &mut [Reader; 4], arena: &Arena, peer: &mut Peer, deed: Option<&Deed>, then: Then, slot: usize) {
    let peeks = readers.each_mut().map(Consumer::peek);
    if let Some(deed) = deed {
        // Under their feet.
        peer.act(arena, deed);
    }
    let mut own = vec![0; slot];
    let mut first: Option<Seen> = None;
    for peek in peeks {
        let seen = match peek {
            Ok(peek) => finish(peek, then, &mut own),
            Err(error) => Seen::of(Err(error)),
        };
        if let Some(ReadError::Corrupt(corruption)) = &seen.error {
            note("Corruption", corruption);
        }
        match &first {
            Some(first) => assert_eq!(*first, seen, "all readers see the same"),
            None => first = Some(seen),
        }
    }
}

fn finish(peek: Peek<'_, SharedRing>, then: Then, own: &mut [u64]) -> Seen {
    let what = Some((
        peek.packet_type().0,
        peek.transaction_id(),
        peek.is_completion_requested(),
    ));
    let (payload_len, words) = (peek.payload_len() as usize, peek.words());
    assert!(payload_len <= words * 8);
    match then {
        Then::Take => {
            let taken = peek.take_into(own);
            if let Ok(packet) = &taken {
                // What was checked is what is used, whatever was written meanwhile.
                assert_eq!(packet.payload().len(), payload_len);
            }
            Seen::of(taken)
        }
        Then::Skip => {
            peek.skip();
            Seen {
                what,
                ..Seen::default()
            }
        }
        Then::Load { offset, len } => {
            let mut bytes = vec![0; usize::from(len)];
            let is_inside = peek.load_payload(u32::from(offset), &mut bytes);
            assert_eq!(is_inside, usize::from(offset) + usize::from(len) <= payload_len);
            Seen {
                what,
                payload: bytes,
                ..Seen::default()
            }
        }
    }
}

fn check(readers: &[Reader; 4], arena: &Arena, broken: &mut Option<Corruption>) {
    let read = arena.get(READ_INDEX);
    let _ = read;
    for reader in readers {
        assert_eq!(reader.fault(), readers[0].fault());
    }
    if let Some(fault) = readers[0].fault() {
        note("Corruption", &fault);
        assert_eq!(*broken.get_or_insert(fault), fault, "the first fault stays");
    } else {
        assert_eq!(*broken, None, "a broken ring stays broken");
    }
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
