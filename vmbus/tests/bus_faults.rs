//! A whole life on the bus, against the model of a host: each single allocation of it fails once, of the heap and of the
//! platform's pages, and nothing is left behind; and lives in great number, after which the memory is what it was.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

use std::sync::Mutex;

use vmbus::Deadline;
use vmbus::bus::{Bus, Config, ConnectError};
use vmbus::hyperv::{EnableError, Hypervisor, SynicError};
use vmbus::kmcl::{Channel, Error, GpadlAccess, Instance, Refused, SendFlags};
use vmbus::memory::{DmaBuffer, DmaError, Mdl};
use vmbus::platform::ProcessorIndex;
use vmbus::protocol::Guid;
use vmbus::testing::model::{self, Echo, Host, Offer, Personality};
use vmbus::testing::{FakePlatform, TestHeap};

#[global_allocator]
static HEAP: TestHeap = TestHeap;

const SOON: Deadline = Deadline::seconds(5);
const CLASS: &str = "5a17e5a1-0000-4000-8000-00000000fa17";
const INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000001";
/// The number of the channel that comes and goes.
const LATE: u32 = 7;
const LATE_INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000002";

/// Why a life ended early.
#[derive(Debug)]
enum Failure {
    Connect(ConnectError),
    Channel(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Channel(error)
    }
}

impl<T> From<Refused<T>> for Failure {
    fn from(refused: Refused<T>) -> Self {
        Self::Channel(refused.error)
    }
}

impl Failure {
    /// Whether it says that there was no memory, and nothing else.
    const fn is_want_of_memory(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error,
                ConnectError::OutOfMemory(_)
                    | ConnectError::OutOfPages(_)
                    | ConnectError::Hypercalls(EnableError::OutOfPages(_))
                    | ConnectError::Synic(SynicError::OutOfPages(_))
            ),
            Self::Channel(error) => matches!(error, Error::OutOfMemory(_) | Error::OutOfPages(_)),
        }
    }
}

/// A host with one device, and a guest that has not connected.
struct Ground {
    platform: &'static FakePlatform,
    host: &'static Host,
    hypervisor: &'static Hypervisor,
    /// Where interrupt entry and deferred work find the bus: a handle in them would keep it for ever.
    bus: &'static Mutex<Option<Bus>>,
}

fn with(slot: &Mutex<Option<Bus>>, work: impl FnOnce(&Bus)) {
    let bus = slot.lock().unwrap().clone();
    if let Some(bus) = bus {
        work(&bus);
    }
}

impl Ground {
    fn new() -> Self {
        TestHeap::exempt(|| {
            let platform = FakePlatform::new();
            let host = Host::new(platform, model::Config::new(Personality::HyperV));
            host.offer_with(Offer::new(CLASS, INSTANCE), Echo);
            let bus: &'static Mutex<Option<Bus>> = Box::leak(Box::default());
            host.set_interrupt_handler(|processor, _| with(bus, |bus| bus.acknowledge_interrupt(processor)));
            platform.set_deferred_handler(|processor| {
                with(bus, |bus| {
                    bus.process(processor);
                });
            });
            Self {
                platform,
                host,
                hypervisor: Box::leak(Box::new(Hypervisor::detect_on(host).unwrap())),
                bus,
            }
        })
    }

    fn connect(&self) -> Result<Bus, Failure> {
        let bus = Bus::connect(self.hypervisor, self.platform, Config::default()).map_err(Failure::Connect)?;
        *self.bus.lock().unwrap() = Some(bus.clone());
        Ok(bus)
    }

    fn settle(&self, bus: &Bus) {
        while TestHeap::exempt(|| self.host.run()) | bus.poll().is_more {}
    }

    /// Ends what there is. Everything is given back: pages, and what the host holds.
    fn end(&self, what: &str) {
        // The lock is free again while the host works.
        let bus = self.bus.lock().unwrap().take();
        if let Some(bus) = bus {
            *self.bus.lock().unwrap() = Some(bus.clone());
            self.settle(&bus);
            bus.disconnect(SOON).unwrap();
            *self.bus.lock().unwrap() = None;
        }
        self.hypervisor.disable_hypercalls().unwrap();
        TestHeap::exempt(|| {
            assert!(self.host.is_at_rest(), "{what}");
            self.host.assert_no_violations();
            self.platform.assert_no_faults();
        });
        assert_eq!(self.platform.live_pages(), 0, "pages, {what}");
    }

    fn memory(&self) -> Result<Mdl, Error> {
        DmaBuffer::allocate(self.platform, 5000)
            .map(Mdl::from)
            .map_err(|error| match error {
                DmaError::OutOfMemory(error) => error.into(),
                DmaError::OutOfPages(error) => error.into(),
                other => panic!("{other}"),
            })
    }

    /// Everything that allocates on the way from nothing to an open channel and back, once.
    fn live(&self) -> Result<(), Failure> {
        let bus = self.connect()?;
        let channel = open(&bus)?;
        let mut answer = [0; 64];
        let sent = channel.send_synchronous_request(&[7; 16], Some(self.memory()?), SOON, &mut answer)?;
        assert_eq!((sent.len, &answer[..16]), (16, &[7; 16][..]));
        let mut packet = channel.packet_initialize()?;
        packet.set_completion_routine(|_, _, outcome| outcome.unwrap());
        packet
            .send(b"own packet", None, SendFlags::WAIT_FOR_COMPLETION)
            .map_err(|refused| refused.error)?;
        channel.send(b"notice")?;
        self.settle(&bus);
        let shared = self.memory()?;
        let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &shared, 0, 0, SOON)?;
        drop(gpadl.delete(SOON)?);
        // An offer that comes late, and goes.
        let late = TestHeap::exempt(|| self.host.offer(Offer::new(CLASS, LATE_INSTANCE)));
        self.settle(&bus);
        TestHeap::exempt(|| self.host.rescind(late));
        self.settle(&bus);
        drop(channel.disable(SOON)?);
        Ok(())
    }
}

fn open(bus: &Bus) -> Result<Channel, Failure> {
    let channel = Channel::allocate_client(bus)?
        .init_set_target(Guid::parse(CLASS).unwrap(), Instance::Any)
        .init_set_maximum_packet_count(8)
        .init_set_maximum_packet_size(256)?
        .init_set_process_packet_callback(|_, packet| packet.complete(&[]).unwrap())
        .enable(SOON)?;
    Ok(channel)
}

/// One life, with the heap's level before and behind it. Returns how it ended, and whether the allocation that was to fail was
/// still ahead then.
fn watched(ground: &Ground, what: &str) -> (Result<(), Failure>, bool) {
    let before = TestHeap::live();
    let outcome = ground.live();
    let was_ahead = TestHeap::stop_failing();
    ground.platform.stop_failing();
    ground.end(what);
    assert_eq!(TestHeap::live(), before, "heap, {what}: {outcome:?}");
    if let Err(failure) = &outcome {
        assert!(failure.is_want_of_memory(), "{what}: {failure:?}");
    }
    (outcome, was_ahead)
}

#[test]
fn whatever_allocation_of_the_heap_fails_the_call_fails_and_nothing_is_left_behind() {
    watched(&Ground::new(), "with all memory").0.unwrap();
    let mut refused = 0;
    for number in 0.. {
        let ground = Ground::new();
        let what = TestHeap::exempt(|| format!("after allocation {number} failed"));
        TestHeap::fail_allocation(number);
        let (outcome, was_ahead) = watched(&ground, &what);
        if was_ahead {
            outcome.unwrap();
            assert!(refused > 20, "{refused} of only {number} allocations");
            return;
        }
        refused += usize::from(outcome.is_err());
        TestHeap::exempt(|| drop((what, outcome)));
    }
}

#[test]
fn whatever_allocation_of_pages_fails_the_call_fails_and_nothing_is_left_behind() {
    let ground = Ground::new();
    watched(&ground, "with all pages").0.unwrap();
    let blocks = ground.platform.allocations();
    assert!(blocks >= 10, "only {blocks} blocks of pages");
    for number in 0..blocks {
        let ground = Ground::new();
        ground.platform.fail_allocation(number);
        let (outcome, _) = watched(&ground, &format!("after block {number} failed"));
        assert!(outcome.is_err(), "block {number} of {blocks} failed and nobody noticed");
    }
}

#[test]
fn from_any_point_on_without_memory_what_is_open_still_closes() {
    let ground = Ground::new();
    ground.live().unwrap();
    ground.end("with all pages");
    let blocks = ground.platform.allocations();
    for number in 0..blocks {
        let ground = Ground::new();
        ground.platform.fail_allocations_from(number);
        watched(&ground, &format!("with nothing after {number} blocks"))
            .0
            .unwrap_err();
    }
}

/// `count` of them, or a part where each takes long.
const fn scaled(count: u32, unoptimised: u32) -> u32 {
    if cfg!(miri) {
        2
    } else if cfg!(debug_assertions) {
        unoptimised
    } else {
        count
    }
}

#[test]
fn ten_thousand_openings_leave_the_memory_as_it_was() {
    let ground = Ground::new();
    let bus = ground.connect().unwrap();
    let mut level = None;
    for round in 0..scaled(10_000, 1_000) {
        let channel = open(&bus).unwrap();
        channel.send(b"notice").unwrap();
        ground.settle(&bus);
        drop(channel.disable(SOON).unwrap());
        ground.settle(&bus);
        let now = (TestHeap::live(), ground.platform.live_pages(), bus.shared_bytes());
        assert_eq!(*level.get_or_insert(now), now, "round {round}");
    }
    drop(bus);
    ground.end("after all rounds");
}

#[test]
fn m11_a_million_offers_and_withdrawals_leave_the_memory_as_it_was() {
    let ground = Ground::new();
    let bus = ground.connect().unwrap();
    let level = (TestHeap::live(), ground.platform.live_pages());
    let allocations = TestHeap::allocations();
    let rounds = scaled(1_000_000, 10_000);
    for _ in 0..rounds {
        TestHeap::exempt(|| {
            ground.host.offer_as(LATE, Offer::new(CLASS, LATE_INSTANCE));
            ground.host.rescind(LATE);
        });
        ground.settle(&bus);
    }
    assert_eq!((TestHeap::live(), ground.platform.live_pages()), level);
    // C7: nor was there more in between.
    assert_eq!(TestHeap::allocations(), allocations);
    let counters = bus.counters();
    assert_eq!(
        (counters.rescinds, counters.released_ids),
        (u64::from(rounds), u64::from(rounds))
    );
    assert_eq!(bus.offers().count(), 1);
    drop(bus);
    ground.end("after all rounds");
}

/// A message of some type about channel 1, `len` bytes of it.
fn message(kind: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8] = 1;
    bytes.truncate(len);
    bytes
}

#[test]
fn c7_no_message_of_a_host_makes_the_guest_allocate() {
    let ground = Ground::new();
    let bus = ground.connect().unwrap();
    let channel = open(&bus).unwrap();
    let messages = TestHeap::exempt(|| {
        let kinds = (0..40).flat_map(|kind| [4, 8, 12, 16, 20, 196, 240].map(|len| message(kind, len)));
        kinds.collect::<Vec<_>>()
    });
    let (allocations, blocks) = (TestHeap::allocations(), ground.platform.allocations());
    // Were one asked for, it would be refused: then the message would have no effect.
    TestHeap::fail_allocation(0);
    ground.platform.fail_allocations_from(0);
    for bytes in &messages {
        TestHeap::exempt(|| ground.host.send_raw(bytes));
        bus.process(ProcessorIndex(0));
    }
    assert!(TestHeap::stop_failing(), "none was asked for");
    ground.platform.stop_failing();
    assert_eq!(
        (TestHeap::allocations(), ground.platform.allocations()),
        (allocations, blocks)
    );
    assert_eq!(ground.host.waiting_messages(0), 0, "every slot was freed");
    let counters = bus.counters();
    assert!(
        counters.short_messages > 50 && counters.unknown_messages > 50,
        "{counters:?}"
    );
    TestHeap::exempt(|| drop(messages));
    drop(channel);
    ground.settle(&bus);
    drop(bus);
    ground.bus.lock().unwrap().take();
}
