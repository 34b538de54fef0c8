//! A guest, the model of a host at its other side, and what has to hold when both have come to their end.
//!
//! Each thread has one platform and one host, which begin anew with each run: making them would cost more than the run.
#![expect(unsafe_code, reason = "ends what the crate takes to live for ever")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Mutex, PoisonError};

use arbitrary::Arbitrary;
use vmbus::bus::{Bus, Config};
use vmbus::hyperv::Hypervisor;
use vmbus::protocol::Version;
use vmbus::testing::model::{self, Host, Personality};
use vmbus::testing::{FakePlatform, TestHeap};
use vmbus::{Deadline, bus};

use crate::observe::{is_recording, note, note_counter};

/// How the host has behaved so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Conduct {
    /// It may refuse.
    Fair,
    /// It was silent, late, or did not take what was posted.
    Rough,
    /// It said or wrote what is not so: what the model knows of the guest no longer proves anything.
    Lying,
}

/// A thread's platform and host.
pub(crate) struct World {
    pub(crate) platform: &'static FakePlatform,
    pub(crate) host: &'static Host,
    bus: Mutex<Option<Bus>>,
    conduct: AtomicU8,
    /// How far the host's steps moved the clock on.
    jumped: AtomicU64,
}

impl World {
    fn new() -> &'static Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, model::Config::new(Personality::HyperV));
        let world: &'static Self = Box::leak(Box::new(Self {
            platform,
            host,
            bus: Mutex::new(None),
            conduct: AtomicU8::new(0),
            jumped: AtomicU64::new(0),
        }));
        host.set_interrupt_handler(move |processor, _| {
            if let Some(bus) = world.bus() {
                bus.acknowledge_interrupt(processor);
            }
        });
        platform.set_deferred_handler(move |processor| {
            if let Some(bus) = world.bus() {
                bus.process(processor);
            }
        });
        world
    }

    fn get() -> &'static Self {
        std::thread_local!(static WORLD: &'static World = World::new());
        WORLD.with(|world| *world)
    }

    /// Returns this thread's platform of its own, to which no host is attached: for what needs none.
    pub(crate) fn alone() -> &'static Self {
        std::thread_local!(static WORLD: &'static World = World::new());
        WORLD.with(|world| *world)
    }

    /// Gives all memory of the platform back. Nobody has any of it any more.
    pub(crate) fn start_over(&self) {
        self.jumped.store(0, Ordering::Relaxed);
        // SAFETY: as the caller knows; runs end with this.
        unsafe { self.platform.start_over() };
    }

    fn bus(&self) -> Option<Bus> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how the host behaves.
    pub(crate) fn behaves(&self, conduct: Conduct) {
        self.conduct.fetch_max(conduct as u8, Ordering::Relaxed);
    }

    pub(crate) fn conduct(&self) -> Conduct {
        match self.conduct.load(Ordering::Relaxed) {
            0 => Conduct::Fair,
            1 => Conduct::Rough,
            _ => Conduct::Lying,
        }
    }

    /// Lets time pass.
    pub(crate) fn jump(&self, milliseconds: u16) {
        self.jumped
            .fetch_add(u64::from(milliseconds) * 10_000, Ordering::Relaxed);
        self.platform.advance(Duration::from_millis(u64::from(milliseconds)));
    }

    /// Runs a call of the guest that ends, on its own clock, within `limit` and a moment.
    #[track_caller]
    pub(crate) fn within<R>(&self, limit: Duration, call: impl FnOnce() -> R) -> R {
        let time = || self.platform.time() - self.jumped.load(Ordering::Relaxed);
        let begin = time();
        let result = call();
        let spent = Duration::from_nanos((time() - begin).saturating_mul(100));
        assert!(spent <= limit + MOMENT, "a call that may take {limit:?} took {spent:?}");
        result
    }
}

/// What a call may take besides what it waits.
const MOMENT: Duration = Duration::from_millis(1500);

/// How long each call of the guest may wait.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);
pub(crate) const SOON: Deadline = Deadline::After(PATIENCE);

/// What the host is like.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Nature {
    personality: u8,
    version: u8,
    is_slow: bool,
    no_echo: bool,
    extra_features: u8,
    ring_features: bool,
}

impl Nature {
    fn config(self) -> model::Config {
        let personality = match self.personality % 4 {
            0 | 1 => Personality::HyperV,
            2 => Personality::OpenVmm,
            _ => Personality::Qemu,
        };
        let mut config = model::Config::new(personality);
        let newest = Version::LADDER[usize::from(self.version) % Version::LADDER.len()].to_wire();
        config.max_version = config.max_version.min(newest);
        if self.is_slow {
            config.pace = model::Pace::Later;
        }
        if self.no_echo {
            config.echo = model::VersionEcho::Absent;
        }
        config.extra_features = u32::from(self.extra_features);
        config.ring_feature_bits = u32::from(self.ring_features);
        config
    }
}

fn guest_config() -> Config {
    Config {
        contact_timeout: PATIENCE,
        offers_timeout: PATIENCE,
        post_timeout: PATIENCE,
        unload_timeout: PATIENCE,
        emergency_timeout: PATIENCE,
        rescind_grace: Some(Duration::from_millis(500)),
        offers: 8,
        channel_ids: 64,
        requests: 6,
        gpadls: 12,
        ..Config::default()
    }
}

/// One run: from nothing to nothing.
pub(crate) struct Session {
    pub(crate) world: &'static World,
    hypervisor: NonNull<Hypervisor>,
    bus: Option<Bus>,
    live_before: (isize, isize),
    /// The host may have kept memory, so that it is lost.
    may_have_lost: bool,
}

impl Session {
    pub(crate) fn begin(nature: Nature) -> Self {
        let world = World::get();
        let live_before = TestHeap::live();
        world.conduct.store(0, Ordering::Relaxed);
        world.jumped.store(0, Ordering::Relaxed);
        world.host.start_over(nature.config());
        let Ok(hypervisor) = Hypervisor::detect_on(world.host) else {
            panic!("the model is a hypervisor");
        };
        Self {
            world,
            hypervisor: NonNull::from(Box::leak(Box::new(hypervisor))),
            bus: None,
            live_before,
            may_have_lost: false,
        }
    }

    pub(crate) const fn hypervisor(&self) -> &'static Hypervisor {
        // SAFETY: freed in `end` only, when nobody is left who has it.
        unsafe { self.hypervisor.as_ref() }
    }

    /// Returns the bus, if it is connected or was.
    pub(crate) const fn bus(&self) -> Option<&Bus> {
        self.bus.as_ref()
    }

    /// Connects if there is no bus.
    pub(crate) fn connect(&mut self) {
        if self.bus.is_some() {
            return;
        }
        let world = self.world;
        // One contact for each version, each posted and answered in its time; then the offers.
        let limit = PATIENCE * 24;
        let result = world.within(limit, || {
            Bus::connect(self.hypervisor(), world.platform, guest_config())
        });
        match result {
            Ok(bus) => {
                self.may_have_lost |= bus.version() < Version::V3_0;
                *world.bus.lock().unwrap_or_else(PoisonError::into_inner) = Some(bus.clone());
                self.bus = Some(bus);
            }
            Err(error) => {
                note("ConnectError", &error);
                self.may_have_lost = true;
                assert!(
                    world.conduct() > Conduct::Fair || matches!(error, bus::ConnectError::NoCommonVersion { .. }),
                    "a fair host, and no connection: {error}"
                );
            }
        }
    }

    /// Lets both work until nothing is left to do now.
    pub(crate) fn settle(&self) {
        for _ in 0..200 {
            let worked = self.world.host.run();
            let is_more = self.bus.as_ref().is_some_and(|bus| bus.poll().is_more);
            if !worked && !is_more {
                return;
            }
        }
        assert!(
            self.world.conduct() > Conduct::Fair,
            "host and guest keep each other busy"
        );
    }

    /// Ends the connection. Everything of the guest's that stands on it has been dropped, or will be before `end`.
    pub(crate) fn disconnect(&mut self) {
        let Some(bus) = self.bus.take() else { return };
        let result = self.world.within(PATIENCE * 4, || bus.disconnect(SOON));
        if let Err(error) = &result {
            note("Error", error);
            assert!(self.world.conduct() > Conduct::Fair, "a fair host, and no end: {error}");
        }
        self.may_have_lost |= result.is_err();
        counters(&bus.counters());
        self.may_have_lost |= bus.counters().lost_blocks > 0;
        let _ = bus.poll();
        *self.world.bus.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends the run, and checks that nothing is left of it.
    pub(crate) fn end(mut self) {
        self.disconnect();
        let world = self.world;
        let _ = world.platform.take_deferred();
        // SAFETY: made from a box; the bus and all that stood on it is gone, so nobody has it any more.
        drop(unsafe { Box::from_raw(self.hypervisor.as_ptr()) });
        judge(world, self.may_have_lost);
        world.host.start_over(model::Config::new(Personality::HyperV));
        world.start_over();
        if !self.may_have_lost && !is_recording() {
            assert_eq!(TestHeap::live(), self.live_before, "the heap is as it was");
        }
    }
}

fn judge(world: &World, may_have_lost: bool) {
    let conduct = world.conduct();
    for fault in world.platform.faults() {
        // The model reaches for what the guest took back because of a lie: that is the model's own mistake.
        let is_host = fault.starts_with("the host's access failed");
        assert!(is_host && conduct == Conduct::Lying, "{fault}");
    }
    for violation in world.host.violations() {
        // True whatever the host says.
        let is_own = [
            "M13",
            "B1)",
            "B7",
            "HvPostMessage",
            "HvSignalEvent",
            "hypercall",
            "R13",
            "register",
        ]
        .iter()
        .any(|part| violation.contains(part))
            // What lies in a ring, a lying host may have written itself.
            && !(conduct == Conduct::Lying && violation.starts_with("channel "));
        // True as long as it does not lie.
        let is_claim = violation.contains("G3") && conduct < Conduct::Lying;
        assert!(!is_own && !is_claim && conduct > Conduct::Fair, "{violation}");
    }
    if !may_have_lost {
        assert_eq!(world.platform.live_pages(), 0, "pages are left");
        if conduct == Conduct::Fair {
            assert!(world.host.is_at_rest(), "something of the guest is left with the host");
        }
    }
}

fn counters(counters: &bus::Counters) {
    for (name, value) in [
        ("unknown_messages", counters.unknown_messages),
        ("short_messages", counters.short_messages),
        ("stray_replies", counters.stray_replies),
        ("refused_offers", counters.refused_offers),
        ("excess_offers", counters.excess_offers),
        ("stray_rescinds", counters.stray_rescinds),
        ("stray_signals", counters.stray_signals),
        ("busy_posts", counters.busy_posts),
        ("parked_blocks", counters.parked_blocks),
        ("unparked_blocks", counters.unparked_blocks),
        ("lost_blocks", counters.lost_blocks),
    ] {
        note_counter("bus", name, value);
    }
}
