//! A caller that is compiled with AVX, and so keeps values in vector registers of 32 bytes, finds them whole after it has used a ring.
//!
//! What is inlined into such a caller decides, so it is looked at here: only an optimised program can be wrong.

use core::arch::x86_64::{__m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_set1_epi64x, _mm256_storeu_si256};
use core::hint::black_box;

use vmbus::ring::{Consumer, Header, Producer, SharedRing};

use crate::twice::Twice;

type Ring<'p> = SharedRing<&'p Twice>;
type Numbers = [[u64; 4]; 8];

/// Sends and receives with sums in registers, and returns these.
#[target_feature(enable = "avx2")]
fn round_trips(
    producer: &mut Producer<Ring<'_>>,
    consumer: &mut Consumer<Ring<'_>, Vec<u64>>,
    payload: &[u8],
    numbers: &Numbers,
) -> Numbers {
    // SAFETY: 32 bytes each.
    let mut sums: [__m256i; 8] = numbers.map(|row| unsafe { _mm256_loadu_si256(row.as_ptr().cast()) });
    let one = _mm256_set1_epi64x(1);
    for _ in 0..10 {
        for sum in &mut sums {
            *sum = _mm256_add_epi64(*sum, one);
        }
        producer.send(Header::in_band(1), payload).expect("an empty ring");
        let _ = producer.commit();
        for sum in &mut sums {
            *sum = _mm256_add_epi64(*sum, one);
        }
        let packet = consumer.next().expect("a packet");
        assert_eq!(packet.payload().len(), payload.len());
        let _ = consumer.commit();
    }
    sums.map(|sum| {
        let mut row = [0; 4];
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), sum) };
        row
    })
}

/// Panics if a copy, of any of the kinds that there are, takes something of its caller's.
pub(crate) fn check() {
    if !std::is_x86_feature_detected!("avx2") {
        return;
    }
    let pages = Twice::new(64 * 1024).expect("pages");
    let ring = || pages.ring().expect("pages of a ring");
    let mut producer = Producer::create(ring());
    let mut consumer = Consumer::attach(ring(), vec![0; 4096]).expect("a fresh ring");
    let numbers: Numbers = core::array::from_fn(|row| core::array::from_fn(|column| (row * 4 + column) as u64 + 100));
    let expected = numbers.map(|row| row.map(|number| number + 20));
    for len in [8, 64, 136, 256, 1024, 2048, 8192, 16384] {
        let payload = vec![7; len];
        // SAFETY: the processor has what it is compiled for, as was just asked.
        let found = unsafe { round_trips(&mut producer, &mut consumer, black_box(&payload), black_box(&numbers)) };
        assert_eq!(
            found, expected,
            "what a caller kept in vectors, after a copy of {len} bytes"
        );
    }
}
