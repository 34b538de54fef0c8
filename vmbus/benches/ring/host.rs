//! What goes on above the ring: KMCL's round trip and stream over the host in this process, GPADLs, event flags.

use core::hint::black_box;
use core::sync::atomic::Ordering;

use vmbus::bus::{Bus, Config};
use vmbus::hyperv::machine::Machine as _;
use vmbus::hyperv::{Hypervisor, Synic, SynicConfig};
use vmbus::kmcl::{Channel, GpadlAccess, Instance};
use vmbus::memory::{DmaBuffer, Mdl, PAGE_SIZE};
use vmbus::platform::Callers;
use vmbus::protocol::Guid;
use vmbus::testing::FakePlatform;
use vmbus::testing::model::{self, Echo, Offer, Personality};
use vmbus::{Deadline, Platform};

use crate::pair::{LEAN, Look, Pair, lean};
use crate::rest::Rows;
use crate::time;

/// How many times the ring's row 64x1 a round trip may take.
const ROUND_TRIP_AT_MOST: f64 = 5.5;
const SOON: Deadline = Deadline::seconds(5);

/// Measures the rows; `rings` are the ring's own row 64x1, mapped once, and the same with the reader a packet behind, so with a
/// fence of each end, as all rings had when the goal was set; in nanoseconds.
pub(crate) fn main(rows: &mut Rows, rings: &mut [&mut dyn FnMut() -> f64; 2]) {
    for callers in [Callers::OneAtATime, Callers::OneProcessor, Callers::Anywhere] {
        round_trip(rows, rings, callers);
    }
    stream(rows);
    gpadls(rows);
    event_flags(rows);
}

fn round_trip(rows: &mut Rows, rings: &mut [&mut dyn FnMut() -> f64; 2], callers: Callers) {
    let payload = [0x5a; 64];
    Pair::verify(lean(callers), &payload);
    let pair = Pair::on(lean(callers), Look::Pass);
    // Some ten microseconds a run, and many of them: whatever else the machine does falls between two runs now and then.
    let (count, rounds) = (100, 4_000);
    let mut least = [f64::MAX; 2];
    let mut trip = f64::MAX;
    // Alternating, as everywhere.
    for _ in 0..rounds {
        for (least, ring) in least.iter_mut().zip(&mut *rings) {
            *least = least.min(ring());
        }
        trip = trip.min(time(count, || {
            for _ in 0..count {
                pair.round_trip(black_box(&payload));
            }
        }));
    }
    assert_eq!(pair.client.context().take().0, rounds * count as u64);
    let ([ring, behind], [ratio, ratio_behind]) = (least, least.map(|ring| trip / ring));
    let goal = match callers {
        Callers::OneAtATime => {
            let verdict = if ratio <= ROUND_TRIP_AT_MOST { "" } else { " MISSED" };
            format!(" (goal {ROUND_TRIP_AT_MOST}{verdict}); {ratio_behind:.2} times ring behind 64x1, {behind:.1} ns")
        }
        Callers::OneProcessor => ", with dispatch sections".into(),
        Callers::Anywhere => ", with dispatch sections and locked instructions".into(),
    };
    rows.say(format!(
        "kmcl round trip 64: {trip:.1} ns, ring 64x1 {ring:.1} ns, ratio {ratio:.2}{goal}"
    ));
}

fn stream(rows: &mut Rows) {
    let pair = Pair::on(&LEAN, Look::Pass);
    for (len, batch) in [(64, 1), (64, 16), (64, 256), (1500, 16)] {
        let payload = vec![0x5a; len];
        let rounds = (1_000 / batch).max(1);
        let before = pair.client.counters();
        let name = format!("kmcl stream {len}x{batch}");
        let sent = rows.least(&name, rounds * batch, || {
            for _ in 0..rounds {
                pair.stream(black_box(&payload), batch);
            }
        });
        let after = pair.client.counters();
        let signals = (after.signals_sent - before.signals_sent) * 1000 / (after.packets_sent - before.packets_sent);
        let asked = rows.least(&format!("{name} with completion"), rounds * batch, || {
            for _ in 0..rounds {
                pair.ask_many(black_box(&payload), batch);
            }
        });
        rows.say(format!(
            "kmcl stream {len}x{batch}: {sent:.1} ns a packet, {asked:.1} ns with completion; {signals} signals per 1000"));
    }
}

/// Time per page, from the difference between many pages and one.
fn per_page(
    rows: &mut Rows,
    name: &str,
    platform: &'static dyn Platform,
    pages: usize,
    mut share: impl FnMut(&Mdl),
) -> (f64, f64) {
    let mut cost = |pages: usize| {
        let buffer = DmaBuffer::allocate(platform, pages * PAGE_SIZE).expect("memory");
        let mdl = Mdl::from(buffer);
        rows.least(&format!("{name}, {pages} pages"), 20, || {
            for _ in 0..20 {
                share(&mdl);
            }
        })
    };
    let (one, many) = (cost(1), cost(pages));
    (one, (many - one).max(0.0) / (pages - 1) as f64)
}

fn gpadls(rows: &mut Rows) {
    let pair = Pair::on(&LEAN, Look::Pass);
    let (one, page) = per_page(rows, "gpadl in kernel", &LEAN, 1025, |mdl| {
        let gpadl = pair
            .client
            .create_gpadl_from_mdl(GpadlAccess::ReadWrite, mdl, 0, mdl.len(), SOON)
            .expect("a GPADL");
        gpadl.delete(SOON).expect("it goes away");
    });
    rows.say(format!(
        "gpadl in kernel: {one:.0} ns for one page, {page:.2} ns for each further one"
    ));

    // Over the bus: the messages are made here, and read by a model of a host, which takes its time as well.
    let platform = FakePlatform::new();
    let host = model::Host::new(platform, model::Config::new(Personality::HyperV));
    let class = "5a17e5a1-0000-4000-8000-00000000c1a5";
    host.offer_with(Offer::new(class, "5a17e5a1-0000-4000-8000-000000000001"), Echo);
    let hypervisor: &Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).expect("a model of Hyper-V")));
    let bus = Bus::connect(hypervisor, platform, Config::default()).expect("a connection");
    host.drive(&bus);
    let class: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000c1a5");
    let channel = Channel::allocate_client(&bus)
        .expect("memory")
        .init_set_target(class, Instance::Any)
        .enable(SOON)
        .expect("an open channel");
    let (one, page) = per_page(rows, "gpadl by messages", platform, 1025, |mdl| {
        let gpadl = channel
            .create_gpadl_from_mdl(GpadlAccess::ReadWrite, mdl, 0, mdl.len(), SOON)
            .expect("a GPADL");
        gpadl.delete(SOON).expect("it goes away");
    });
    rows.say(format!(
        "gpadl by messages: {one:.0} ns for one page, {page:.2} ns for each further one, the model of the host included"
    ));
    drop(channel);
}

/// One flag among all that there are, and the same among as many as a small machine uses.
fn event_flags(rows: &mut Rows) {
    const EVENT_PAGE: u32 = 0x4000_0082;
    const COUNT: usize = 2_000;
    let platform = FakePlatform::new();
    let host = model::Host::new(platform, model::Config::new(Personality::HyperV));
    let hypervisor: &Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).expect("a model of Hyper-V")));
    let synic = Synic::enable(hypervisor, platform, SynicConfig::vmbus(0x40)).expect("an interrupt controller");
    // SAFETY: a register of the model; reading it has no effect.
    let page = unsafe { host.read_msr(EVENT_PAGE) } & !0xfff;
    for (flag, limit) in [(2047_u32, 2048), (0, 2048), (63, 64)] {
        synic.set_flag_limit(limit);
        let word = page + 2 * 256 + u64::from(flag) / 64 * 8;
        let (mut stored, mut seen) = (0_usize, 0_usize);
        let name = format!("event flag {flag} of {limit}");
        let took = platform.guest_word64(word, |word| {
            rows.least(&name, COUNT, || {
                stored += COUNT;
                for _ in 0..COUNT {
                    word.store(1 << (flag % 64), Ordering::Release);
                    synic.take_event_flags(2, |found| seen += usize::from(black_box(found) == flag));
                }
            })
        });
        let took = took.expect("the page of event flags");
        assert_eq!(seen, stored, "each was seen once");
        rows.say(format!("{name}: {took:.1} ns"));
    }
    synic.disable().expect("the processor that turned it on");
}
