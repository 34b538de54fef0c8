//! The ring beside the floor: the time to copy the same bytes in and out.
//!
//! For N packets per commit, the floor copies N times the bytes of one packet (payload rounded up to 8, and 24) into a
//! ring-sized buffer and then N times out again, with `memcpy`. Ring and floor alternate in one process, and the least of each
//! counts. One thread, 256 KiB, in-band packets with completion requested, copied out whole.
//!
//! One line a row: `ring double|split BYTESxPACKETS: T ns, floor F ns, ratio R`, per packet sent and received. Below them
//! what stands on the ring: KMCL over the host in this process, GPADLs, event flags; and two cores. What is not measured beside
//! something is measured by criterion, see `rest.rs`.
//!
//! With `plot FILE` it draws the rows of the twice-mapped ring as well.
//! First of all it looks whether an optimised caller keeps what it has in vector registers, see `vectors.rs`.
//!
//! With `instructions NAME COUNT` it does one operation COUNT times and nothing else, for valgrind to count; see the test
//! `instructions`.

#![expect(
    unsafe_code,
    reason = "the floor is a raw memcpy, and pages are mapped by system calls"
)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run should say why and stop"
)]

#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod instructions;
#[cfg(target_os = "linux")]
mod pair;
#[cfg(target_os = "linux")]
mod plot;
#[cfg(target_os = "linux")]
mod rest;
#[cfg(target_os = "linux")]
mod threads;
#[cfg(target_os = "linux")]
#[path = "../../src/ring/tests/twice.rs"]
mod twice;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod vectors;

#[cfg(target_os = "linux")]
use linux::time;

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("ring: the pages of this benchmark are mapped as on Linux");
}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use core::hint::black_box;
    use std::time::Instant;

    use vmbus::ring::{Consumer, Header, Producer, SharedRing};
    use zerocopy::IntoBytes;

    use crate::rest::Rows;
    use crate::twice::Twice;

    const RING: usize = 256 * 1024;
    /// Payload, packets per commit, and how many times the floor a packet may take.
    const ROWS: [(usize, usize, f64); 7] = [
        (8, 1, 4.5),
        (64, 1, 2.3),
        (64, 16, 2.4),
        (256, 16, 1.25),
        (1500, 16, 1.2),
        (4096, 8, 1.1),
        (16384, 4, 1.05),
    ];

    /// A ring-sized buffer for the floor.
    #[repr(C, align(64))]
    struct Buffer([u8; RING]);

    /// Where in their pages the bytes to be sent, and those received, begin: each row is measured with each, and the least counts.
    ///
    /// A processor compares a load with the stores in front of it by their places in their pages first. Where these bytes lie as the
    /// program's stack does in its page, a packet of 1500 bytes takes 7 % longer: with one place it is chance which of the two a
    /// run measures.
    const PLACES: [usize; 4] = [0, 0x410, 0x820, 0xc30];

    /// Words that begin at one of these, for as long as the program runs.
    fn words_at(place: usize, len: usize) -> &'static mut [u64] {
        let pages = vec![0; (len + place).div_ceil(8) + 512].leak();
        let start = (pages.as_ptr().addr().wrapping_neg() % 4096 + place) / 8;
        &mut pages[start..][..len.div_ceil(8)]
    }

    /// The same as bytes.
    fn bytes_at(place: usize, bytes: impl ExactSizeIterator<Item = u8>) -> &'static mut [u8] {
        let len = bytes.len();
        let placed = &mut words_at(place, len).as_mut_bytes()[..len];
        for (placed, byte) in placed.iter_mut().zip(bytes) {
            *placed = byte;
        }
        placed
    }

    type Ring<'p> = SharedRing<&'p Twice>;

    struct Bench<'p> {
        producer: Producer<Ring<'p>>,
        consumer: Consumer<Ring<'p>, &'static mut [u64]>,
        payload: &'static [u8],
        batch: usize,
        signals: usize,
    }

    impl<'p> Bench<'p> {
        fn new(pages: &'p Twice, split: bool, payload: usize, batch: usize, place: usize) -> Self {
            let ring = || if split { pages.ring_split() } else { pages.ring() }.expect("pages of a ring");
            let producer = Producer::create(ring());
            let consumer = Consumer::attach(ring(), words_at(place, payload)).expect("a fresh ring");
            let payload = bytes_at(place, (0..payload).map(|n| n.to_le_bytes()[0] ^ 0x5a));
            Self {
                producer,
                consumer,
                payload,
                batch,
                signals: 0,
            }
        }

        #[inline(never)]
        fn run(&mut self, batches: usize) {
            for batch in 0..batches as u64 {
                for _ in 0..self.batch {
                    let header = Header::in_band_with_completion(batch);
                    self.producer
                        .send(header, black_box(self.payload))
                        .expect("there is room");
                }
                self.signals += usize::from(self.producer.commit().is_needed());
                for _ in 0..self.batch {
                    let packet = self.consumer.next().expect("a packet");
                    black_box((packet.transaction_id(), packet.payload()));
                }
                self.signals += usize::from(self.consumer.commit().is_needed());
            }
        }

        /// Puts the reader one packet behind for good.
        fn behind(mut self) -> Self {
            let header = Header::in_band_with_completion(0);
            self.producer.send(header, self.payload).expect("there is room");
            let _ = self.producer.commit();
            self.run(2);
            self.signals = 0;
            self
        }

        /// What arrives is what was sent, with its padding.
        fn verify(&mut self) {
            for id in 0..3 * RING / (self.payload.len() + 24) {
                self.producer
                    .send(Header::in_band_with_completion(id as u64), self.payload)
                    .expect("there is room");
                let _ = self.producer.commit();
                let packet = self.consumer.next().expect("a packet");
                assert_eq!(packet.transaction_id(), id as u64);
                assert!(packet.is_completion_requested());
                let (payload, padding) = packet.payload().split_at(self.payload.len());
                assert_eq!(payload, self.payload);
                assert!(padding.len() < 8 && padding.iter().all(|&byte| byte == 0));
                let _ = self.consumer.commit();
            }
        }
    }

    struct Floor {
        ring: Box<Buffer>,
        packet: &'static [u8],
        out: &'static mut [u8],
        at: usize,
        batch: usize,
    }

    impl Floor {
        fn new(payload: usize, batch: usize, place: usize) -> Self {
            let len = payload.next_multiple_of(8) + 24;
            let bytes = || core::iter::repeat_n(0x5a, len);
            Self {
                ring: Box::new(Buffer([0; RING])),
                packet: bytes_at(place, bytes()),
                out: bytes_at(place, bytes()),
                at: 0,
                batch,
            }
        }

        #[inline(never)]
        fn run(&mut self, batches: usize) {
            let len = self.packet.len();
            for _ in 0..batches {
                if self.at + self.batch * len > RING {
                    self.at = 0;
                }
                for n in 0..self.batch {
                    let to = &raw mut self.ring.0[self.at + n * len];
                    // SAFETY: the batch fits behind `at`.
                    unsafe { core::ptr::copy_nonoverlapping(black_box(self.packet.as_ptr()), to, black_box(len)) };
                }
                for n in 0..self.batch {
                    let from = &raw const self.ring.0[self.at + n * len];
                    // SAFETY: the batch fits behind `at`, and `out` is as long as a packet.
                    unsafe { core::ptr::copy_nonoverlapping(black_box(from), self.out.as_mut_ptr(), black_box(len)) };
                    black_box(self.out.as_ptr());
                }
                self.at += self.batch * len;
            }
        }
    }

    pub(crate) fn time(packets: usize, run: impl FnOnce()) -> f64 {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e9 / packets as f64
    }

    /// The least of each over alternating runs: ring and floor, in nanoseconds per packet.
    fn row(pages: &Twice, split: bool, payload: usize, batch: usize) -> (f64, f64, usize) {
        // About a millisecond a run: short enough to fall between two interrupts now and then.
        let batches = (2_000_000 / (batch * (20 + payload / 8))).max(8);
        let (mut least, mut least_floor) = (f64::MAX, f64::MAX);
        let rounds = 20;
        let mut signals = 0;
        for place in PLACES {
            let mut bench = Bench::new(pages, split, payload, batch, place);
            let mut floor = Floor::new(payload, batch, place);
            bench.verify();
            bench.run(batches);
            floor.run(batches);
            bench.signals = 0;
            for _ in 0..rounds {
                least_floor = least_floor.min(time(batches * batch, || floor.run(batches)));
                least = least.min(time(batches * batch, || bench.run(batches)));
            }
            signals += bench.signals * 1000 / (rounds * batches * batch);
            bench.verify();
        }
        (least, least_floor, signals / PLACES.len())
    }

    /// One packet per drain, with the reader's signals masked while it drains, and not.
    fn masking(pages: &Twice) -> (f64, f64) {
        let mut bench = Bench::new(pages, false, 64, 1, PLACES[0]);
        let (mut plain, mut masked) = (f64::MAX, f64::MAX);
        let count = 20_000;
        for _ in 0..60 {
            plain = plain.min(time(count, || bench.run(count)));
            masked = masked.min(time(count, || {
                for id in 0..count as u64 {
                    let header = Header::in_band_with_completion(id);
                    bench
                        .producer
                        .send(header, black_box(bench.payload))
                        .expect("there is room");
                    bench.signals += usize::from(bench.producer.commit().is_needed());
                    bench.consumer.mask();
                    black_box(bench.consumer.next().expect("a packet").payload());
                    let unmasked = bench.consumer.unmask().expect("a sound ring");
                    bench.signals += usize::from(unmasked.more) + usize::from(unmasked.signal.is_needed());
                }
            }));
        }
        (plain, masked)
    }

    /// One packet per commit to a reader that is always one packet behind: the ring is not empty when a packet is published, so
    /// that the writer, too, needs a fence before it knows that nobody is to be signalled.
    fn behind(rows: &mut Rows, pages: &Twice, payload: usize) -> f64 {
        let mut bench = Bench::new(pages, false, payload, 1, PLACES[0]).behind();
        let name = format!("ring behind {payload}x1");
        let least = rows.least(&name, 2_000, || bench.run(2_000));
        assert_eq!(bench.signals, 0, "the ring was never empty");
        least
    }

    /// One operation and nothing else: `double|split`, payload, packets per commit.
    pub(crate) fn only(split: bool, payload: usize, batch: usize, batches: usize) {
        let pages = Twice::new(256 * 1024).expect("memory for a ring");
        Bench::new(&pages, split, payload, batch, PLACES[0]).run(batches);
    }

    pub(crate) fn main() {
        #[cfg(target_arch = "x86_64")]
        crate::vectors::check();
        let mut arguments = std::env::args().skip(1);
        let first = arguments.next().unwrap_or_default();
        if first == "instructions" {
            return crate::instructions::main(arguments);
        }
        let mut rows = Rows::new();
        let mut drawn = Vec::new();
        let pages = Twice::new(256 * 1024).expect("memory for a ring");
        let mut missed = 0;
        for split in [false, true] {
            let name = if split { "split" } else { "double" };
            for (payload, batch, at_most) in ROWS {
                let (ring, floor, signals) = row(&pages, split, payload, batch);
                let ratio = ring / floor;
                if !split {
                    drawn.push((payload, batch, ring, floor));
                }
                let verdict = if ratio <= at_most { "" } else { " MISSED" };
                missed += usize::from(ratio > at_most);
                rows.say(format!(
                    "ring {name} {payload}x{batch}: {ring:.1} ns, floor {floor:.1} ns, ratio {ratio:.2} \
                     (goal {at_most}{verdict}; {signals} signals per 1000)"
                ));
            }
        }
        if let ("plot", Some(file)) = (first.as_str(), arguments.next()) {
            std::fs::write(file, crate::plot::svg(&drawn)).expect("a file for the plot");
        }
        for payload in [8, 64] {
            let took = behind(&mut rows, &pages, payload);
            rows.say(format!(
                "ring behind {payload}x1: {took:.1} ns, never empty, so with a fence of the writer, too"
            ));
        }
        let (plain, masked) = masking(&pages);
        rows.say(format!(
            "ring masked 64x1: {masked:.1} ns, without masking {plain:.1} ns, difference {:.1} ns",
            masked - plain
        ));
        rows.say(format!("{missed} of {} rows above their goal", 2 * ROWS.len()));
        let mut bench = Bench::new(&pages, true, 64, 1, PLACES[0]);
        let other_pages = Twice::new(256 * 1024).expect("memory for a ring");
        let mut behind = Bench::new(&other_pages, true, 64, 1, PLACES[0]).behind();
        let mut ring = || time(500, || bench.run(500));
        let mut ring_behind = || time(500, || behind.run(500));
        crate::host::main(&mut rows, &mut [&mut ring, &mut ring_behind]);
        rows.print();
        crate::threads::main();
    }
}
