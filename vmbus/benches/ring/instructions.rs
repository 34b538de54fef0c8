//! One operation, so many times, for valgrind to count the instructions of.

use core::hint::black_box;

use vmbus::platform::Callers;

use crate::linux::only;
use crate::pair::{LEAN, Look, Pair, lean};

/// `NAME COUNT`: a name of the committed table, and how often.
pub(crate) fn main(mut arguments: impl Iterator<Item = String>) {
    let name = arguments.next().unwrap_or_default();
    let count: usize = arguments
        .next()
        .and_then(|count| count.parse().ok())
        .expect("how often");
    match name.as_str() {
        "kmcl-round-trip-64" | "kmcl-round-trip-64-one-processor" | "kmcl-round-trip-64-anywhere" => {
            let callers = match name.as_str() {
                "kmcl-round-trip-64" => Callers::OneAtATime,
                "kmcl-round-trip-64-one-processor" => Callers::OneProcessor,
                _ => Callers::Anywhere,
            };
            let pair = Pair::on(lean(callers), Look::Pass);
            for _ in 0..count {
                pair.round_trip(black_box(&[0x5a; 64]));
            }
        }
        "kmcl-stream-64x16" => {
            let pair = Pair::on(&LEAN, Look::Pass);
            for _ in 0..count {
                pair.stream(black_box(&[0x5a; 64]), 16);
            }
        }
        ring => {
            let mut words = ring.split('-');
            let words = [(); 4].map(|()| words.next().unwrap_or_default());
            let ["ring", kind @ ("double" | "split"), payload, batch] = words else {
                panic!("there is no operation {name}");
            };
            let number = |word: &str| word.parse().expect("a number");
            only(kind == "split", number(payload), number(batch), count);
        }
    }
}
