//! The whole way, from the model of a host through bus and channel to the driver and back.

mod steps;

use core::time::Duration;
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;

use super::super::engine::support::TestPool;
use super::super::protocol::ProtocolVersion;
use super::super::{Fault, PageRange};
use super::*;
use crate::bus::{self, Bus};
use crate::hyperv::Hypervisor;
use crate::memory::Pfn;
use crate::testing::FakePlatform;
use crate::testing::model::dynamic_memory::{self as model_device, Control, Phase, Verdict};
use crate::testing::model::{self, Host, Personality};

const SOON: Deadline = Deadline::seconds(10);

/// All numbers of pages are multiples of this; fewer under Miri, where each page costs a thousand times as much.
const UNIT: u64 = if cfg!(miri) { 1 } else { 100 };
/// How long the device rests at first.
const REST: Duration = Duration::from_secs(if cfg!(miri) { 3 } else { 50 });
/// So often everybody looks at what is due.
const TICK: Duration = Duration::from_millis(if cfg!(miri) { 1000 } else { 250 });
/// What may be added.
const ADDED: PageRange = match PageRange::new(Pfn::new(1 << 23), if cfg!(miri) { 1 << 9 } else { 1 << 16 }) {
    Some(range) => range,
    None => panic!("not empty"),
};

/// The frame numbers of a small machine: holes of one page each hundred.
fn frames() -> impl Iterator<Item = u64> {
    (0x1000..0x1000 + 200 * UNIT).filter(|page| page % 100 != 0)
}

struct Machine {
    platform: &'static FakePlatform,
    host: &'static Host,
    hypervisor: &'static Hypervisor,
    control: Control,
    channel: u32,
    bus: Bus,
    driver: DynamicMemory<TestPool>,
    /// Set when the driver wants to run.
    is_woken: Arc<AtomicBool>,
}

impl Machine {
    fn new(personality: Personality, device: model_device::Config) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, model::Config::new(personality));
        let hypervisor: &'static Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).unwrap()));
        let (device, control) = model_device::DynamicMemory::new(device);
        let channel = host.offer_with(model_device::DynamicMemory::offer(), device);
        let mut pool = TestPool::with_free(frames());
        pool.used = (0..500).collect();
        pool.reserve = 10 * UNIT;
        pool.addable = Some(ADDED);
        Self {
            platform,
            host,
            hypervisor,
            control,
            channel,
            bus: connect(platform, host, hypervisor),
            driver: DynamicMemory::new(
                platform,
                Config {
                    request_delay: Duration::ZERO,
                    ..Config::default()
                },
                pool,
            )
            .unwrap(),
            is_woken: Arc::default(),
        }
    }

    /// A machine whose driver runs, past the time that the device rests at first.
    fn running(personality: Personality) -> Self {
        let device = model_device::Config {
            start_delay: REST,
            ..model_device::Config::default()
        };
        let mut machine = Self::new(personality, device);
        machine.attach();
        machine.pass(REST + Duration::from_secs(1));
        assert_eq!(machine.control.phase(), Phase::Idle);
        machine
    }

    fn attach(&mut self) {
        let is_woken = self.is_woken.clone();
        let wake = move || is_woken.store(true, Ordering::SeqCst);
        self.driver.attach(&self.bus, Instance::Any, wake, SOON).unwrap();
        self.settle();
    }

    fn now(&self) -> Instant {
        self.hypervisor.now()
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            let progress = self.driver.run(self.now());
            let host_worked = self.host.run();
            let is_more = self.bus.poll().is_more;
            let is_woken = self.is_woken.swap(false, Ordering::SeqCst);
            if progress != Progress::More && !host_worked && !is_more && !is_woken {
                return;
            }
        }
        panic!("no end: {:?}", self.driver.engine());
    }

    /// Lets time pass, and everybody does what is due.
    fn pass(&mut self, duration: Duration) {
        let until = self.now().saturating_add(duration);
        while self.now() < until {
            self.platform.advance(TICK);
            self.settle();
        }
    }

    fn free_pages(&self) -> u64 {
        self.driver.engine().pool().free.len() as u64
    }

    fn held(&self) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        let held = self.driver.engine().held();
        held.for_each_run(|run| runs.push((run.start().get(), run.page_count())));
        runs
    }

    /// Ends the connection; nothing is left behind.
    fn finish(mut self) {
        self.driver.detach(SOON).unwrap();
        drop(self.driver);
        self.bus.disconnect(Deadline::seconds(100)).unwrap();
        self.hypervisor.disable_hypercalls().unwrap();
        assert!(self.host.is_at_rest());
        self.host.assert_no_violations();
        self.platform.assert_no_faults();
    }
}

fn connect(platform: &'static FakePlatform, host: &'static Host, hypervisor: &'static Hypervisor) -> Bus {
    let bus = Bus::connect(hypervisor, platform, bus::Config::default()).unwrap();
    host.drive(&bus);
    bus
}

#[test]
fn each_host_balloons_unballoons_and_adds_memory() {
    for personality in [Personality::HyperV, Personality::Qemu, Personality::OpenVmm] {
        let mut machine = Machine::running(personality);
        assert_eq!(machine.control.version(), Some(ProtocolVersion::V3.0));
        assert_eq!(machine.control.capabilities(), Some([0x1f, 0, u64::MAX]));

        // 198 units of frames are free and ten are in reserve: more than that cannot be had.
        machine.control.balloon(100 * UNIT);
        machine.settle();
        assert_eq!(machine.control.ballooned_pages(), 100 * UNIT);
        assert_eq!(machine.control.ballooned_ranges(), machine.held());
        machine.control.balloon(1000 * UNIT);
        machine.settle();
        assert_eq!(machine.control.phase(), Phase::Idle);
        assert_eq!(machine.control.ballooned_pages(), 188 * UNIT);
        assert_eq!(machine.free_pages(), 10 * UNIT);

        // The figures: 500 in use, 188 units held, 10 in reserve.
        machine.pass(Duration::from_secs(2));
        let status = *machine.control.statuses().last().unwrap();
        assert_eq!(
            (status.available, status.committed),
            (10 * UNIT, 500 + (188 + 10) * UNIT)
        );

        machine.control.unballoon(150 * UNIT);
        machine.settle();
        assert_eq!(machine.control.ballooned_pages(), 38 * UNIT);
        assert_eq!(machine.control.ballooned_ranges(), machine.held());
        assert_eq!(machine.free_pages(), 160 * UNIT);
        let added = (ADDED.start().get(), ADDED.page_count());
        machine.control.hot_add(added, Some(added));
        machine.settle();
        assert_eq!(machine.control.hot_adds(), [(u32::try_from(added.1).unwrap(), 1)]);
        assert_eq!(machine.free_pages(), 160 * UNIT + added.1);
        assert_eq!(machine.driver.engine().counters().unexpected, 0);
        machine.finish();
    }
}

#[test]
fn reports_come_once_a_second_and_only_to_who_wants_them() {
    let mut machine = Machine::running(Personality::HyperV);
    let before = machine.control.statuses().len();
    machine.pass(Duration::from_secs(10));
    let after = machine.control.statuses().len();
    assert!((9..=11).contains(&(after - before)), "{before} to {after}");
    machine.finish();
}

#[test]
fn each_device_version_is_found() {
    for (max_version, asked) in [
        (0x2_0000, &[0x2_0000][..]),
        (0x1_0000, &[0x2_0000, 0x1_0000]),
        (3, &[0x2_0000, 0x1_0000, 3]),
    ] {
        let device = model_device::Config {
            max_version,
            ..model_device::Config::default()
        };
        let mut machine = Machine::new(Personality::HyperV, device);
        machine.attach();
        assert_eq!(machine.control.asked_versions(), asked);
        assert_eq!(
            machine.driver.engine().state(),
            State::Running {
                version: ProtocolVersion(max_version)
            }
        );
        machine.finish();
    }
}

#[test]
fn a_silent_or_unwilling_device_leaves_a_reason_and_a_clean_channel() {
    for (verdict, reason) in [(Verdict::None, "answer"), (Verdict::Refuse, "refused")] {
        let device = model_device::Config {
            capabilities: verdict,
            ..model_device::Config::default()
        };
        let mut machine = Machine::new(Personality::HyperV, device);
        machine.attach();
        machine.pass(Duration::from_secs(11));
        let State::Faulted(fault) = machine.driver.engine().state() else {
            panic!("{:?}", machine.driver.engine().state());
        };
        assert!(matches!(
            fault,
            Fault::NoAnswerToCapabilities { .. } | Fault::CapabilitiesRefused { .. }
        ));
        assert!(std::format!("{fault}").contains(reason), "{fault}");
        machine.finish();
    }
}

#[test]
fn q12_pages_stay_held_across_close_reopen_and_a_new_connection() {
    let mut machine = Machine::running(Personality::Qemu);
    machine.control.balloon(50 * UNIT);
    machine.settle();
    let held = machine.held();

    // Closed and opened again: the device forgets, we do not.
    machine.driver.detach(SOON).unwrap();
    assert_eq!(machine.held(), held);
    machine.attach();
    machine.pass(REST + Duration::from_secs(1));
    assert_eq!((machine.held(), machine.control.ballooned_pages()), (held.clone(), 0));
    machine.control.balloon(10 * UNIT);
    machine.settle();
    assert_eq!(machine.driver.engine().held().page_count(), 60 * UNIT);

    // Unloaded and connected again.
    machine.driver.detach(SOON).unwrap();
    machine.bus.disconnect(Deadline::seconds(100)).unwrap();
    machine.hypervisor.disable_hypercalls().unwrap();
    machine.bus = connect(machine.platform, machine.host, machine.hypervisor);
    machine.attach();
    machine.pass(REST + Duration::from_secs(1));
    assert_eq!(machine.driver.engine().held().page_count(), 60 * UNIT);
    // A host that remembers may give everything back.
    machine.control.unballoon_ranges(&held);
    machine.settle();
    assert_eq!(machine.driver.engine().held().page_count(), 10 * UNIT);
    machine.finish();
}

#[test]
fn q12_a_host_that_lies_gets_nothing_and_the_channel_goes_on() {
    let mut machine = Machine::running(Personality::HyperV);
    machine.control.balloon(5 * UNIT);
    machine.settle();
    let held = machine.held();
    // Pages in use, pages that do not exist, too many ranges, garbage.
    machine.control.unballoon_ranges(&[(10, UNIT), (1 << 39, 4 * UNIT)]);
    machine
        .control
        .send_raw(&[8, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    machine.control.send_raw(&[6, 0, 0xff, 0xff, 0, 0, 0, 0]);
    machine.control.send_raw(&[0xee; 40]);
    machine.settle();
    assert_eq!(machine.held(), held);
    let counters = machine.driver.engine().counters();
    assert_eq!((counters.unknown_pages, counters.malformed), (5 * UNIT, 3));
    machine.control.balloon(UNIT);
    machine.settle();
    assert_eq!(machine.control.ballooned_pages(), 6 * UNIT);
    machine.finish();
}

#[test]
fn a_rescind_ends_the_conversation_and_the_pages_stay_held() {
    let mut machine = Machine::running(Personality::HyperV);
    machine.control.balloon(5 * UNIT);
    machine.settle();
    machine.host.rescind(machine.channel);
    machine.settle();
    assert_eq!(machine.driver.engine().state(), State::Closed);
    assert_eq!(machine.driver.engine().held().page_count(), 5 * UNIT);
    machine.finish();
}
