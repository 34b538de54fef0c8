//! The copies: every length, at every place, once and twice mapped, by every way there is.

#![expect(unsafe_code, reason = "the copies under test work on raw pointers")]

use core::ptr::NonNull;

use super::support::{Peer, pattern};
use crate::ring::copy;
use crate::ring::memory::Words;
use crate::ring::{InvalidRing, SharedRing};

/// Lengths around all thresholds.
fn lengths() -> Vec<usize> {
    if cfg!(miri) {
        // Miri knows only words, and is slow.
        return vec![0, 1, 7, 8, 9, 16, 61, 72, 250];
    }
    let near = [256, 512, 1024, 2048, 3072, 4096]
        .into_iter()
        .flat_map(|n| n - 9..=(n + 9).min(4096));
    (0..200).chain(near).collect()
}

#[test]
fn what_is_stored_is_loaded_at_every_place() {
    let peer = Peer::new(1);
    let ring = peer.ring();
    for (seed, len) in (0..).zip(lengths()) {
        let bytes = pattern(seed, len);
        // Aligned, padded: in the middle, up to the end, across it, behind it.
        for at in [0, 8, 2048, 4096 - 8, 4096 - 16, 4096 - 64, 4096, 4096 + 8, 8192 - 8] {
            ring.store_words(at.max(8) - 8, [u64::MAX]);
            if len < 4000 {
                ring.store_words(
                    (at + u32::try_from(len.next_multiple_of(8)).unwrap()) % 4096,
                    [u64::MAX],
                );
            }
            ring.store_padded(at, &bytes);
            let mut words = vec![0; len.div_ceil(8)];
            ring.load(at, &mut words);
            let mut loaded: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert!(loaded.drain(len..).all(|byte| byte == 0), "{len} at {at}: padding");
            assert_eq!(loaded, bytes, "{len} at {at}");
            if len < 4000 {
                let [behind, _] = ring.load_pair((at + u32::try_from(len.next_multiple_of(8)).unwrap()) % 4096);
                assert_eq!(behind, u64::MAX, "{len} at {at}: nothing behind it was touched");
            }
        }
        // Anywhere.
        for at in [0, 1, 4095, 4096 - 13, 4097, 8191] {
            ring.store_bytes(at, &bytes);
            let mut loaded = vec![0; len];
            ring.load_bytes(at, &mut loaded);
            assert_eq!(loaded, bytes, "{len} at {at}");
        }
    }
}

#[test]
fn words_wrap_between_any_two() {
    let peer = Peer::new(1);
    let ring = peer.ring();
    for at in (4096 - 32..4096 + 32).step_by(8) {
        ring.store_words(at, [1, 2, 3]);
        assert_eq!([ring.load_pair(at), ring.load_pair(at + 8)], [[1, 2], [2, 3]]);
        assert_eq!(peer.bytes(at, 24), [1_u64, 2, 3].map(u64::to_le_bytes).concat());
    }
}

#[test]
fn every_way_of_copying_is_the_same() {
    let step = if cfg!(miri) { 3 } else { 1 };
    for len in lengths() {
        let from: Vec<u64> = (0..=len as u64 / 8 + 1)
            .map(|n| n.wrapping_mul(0x0101_0203_0507_1113))
            .collect();
        let bytes: Vec<u8> = from.iter().flat_map(|word| word.to_le_bytes()).collect();
        type Copy = unsafe fn(*mut u8, *const u8, usize);
        #[cfg_attr(miri, expect(unused_mut, reason = "miri knows no assembly"))]
        let mut ways: Vec<(&str, Copy, bool)> = vec![
            ("dispatched, bytes in", copy::bytes_to_shared, false),
            ("dispatched, bytes out", copy::bytes_from_shared, false),
            ("bytes in", copy::words::bytes_to_shared, false),
            ("bytes out", copy::words::bytes_from_shared, false),
            ("dispatched, in", copy::to_shared, true),
            ("dispatched, out", copy::from_shared, true),
            ("words in", copy::words::to_shared, true),
            ("words out", copy::words::from_shared, true),
        ];
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            ways.push(("string", copy::x86_64::string, false));
            ways.push(("words in assembly", copy::x86_64::words, true));
            #[cfg(target_feature = "sse2")]
            {
                ways.push(("vectors", copy::x86_64::vectors, true));
                if copy::avx::has_wide() && len >= copy::avx::WIDE_AT_LEAST {
                    ways.push(("wide AVX out", copy::avx::wide_from_shared, true));
                    ways.push(("wide AVX in", copy::avx::wide_to_shared, false));
                }
                if copy::avx::usable() && len >= copy::avx::AT_LEAST {
                    ways.push(("AVX out", copy::avx::from_shared, true));
                    ways.push(("AVX in", copy::avx::to_shared, false));
                }
            }
        }
        for (name, way, aligned) in ways {
            if aligned && len % 8 != 0 {
                continue;
            }
            for shift in (0..64).step_by(if aligned { 8 } else { 5 * step }) {
                let mut to = vec![u64::MAX; len / 8 + 12];
                let target = to.as_mut_ptr().cast::<u8>().wrapping_add(8 + shift);
                // SAFETY: 8 bytes and the shift in front, at least 17 bytes behind; the source is one word longer than `len`.
                unsafe { way(target, from.as_ptr().cast(), len) };
                let to: Vec<u8> = to.iter().flat_map(|word| word.to_le_bytes()).collect();
                let (front, rest) = to.split_at(8 + shift);
                let (copied, behind) = rest.split_at(len);
                assert_eq!(copied, &bytes[..len], "{name}: {len} shifted by {shift}");
                assert!(
                    front.iter().chain(behind).all(|&byte| byte == 0xff),
                    "{name}: {len} shifted by {shift}"
                );
            }
        }
    }
}

#[test]
fn r14_memory_that_cannot_be_a_ring_is_refused() {
    let page = NonNull::<u8>::without_provenance(core::num::NonZeroUsize::new(0x10000).unwrap());
    // SAFETY: never reached, since no ring comes of it.
    let new = |control: usize, data: usize, size| unsafe {
        SharedRing::new(
            page.map_addr(|page| page.saturating_add(control)),
            page.map_addr(|page| page.saturating_add(data)),
            size,
            (),
        )
    };
    for size in [0, 4095, 4104, u32::MAX, 1 << 31] {
        assert_eq!(new(0, 4096, size).unwrap_err(), InvalidRing::Size { size });
    }
    assert_eq!(
        new(8, 4096, 4096).unwrap_err(),
        InvalidRing::Alignment { address: 0x10008 }
    );
    assert_eq!(
        new(0, 8, 4096).unwrap_err(),
        InvalidRing::Alignment { address: 0x10008 }
    );
    assert!(new(0, 4096, 4096).is_ok());
}

/// Rings mapped twice need a kernel that maps pages twice.
#[cfg(all(target_os = "linux", not(miri)))]
mod mapped_twice {
    use super::super::support::{padded_pattern, pattern};
    use super::super::twice::Twice;
    use crate::ring::{Consumer, Header, Producer};

    #[test]
    fn a_ring_mapped_twice_is_the_same_ring() {
        let pages = Twice::new(8192).unwrap();
        let mut producer = Producer::create(pages.ring().unwrap());
        let mut split = Producer::create(pages.ring_split().unwrap());
        let mut consumer = Consumer::attach(pages.ring_split().unwrap(), [0; 640]).unwrap();
        let mut twice = Consumer::attach(pages.ring().unwrap(), [0; 640]).unwrap();
        for round in 0..2000_u64 {
            let payload = pattern(round, usize::try_from(round * 37 % 4000).unwrap());
            // Each way of writing, each way of reading.
            if round < 1000 {
                producer.send(Header::in_band(round), &payload).unwrap();
                let _ = producer.commit();
                if round == 999 {
                    split = Producer::attach(pages.ring_split().unwrap()).unwrap();
                }
            } else {
                split.send(Header::in_band(round), &payload).unwrap();
                let _ = split.commit();
            }
            if round % 500 == 0 {
                twice = Consumer::attach(pages.ring().unwrap(), [0; 640]).unwrap();
                consumer = Consumer::attach(pages.ring_split().unwrap(), [0; 640]).unwrap();
            }
            let packet = if round / 500 % 2 == 0 {
                twice.next()
            } else {
                consumer.next()
            }
            .unwrap();
            assert_eq!(
                (packet.transaction_id(), packet.payload()),
                (round, &padded_pattern(round, payload.len())[..])
            );
            let _ = if round / 500 % 2 == 0 {
                twice.commit()
            } else {
                consumer.commit()
            };
        }
    }
}
