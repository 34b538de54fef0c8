//! What a host that lies costs in lines of the log: a few, whatever it sends and however often.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::cell::RefCell;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use vmbus::Deadline;
use vmbus::bus::{Bus, Config};
use vmbus::device::dynamic_memory::engine::{Config as EngineConfig, Engine};
use vmbus::device::dynamic_memory::{AddRefused, Figures, MemoryPool, PageRange};
use vmbus::hyperv::Hypervisor;
use vmbus::kmcl::{Channel, Error, Gone, Instance};
use vmbus::platform::ProcessorIndex;
use vmbus::protocol::Guid;
use vmbus::testing::FakePlatform;
use vmbus::testing::model::{self, Host, Offer, Personality};

thread_local! {
    /// All lines that this test's thread logged.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Counting;

impl Log for Counting {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Does `work` and returns the lines that it logged.
fn lines_of(work: impl FnOnce()) -> Vec<String> {
    // The second test finds it set.
    let _ = log::set_logger(&Counting);
    log::set_max_level(LevelFilter::Trace);
    LINES.take();
    work();
    LINES.take()
}

const CLASS: &str = "5a17e5a1-0000-4000-8000-00000000fa17";
const INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000001";
const SOON: Deadline = Deadline::seconds(5);
/// How often a host does each thing.
const TIMES: u64 = if cfg!(miri) { 30 } else { 3_000 };

fn connect() -> (&'static FakePlatform, &'static Host, Bus, u32) {
    let platform = FakePlatform::new();
    let host = Host::new(platform, model::Config::new(Personality::HyperV));
    let device = host.offer(Offer::new(CLASS, INSTANCE));
    let hypervisor: &'static Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).unwrap()));
    let bus = Bus::connect(hypervisor, platform, Config::default()).unwrap();
    (platform, host, bus, device)
}

#[test]
fn m12_whatever_messages_a_host_sends_the_log_gets_a_few_lines() {
    let (platform, host, bus, device) = connect();
    let mut messages = Vec::new();
    // Every type and some that are none, too short, too long, about a channel that is there and one that is not.
    for kind in 0..30_u8 {
        for (len, channel) in [(4, 0), (8, 0), (12, 1), (20, 0x77), (240, 1), (240, 0x77)] {
            let mut bytes = vec![0; 240];
            bytes[0] = kind;
            bytes[8] = channel;
            bytes.truncate(len);
            // An offer that is withdrawn is one that is there no more.
            if kind != 2 || channel != 1 {
                messages.push(bytes);
            }
        }
    }
    let start = bus.hypervisor().now();
    let lines = lines_of(|| {
        for round in 0..TIMES {
            for bytes in &messages[usize::try_from(round % 6).unwrap()..]
                .iter()
                .step_by(6)
                .collect::<Vec<_>>()
            {
                host.send_raw(bytes);
                bus.process(ProcessorIndex(0));
            }
            // Slots of other ports, offers of ids in use, late offers that go again.
            host.send_slot(9, 200, &[0xff; 200]);
            host.offer_as(device, Offer::new(CLASS, INSTANCE));
            host.offer_as(9, Offer::new(CLASS, "5a17e5a1-0000-4000-8000-000000000009"));
            host.rescind(9);
            for _ in 0..4 {
                bus.process(ProcessorIndex(0));
            }
        }
    });
    let counters = bus.counters();
    let ignored =
        counters.short_messages + counters.unknown_messages + counters.stray_replies + counters.refused_offers;
    assert!(ignored > TIMES, "{counters:?}");
    // Ten in ten seconds of complaints, ten in ten seconds of arrivals, and the span before.
    let spans = bus.hypervisor().elapsed_since(start).as_secs() / 10 + 2;
    assert!(
        lines.len() as u64 <= 20 * spans,
        "{} lines in {spans} spans: {:#?}",
        lines.len(),
        &lines[..20]
    );
    assert!(!lines.is_empty());
    // Those that were left out are counted in a later line.
    platform.advance(Duration::from_secs(60));
    let lines = lines_of(|| {
        host.send_raw(&[99, 0, 0, 0, 0, 0, 0, 0]);
        bus.process(ProcessorIndex(0));
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("more lines that were not logged"), "{lines:?}");
    bus.disconnect(SOON).unwrap();
}

#[test]
fn m12_a_broken_channel_says_once_what_was_wrong_in_the_hosts_numbers() {
    let (platform, host, bus, device) = connect();
    let channel = Channel::allocate_client(&bus)
        .unwrap()
        .init_set_target(Guid::parse(CLASS).unwrap(), Instance::Any)
        .enable(SOON)
        .unwrap();
    let lines = lines_of(|| {
        let (_, to_guest) = host.channel(device).control_pages().unwrap();
        for _ in 0..TIMES {
            platform.guest_write(to_guest, &0x7fff_ffff_u32.to_le_bytes()).unwrap();
            host.channel(device).signal();
            bus.process(ProcessorIndex(0));
            let _ = channel.send(b"still there?");
        }
    });
    assert_eq!(channel.send(b"no"), Err(Error::Gone(Gone::Corrupt)));
    let about: Vec<_> = lines.iter().filter(|line| line.contains("0x7fffffff")).collect();
    assert_eq!(about.len(), 1, "{lines:#?}");
    assert!(lines.len() < 5, "{lines:#?}");
    drop(channel);
    bus.disconnect(SOON).unwrap();
}

/// An operating system without a page to spare.
struct Empty;

impl MemoryPool for Empty {
    fn figures(&self) -> Figures {
        Figures::default()
    }

    fn take(&mut self, _: u64) -> Option<PageRange> {
        None
    }

    fn give_back(&mut self, _: PageRange) {}

    fn add(&mut self, _: PageRange) -> Result<u64, AddRefused> {
        Err(AddRefused::Never)
    }
}

#[test]
fn m12_whatever_packets_dynamic_memory_gets_the_log_gets_a_line_for_each_doubling() {
    let mut engine = Engine::new(EngineConfig::default(), Empty).unwrap();
    engine.start();
    let lines = lines_of(|| {
        for round in 0..TIMES {
            // Too short for a header, a type that is none, a size that is a lie, an answer that nobody asked for.
            let _ = engine.on_packet(&[1, 0, 16]);
            let _ = engine.on_packet(&[77, 0, 8, 0, 0, 0, 0, 0]);
            let _ = engine.on_packet(&[1, 0, 200, 0, 0, 0, 0, 0]);
            let _ = engine.on_packet(&[9, 0, 8, 0, u8::try_from(round % 251).unwrap(), 0, 0, 0]);
        }
    });
    let counters = engine.counters();
    assert_eq!(
        (counters.malformed, counters.unknown, counters.unexpected),
        (2 * TIMES, TIMES, TIMES)
    );
    let doublings = TIMES.ilog2() as usize + 2;
    assert!(
        (3..=3 * doublings + 3).contains(&lines.len()),
        "{} lines: {lines:#?}",
        lines.len()
    );
}
