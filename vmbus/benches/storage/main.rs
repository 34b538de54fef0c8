//! The storage driver over the controller in this process, beside the floor: the memory copy that moves the same bytes.
//!
//! - `storage request`: a read of one block from a disk that copies nothing, beside KMCL's round trip: the fixed cost.
//! - `storage random`: reads of 4 KiB from a disk in memory, so many in flight.
//! - `storage sequential`: 1 MiB at a time, read and written, in commands of up to 256 KiB.
//!
//! Rows and floors alternate, and the least of each counts, as with the rings; not on criterion, see `../ring/rest.rs`. With `instructions NAME COUNT` it does one operation COUNT times
//! and nothing else, for valgrind to count.

#![expect(
    unsafe_code,
    reason = "the floor is a raw memcpy, and the platform is the benchmarks'"
)]
#![expect(clippy::cast_possible_truncation, reason = "bytes of a pattern")]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run should say why and stop"
)]

#[path = "../ring/pair.rs"]
#[expect(dead_code, reason = "the benchmark of the ring uses all of it")]
mod pair;

use core::hint::black_box;
use std::time::Instant as Wall;

use vmbus::device::storage::{self, Disk, Lba, SCSI};
use vmbus::host::Host;
use vmbus::host::storage::{
    Address, Backend, BackendError, Config, Controller, Disk as ServerDisk, DiskConfig, Durability, MemoryDisk,
    RequestMemory, WriteCache,
};
use vmbus::memory::DmaBuffer;
use vmbus::{Deadline, Instant};

use pair::{LEAN, Look, Pair};

const SOON: Deadline = Deadline::seconds(5);
const DISK: usize = 64 << 20;
const MIB: usize = 1 << 20;
/// What a request may take more than a round trip of KMCL.
const FIXED_AT_MOST: f64 = 300.0;
/// What 1 MiB may take, in times of the copy.
const SEQUENTIAL_AT_MOST: f64 = 1.2;

/// A disk that moves nothing.
struct Nothing;

impl Backend for Nothing {
    fn len_bytes(&self) -> u64 {
        DISK as u64
    }
    fn read(&self, _: u64, _: &RequestMemory<'_>) -> Result<(), BackendError> {
        Ok(())
    }
    fn write(&self, _: u64, _: &RequestMemory<'_>, _: Durability) -> Result<(), BackendError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), BackendError> {
        Ok(())
    }
}

/// The driver and the controller.
struct Ground {
    host: Host,
    _controller: Controller,
    disk: Disk,
}

impl Ground {
    fn new(backend: impl Backend + 'static) -> Self {
        let start = Wall::now();
        let clock = move || {
            Instant::from_reference_units(1 + u64::try_from(start.elapsed().as_nanos() / 100).unwrap_or(1 << 50))
        };
        let host = Host::new(&LEAN, clock).expect("memory");
        let config = Config {
            queue_depth: 128,
            ..Config::default()
        };
        let controller = Controller::new(&host, config).expect("memory");
        let disk = ServerDisk::new(backend, DiskConfig::default()).expect("memory");
        controller.attach(Address::lun(0), disk).expect("memory");
        controller.offer().expect("an offer");
        let client = storage::attach(&host, SCSI, SOON).expect("a controller");
        let disk = client.wait_for_disk(SOON).expect("a disk");
        Self {
            host,
            _controller: controller,
            disk,
        }
    }

    fn memory() -> Self {
        let memory = MemoryDisk::new(&LEAN, DISK as u64, WriteCache::None).expect("memory");
        let block: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8).collect();
        for at in (0..DISK).step_by(MIB) {
            memory.write_at(at as u64, &block).expect("memory");
        }
        Self::new(memory)
    }

    /// One read that waits.
    fn read(&self, lba: u64, buffer: DmaBuffer) -> DmaBuffer {
        self.disk.read(Lba(lba), buffer, SOON).expect("a read")
    }

    fn write(&self, lba: u64, buffer: DmaBuffer) -> DmaBuffer {
        self.disk.write(Lba(lba), buffer, SOON).expect("a write")
    }

    /// As many reads as there are buffers, all in flight.
    fn read_many(&self, buffers: &mut Vec<DmaBuffer>, random: &mut Random) {
        let mut flights: Vec<_> = buffers
            .drain(..)
            .map(|buffer| self.disk.start_read(Lba(random.block()), buffer))
            .collect();
        self.host.process();
        buffers.extend(flights.drain(..).map(|flight| flight.wait(SOON).expect("a read")));
    }
}

/// Positions of 4 KiB, in blocks.
struct Random(u64);

impl Random {
    const fn block(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % (DISK as u64 / 4096) * 8
    }
}

fn time(count: usize, mut run: impl FnMut()) -> f64 {
    let start = Wall::now();
    for _ in 0..count {
        run();
    }
    start.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn buffer(len: usize) -> DmaBuffer {
    DmaBuffer::allocate(&LEAN, len).expect("memory")
}

/// Copies as the controller has to, at the least.
fn copy(from: &[u8], to: &mut [u8]) {
    assert!(from.len() >= to.len());
    // SAFETY: both are as long.
    unsafe { core::ptr::copy_nonoverlapping(black_box(from.as_ptr()), to.as_mut_ptr(), black_box(to.len())) };
    black_box(to.as_ptr());
}

fn request() {
    let ground = Ground::new(Nothing);
    let pair = Pair::on(&LEAN, Look::Pass);
    let payload = [0x5a; 64];
    let mut lent = Some(buffer(512));
    let (mut read, mut flush, mut trip) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..60 {
        trip = trip.min(time(3_000, || pair.round_trip(black_box(&payload))));
        read = read.min(time(3_000, || {
            lent = lent.take().map(|buffer| ground.read(black_box(8), buffer));
        }));
        flush = flush.min(time(3_000, || ground.disk.flush(SOON).expect("a flush")));
    }
    for (name, took) in [("read 512", read), ("flush", flush)] {
        let above = took - trip;
        let verdict = if above <= FIXED_AT_MOST { "" } else { " MISSED" };
        println!(
            "storage request {name}: {took:.0} ns, kmcl round trip 64 {trip:.0} ns, {above:.0} ns above it (goal {FIXED_AT_MOST}{verdict})"
        );
    }
}

fn random() {
    let ground = Ground::memory();
    let source = vec![0x5a; DISK];
    let mut target = vec![0; 4096];
    for depth in [1, 8, 64] {
        let mut buffers: Vec<_> = (0..depth).map(|_| buffer(4096)).collect();
        let mut positions = Random(7);
        let (mut read, mut floor) = (f64::MAX, f64::MAX);
        for _ in 0..60 {
            floor = floor.min(time(1_000, || {
                let at = usize::try_from(positions.block()).expect("a position") * 512;
                copy(&source[at..at + 4096], &mut target);
            }));
            let took = time(2_000 / depth, || match &mut buffers[..] {
                // One that waits is what those do who have only one.
                [_] => buffers = vec![ground.read(positions.block(), buffers.remove(0))],
                _ => ground.read_many(&mut buffers, &mut positions),
            });
            read = read.min(took / depth as f64);
        }
        println!(
            "storage random 4096, {depth} in flight: {read:.0} ns, floor {floor:.0} ns, {:.2} million a second",
            1e3 / read
        );
    }
}

fn sequential() {
    let ground = Ground::memory();
    let source = vec![0x5a; DISK];
    let mut target = vec![0; MIB];
    let mut lent = Some(buffer(MIB));
    let (mut read, mut write, mut floor) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..15 {
        let mut at = 0;
        floor = floor.min(time(DISK / MIB, || {
            copy(&source[at..at + MIB], &mut target);
            at += MIB;
        }));
        let mut lba = 0;
        read = read.min(time(DISK / MIB, || {
            lent = lent.take().map(|buffer| ground.read(lba, buffer));
            lba += MIB as u64 / 512;
        }));
        let mut lba = 0;
        write = write.min(time(DISK / MIB, || {
            lent = lent.take().map(|buffer| ground.write(lba, buffer));
            lba += MIB as u64 / 512;
        }));
    }
    for (name, took) in [("read", read), ("write", write)] {
        let ratio = took / floor;
        let verdict = if ratio <= SEQUENTIAL_AT_MOST { "" } else { " MISSED" };
        println!(
            "storage sequential {name} 1 MiB: {:.1} us, floor {:.1} us, ratio {ratio:.2} (goal {SEQUENTIAL_AT_MOST}{verdict}), {:.1} GB/s",
            took / 1e3,
            floor / 1e3,
            MIB as f64 / took
        );
    }
}

/// What is read is what is there.
fn verify() {
    let ground = Ground::memory();
    let data = ground.read(3, buffer(MIB));
    let mut bytes = vec![0; MIB];
    data.read_at(0, &mut bytes).expect("the buffer");
    let expected = (3 * 512..).map(|index| (index % MIB % 251) as u8);
    assert!(bytes.iter().copied().eq(expected.take(MIB)), "the wrong bytes");
}

fn instructions(mut arguments: impl Iterator<Item = String>) {
    let name = arguments.next().unwrap_or_default();
    let count = arguments
        .next()
        .and_then(|count| count.parse().ok())
        .expect("how often");
    let run = |ground: &Ground, len: usize| {
        let mut lent = Some(buffer(len));
        for _ in 0..count {
            lent = lent.take().map(|buffer| ground.read(black_box(8), buffer));
        }
    };
    match name.as_str() {
        "storage-request-512" => run(&Ground::new(Nothing), 512),
        "storage-read-4096" => run(&Ground::memory(), 4096),
        _ => panic!("there is no operation {name}"),
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("instructions") {
        return instructions(arguments);
    }
    verify();
    request();
    random();
    sequential();
}
