//! What a packet costs beyond its copy, counted: no allocation, and no more signals than batches.
#![expect(unsafe_code, reason = "stands between the crate and the model of a machine")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "../benches/ring/pair.rs"]
mod pair;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vmbus::Deadline;
use vmbus::bus::{Bus, Config};
use vmbus::hyperv::Hypervisor;
use vmbus::hyperv::machine::{Cpuid, Machine};
use vmbus::kmcl::{Channel, Instance, SendFlags};
use vmbus::protocol::Guid;
use vmbus::testing::model::{self, Device, HostChannel, Offer, Personality};
use vmbus::testing::{FakePlatform, TestHeap};

use pair::{Look, Pair, lean};
use vmbus::platform::Callers;

#[global_allocator]
static HEAP: TestHeap = TestHeap;

const SOON: Deadline = Deadline::seconds(5);
const CLASS: &str = "5a17e5a1-0000-4000-8000-00000000c1a5";
const INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000001";

/// The model of a host, with its hypercalls counted.
struct Counted {
    host: OnceLock<&'static model::Host>,
    signals: AtomicU64,
    others: AtomicU64,
}

impl Counted {
    fn host(&self) -> &'static model::Host {
        self.host.get().unwrap()
    }

    /// Signals and other hypercalls since the last call.
    fn take(&self) -> (u64, u64) {
        (
            self.signals.swap(0, Ordering::Relaxed),
            self.others.swap(0, Ordering::Relaxed),
        )
    }
}

// SAFETY: it passes all on.
unsafe impl Machine for Counted {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Cpuid {
        self.host().cpuid(leaf, subleaf)
    }

    fn timestamp(&self) -> u64 {
        self.host().timestamp()
    }

    unsafe fn read_msr(&self, register: u32) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { self.host().read_msr(register) }
    }

    unsafe fn write_msr(&self, register: u32, value: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.host().write_msr(register, value) };
    }

    unsafe fn hypercall(&self, page: std::ptr::NonNull<u8>, control: u64, input: u64, output: u64) -> u64 {
        // HvCallSignalEvent, as a fast call: what it needs is in registers.
        const FAST_SIGNAL: u64 = 0x1_005d;
        let counter = if control == FAST_SIGNAL {
            &self.signals
        } else {
            &self.others
        };
        counter.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.host().hypercall(page, control, input, output) }
    }
}

/// A device that looks at its ring only when it is let to: as a host does that runs on another processor.
struct Late(Arc<AtomicBool>);

impl Late {
    fn work(&self, channel: &HostChannel<'_>) -> bool {
        let mut has_worked = false;
        while self.0.load(Ordering::Relaxed)
            && let Some(packet) = channel.receive()
        {
            has_worked = true;
            if packet.flags & 1 != 0 {
                channel.send_completion(packet.transaction, &packet.payload).unwrap();
            }
        }
        has_worked
    }
}

impl Device for Late {
    fn signalled(&mut self, channel: &HostChannel<'_>) {
        self.work(channel);
    }

    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        self.work(channel)
    }
}

struct Ground {
    machine: &'static Counted,
    channel: Channel<()>,
    may_look: Arc<AtomicBool>,
    bus: Bus,
}

impl Ground {
    fn new() -> Self {
        let platform = FakePlatform::new();
        let host = model::Host::new(platform, model::Config::new(Personality::HyperV));
        let may_look = Arc::new(AtomicBool::new(true));
        host.offer_with(Offer::new(CLASS, INSTANCE), Late(may_look.clone()));
        let machine: &'static Counted = Box::leak(Box::new(Counted {
            host: OnceLock::new(),
            signals: AtomicU64::new(0),
            others: AtomicU64::new(0),
        }));
        machine.host.set(host).ok().unwrap();
        let hypervisor: &'static Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(machine).unwrap()));
        let bus = Bus::connect(hypervisor, platform, Config::default()).unwrap();
        host.drive(&bus);
        let channel = Channel::allocate_client(&bus)
            .unwrap()
            .init_set_target(Guid::parse(CLASS).unwrap(), Instance::Any)
            .init_set_ring_buffer_page_count(32, 32)
            .init_set_maximum_packet_count(256)
            .enable(SOON)
            .unwrap();
        Self {
            machine,
            channel,
            may_look,
            bus,
        }
    }

    /// The host looks at the ring, and the guest at what came of it.
    fn exchange(&self) {
        self.may_look.store(true, Ordering::Relaxed);
        TestHeap::exempt(|| {
            self.machine.host().run();
        });
        self.bus.process(vmbus::platform::ProcessorIndex(0));
        self.may_look.store(false, Ordering::Relaxed);
    }

    /// Signals for a thousand packets in batches.
    fn signals(&self, batch: u64) -> u64 {
        self.exchange();
        self.machine.take();
        let batches = 1024 / batch;
        for _ in 0..batches {
            for _ in 0..batch {
                self.channel.send(&[0x5a; 64]).unwrap();
            }
            self.exchange();
        }
        let (signals, others) = self.machine.take();
        assert_eq!(others, 0, "packets need no other hypercall");
        let counters = self.channel.counters();
        assert_eq!(counters.ring_full, 0);
        signals * 1000 / 1024
    }
}

#[test]
fn a_thousand_packets_one_by_one_take_a_thousand_signals() {
    assert_eq!(Ground::new().signals(1), 1000);
}

#[test]
fn a_thousand_packets_in_batches_of_16_take_62_signals() {
    assert_eq!(Ground::new().signals(16), 62);
}

#[test]
fn a_thousand_packets_in_batches_of_256_take_3_signals() {
    assert_eq!(Ground::new().signals(256), 3);
}

#[test]
fn no_packet_over_the_bus_allocates() {
    let ground = Ground::new();
    let round = |asked: usize| {
        for _ in 0..asked {
            let mut packet = ground.channel.packet_allocate().unwrap();
            packet.set_completion_routine(|_, packet, outcome| {
                outcome.unwrap();
                assert_eq!(packet.completion(), [0x5a; 64]);
            });
            packet
                .send(&[0x5a; 64], None, SendFlags::WAIT_FOR_COMPLETION)
                .map_err(|refused| refused.error)
                .unwrap();
        }
        ground.channel.send(&[0x5a; 64]).unwrap();
        ground.exchange();
    };
    round(16);
    let before = TestHeap::allocations();
    for _ in 0..100 {
        round(16);
    }
    assert_eq!(TestHeap::allocations() - before, 0);
    let counters = ground.channel.counters();
    assert_eq!((counters.packets_sent, counters.packets_received), (101 * 17, 101 * 16));
    assert_eq!(counters.outgoing_outstanding, 0);
}

#[test]
fn no_packet_over_the_host_in_the_kernel_allocates_at_either_end() {
    for callers in [Callers::Anywhere, Callers::OneProcessor, Callers::OneAtATime] {
        nothing_is_allocated(&Pair::on(lean(callers), Look::Pass));
    }
}

fn nothing_is_allocated(pair: &Pair) {
    let mut answer = [0; 64];
    let mut round = || {
        pair.round_trip(&[0x5a; 64]);
        pair.stream(&[0x5a; 200], 16);
        pair.ask_many(&[0x5a; 64], 16);
        let sent = pair
            .client
            .send_synchronous_request(&[7; 24], None, SOON, &mut answer)
            .map_err(|refused| refused.error)
            .unwrap();
        // The answer that a server which looks at nothing has ready.
        assert_eq!((sent.len, answer), (64, [0xa5; 64]));
    };
    round();
    let before = TestHeap::allocations();
    for _ in 0..100 {
        round();
    }
    assert_eq!(TestHeap::allocations() - before, 0);
    assert_eq!(pair.server.context().take().0, 101 * 34);
    assert_eq!(pair.client.context().take().0, 101 * 17);
}

#[test]
fn the_heap_that_says_so_does_count() {
    let before = TestHeap::allocations();
    drop(std::hint::black_box(Box::new(5)));
    assert_eq!(TestHeap::allocations() - before, 1);
}

#[test]
fn what_arrives_over_the_host_in_the_kernel_is_what_was_sent() {
    Pair::verify(lean(Callers::OneAtATime), &[0x5a; 64]);
}
