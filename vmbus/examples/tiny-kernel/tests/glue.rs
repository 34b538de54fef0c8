//! The glue, against the crate's model of a host: what boots in a virtual machine also runs here.

extern crate alloc;

#[path = "../src/hyperv/mod.rs"]
mod hyperv;

use core::time::Duration;

use hyperv::platform::Tiny;
use hyperv::pool::Spare;
use hyperv::run::{hypervisor, run};
use vmbus::device::dynamic_memory::{Engine, MemoryPool, PageRange, State};
use vmbus::hyperv::Hypervisor;
use vmbus::memory::Pfn;
use vmbus::testing::model::dynamic_memory::{self, DynamicMemory, Phase};
use vmbus::testing::model::{Config, Host, Personality};
use vmbus::testing::{FakePlatform, check_platform};

fn pages(first: u64, count: u64) -> PageRange {
    PageRange::new(Pfn::new(first), count).unwrap()
}

/// 20,000 pages in two runs, in a machine of 30,000.
fn spare() -> Spare {
    Spare::new(vec![pages(0x1000, 8000), pages(0x8000, 12_000)], 30_000)
}

struct Machine {
    platform: &'static FakePlatform,
    host: &'static Host,
    hypervisor: &'static Hypervisor,
}

impl Machine {
    fn new(personality: Personality) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, Config::new(personality));
        let hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).unwrap()));
        Self {
            platform,
            host,
            hypervisor,
        }
    }

    /// Lets the host work, and some time pass.
    fn step(&self) {
        self.host.run();
        self.platform.advance(Duration::from_millis(100));
    }

    fn assert_clean(&self) {
        assert!(self.hypervisor.disable_hypercalls().is_ok());
        assert!(self.host.is_at_rest());
        self.host.assert_no_violations();
        self.platform.assert_no_faults();
    }
}

#[test]
fn the_host_gets_pages_and_gives_them_back() {
    for personality in [Personality::HyperV, Personality::Qemu, Personality::OpenVmm] {
        let machine = Machine::new(personality);
        let (device, control) = DynamicMemory::new(dynamic_memory::Config::default());
        machine.host.offer_with(DynamicMemory::offer(), device);
        let (mut phase, mut most_held) = (0, 0);
        let goes_on = |engine: &Engine<Spare>| {
            machine.step();
            let is_idle = control.phase() == Phase::Idle;
            let figures = engine.pool().figures();
            let held = engine.held().page_count();
            assert_eq!(
                figures.free_pages + figures.committed_pages + held,
                figures.total_pages,
                "no page is lost or counted twice"
            );
            most_held = most_held.max(held);
            match phase {
                0 if is_idle => control.balloon(15_000),
                1 if control.ballooned_pages() == 15_000 => control.unballoon(15_000),
                2 if control.ballooned_pages() == 0 && is_idle => return false,
                _ => return true,
            }
            phase += 1;
            true
        };
        run(machine.hypervisor, machine.platform, spare(), goes_on).unwrap();
        assert_eq!((phase, most_held), (2, 15_000), "{personality:?}");
        machine.assert_clean();
    }
}

#[test]
fn a_host_without_the_device_gives_an_error_and_no_hang() {
    let machine = Machine::new(Personality::HyperV);
    let error = run(machine.hypervisor, machine.platform, spare(), |_| unreachable!()).unwrap_err();
    assert!(error.to_string().contains("offer"), "{error}");
}

#[test]
fn a_device_that_refuses_gives_its_reason() {
    let machine = Machine::new(Personality::HyperV);
    let (device, _control) = DynamicMemory::new(dynamic_memory::Config {
        capabilities: dynamic_memory::Verdict::Refuse,
        ..dynamic_memory::Config::default()
    });
    machine.host.offer_with(DynamicMemory::offer(), device);
    let mut last = State::Closed;
    run(machine.hypervisor, machine.platform, spare(), |engine| {
        machine.step();
        last = engine.state();
        !matches!(last, State::Faulted(_))
    })
    .unwrap();
    assert!(
        matches!(last, State::Faulted(fault) if fault.to_string().contains("refused")),
        "{last:?}"
    );
    machine.assert_clean();
}

#[test]
fn the_platform_has_no_fault_that_can_be_found() {
    static PLATFORM: Tiny = Tiny;
    let report = check_platform(&PLATFORM, 1).unwrap();
    assert!(report.is_contiguous && report.is_identity_mapped && !report.maps_twice);
}

#[test]
fn what_is_no_hyper_v_is_named() {
    // The development machine may be anything; what counts is that the answer is one of the two.
    match hypervisor() {
        Ok(hypervisor) => assert!(!hypervisor.capabilities().vendor.to_string().is_empty()),
        Err(reason) => assert!(!reason.to_string().is_empty()),
    }
}

#[test]
fn neighbouring_runs_are_joined() {
    let mut pool = spare();
    let taken = pool.take(5000).unwrap();
    assert_eq!(taken, pages(0x8000, 5000));
    let (first, second) = taken.split_at(2000);
    pool.give_back(second.unwrap());
    pool.give_back(first.unwrap());
    assert_eq!(pool.take(u64::MAX), Some(pages(0x8000, 12_000)));
    assert_eq!(pool.take(u64::MAX), Some(pages(0x1000, 8000)));
    assert_eq!(pool.take(1), None);
    assert_eq!(pool.figures().free_pages, 0);
}
