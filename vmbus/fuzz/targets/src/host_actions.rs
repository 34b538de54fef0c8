//! A host that does anything, step by step, against a guest that does real work: it connects, opens channels, sends and asks,
//! shares memory, gives pages away and gets them back, closes, disconnects. Every request ends once, every wait ends in its time,
//! no page is returned that the host was not given, and in the end nothing is left.

use arbitrary::Arbitrary;
use vmbus::device::dynamic_memory::{self, DynamicMemory, Progress};
use vmbus::kmcl::{Channel, Instance};
use vmbus::protocol::Guid;
use vmbus::testing::model::dynamic_memory::{self as model, Control};

use crate::driver::{DisabledEnd, Driver, DriverStep, Log, fit};
use crate::host_steps::{CLASS_TEXT, HostStep, INSTANCES, offer};
use crate::input::input;
use crate::observe::{note, note_counter};
use crate::pool::{FIRST, Pool};
use crate::world::{Conduct, Nature, PATIENCE, SOON, Session};

#[derive(Arbitrary, Debug)]
struct Input {
    nature: Nature,
    before: Vec<HostStep>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Host(HostStep),
    Memory(MemoryStep),
    Driver {
        which: u8,
        step: DriverStep,
    },
    Open {
        instance: Option<u8>,
        quota: u8,
    },
    /// Opens again what was closed.
    Reopen,
    Close(u8),
    Drop(u8),
    AttachMemory,
    RunMemory(u8),
    DetachMemory,
    Settle,
    Reconnect,
}

/// What the host does with dynamic memory.
#[derive(Arbitrary, Debug)]
enum MemoryStep {
    Balloon(u16),
    Unballoon(u16),
    UnballoonRange { start: u16, count: u8 },
    HotAdd { start: u16, count: u16 },
    Bytes(Vec<u8>),
    Information(u16),
}

struct Guest {
    session: Session,
    drivers: Vec<Driver>,
    closed: Vec<DisabledEnd>,
    memory: Option<DynamicMemory<Pool>>,
    control: Control,
}

/// Host actions against a working guest.
pub fn host_actions(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    let mut session = Session::begin(input.nature);
    let host = session.world.host;
    host.offer_with(offer(0, 0), vmbus::testing::model::Echo);
    let (device, control) = model::DynamicMemory::new(model::Config {
        start_delay: core::time::Duration::ZERO,
        ..model::Config::default()
    });
    host.offer_with(model::DynamicMemory::offer(), device);
    for step in input.before.iter().take(8) {
        step.act(session.world);
    }
    session.connect();
    let mut guest = Guest {
        session,
        drivers: Vec::new(),
        closed: Vec::new(),
        memory: None,
        control,
    };
    for step in input.steps.iter().take(48) {
        guest.act(step);
    }
    guest.end();
}

impl Guest {
    fn act(&mut self, step: &Step) {
        let world = self.session.world;
        match step {
            Step::Host(step) => step.act(world),
            Step::Memory(step) => self.memory(step),
            Step::Driver { which, step } => {
                if let Some(index) = usize::from(*which).checked_rem(self.drivers.len()) {
                    self.drivers[index].act(step);
                }
            }
            Step::Open { instance, quota } => self.open(*instance, *quota),
            Step::Reopen => {
                if self.drivers.len() < 3
                    && let Some(channel) = self.closed.pop()
                {
                    self.enable(channel);
                }
            }
            Step::Close(which) => {
                if let Some(index) = usize::from(*which).checked_rem(self.drivers.len()) {
                    self.closed.extend(self.drivers.swap_remove(index).end());
                }
            }
            Step::Drop(which) => {
                if let Some(index) = usize::from(*which).checked_rem(self.drivers.len()) {
                    drop(self.drivers.swap_remove(index).end());
                }
            }
            Step::AttachMemory => self.attach_memory(),
            Step::RunMemory(times) => self.run_memory(u32::from(*times)),
            Step::DetachMemory => {
                if let Some(memory) = &mut self.memory
                    && let Err(error) = world.within(PATIENCE * 3, || memory.detach(SOON))
                {
                    note("kmcl::Error", &error);
                }
            }
            Step::Settle => self.session.settle(),
            Step::Reconnect => {
                self.close_all();
                self.session.disconnect();
                self.session.connect();
            }
        }
    }

    fn memory(&self, step: &MemoryStep) {
        let world = self.session.world;
        match step {
            MemoryStep::Balloon(pages) => self.control.balloon(u64::from(*pages)),
            MemoryStep::Unballoon(pages) => self.control.unballoon(u64::from(*pages)),
            MemoryStep::UnballoonRange { start, count } => {
                world.behaves(Conduct::Lying);
                self.control
                    .unballoon_ranges(&[(FIRST + u64::from(*start), u64::from(*count))]);
            }
            MemoryStep::HotAdd { start, count } => {
                world.behaves(Conduct::Lying);
                self.control
                    .hot_add((FIRST + u64::from(*start), u64::from(*count)), None);
            }
            MemoryStep::Bytes(bytes) => {
                world.behaves(Conduct::Lying);
                self.control.send_raw(bytes.get(..4000).unwrap_or(bytes));
            }
            MemoryStep::Information(pages) => self.control.send_information(u64::from(*pages)),
        }
    }

    fn open(&mut self, instance: Option<u8>, quota: u8) {
        let Some(bus) = self.session.bus() else { return };
        if self.drivers.len() >= 3 {
            return;
        }
        let class = Guid::literal(CLASS_TEXT);
        let instance = match instance {
            Some(instance) => Instance::Only(Guid::literal(INSTANCES[usize::from(instance) % INSTANCES.len()])),
            None => Instance::Any,
        };
        let Ok(channel) = Channel::allocate_client_with(bus, Log::default()) else {
            panic!("memory enough");
        };
        self.enable(fit(channel.init_set_target(class, instance), quota));
    }

    fn enable(&mut self, channel: DisabledEnd) {
        let world = self.session.world;
        match world.within(PATIENCE * 4, || channel.enable(SOON)) {
            Ok(channel) => self.drivers.push(Driver::new(world, channel)),
            Err(refused) => note("kmcl::Error", &refused.error),
        }
    }

    fn attach_memory(&mut self) {
        let world = self.session.world;
        let Some(bus) = self.session.bus() else { return };
        let memory = self.memory.get_or_insert_with(|| {
            let config = dynamic_memory::Config {
                request_delay: core::time::Duration::ZERO,
                ..dynamic_memory::Config::default()
            };
            match DynamicMemory::new(world.platform, config, Pool::new(64, 100)) {
                Ok(memory) => memory,
                Err(error) => panic!("memory enough: {error}"),
            }
        });
        if let Err(error) = world.within(PATIENCE * 4, || memory.attach(bus, Instance::Any, || (), SOON)) {
            note("kmcl::Error", &error);
        }
    }

    fn run_memory(&mut self, times: u32) {
        let now = self.session.hypervisor().now();
        let Some(memory) = &mut self.memory else { return };
        for _ in 0..times {
            let is_more = memory.run(now) == Progress::More;
            let worked = self.session.world.host.run();
            let is_more = is_more || self.session.bus().is_some_and(|bus| bus.poll().is_more);
            if !is_more && !worked {
                break;
            }
        }
        memory.engine().pool().check_count(memory.engine().held());
    }

    fn close_all(&mut self) {
        for driver in self.drivers.drain(..) {
            drop(driver.end());
        }
        self.closed.clear();
        if let Some(memory) = &mut self.memory {
            let world = self.session.world;
            for _ in 0..2 {
                if let Err(error) = world.within(PATIENCE * 3, || memory.detach(SOON)) {
                    note("kmcl::Error", &error);
                }
            }
        }
    }

    fn end(mut self) {
        self.session.settle();
        self.close_all();
        let Self {
            session,
            drivers,
            closed,
            memory,
            control,
        } = self;
        if let Some(memory) = memory {
            note_counter(
                "dynamic_memory",
                "ballooned_pages",
                memory.engine().counters().ballooned_pages,
            );
            let (pool, held) = memory.into_parts();
            pool.check(&held);
        }
        drop((drivers, closed, control));
        session.end();
    }
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
