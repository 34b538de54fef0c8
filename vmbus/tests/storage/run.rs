//! Carries a plan out.

use vmbus::device::storage::{self, Change, Controller, Disk, Error, Failed, Lba, SCSI, Transfer};
use vmbus::host::Host;
use vmbus::host::storage::{
    Address, Config, Controller as Server, Disk as ServerDisk, DiskConfig, Effect, Fault, Filter, MemoryDisk, Outcome,
    PowerCut, Provisioning, Version, WriteCache,
};
use vmbus::memory::{DmaBuffer, Mdl};
use vmbus::protocol::Guid;
use vmbus::testing::FakePlatform;
use vmbus::{Deadline, Instant};

use crate::model::{Covered, Model};
use crate::plan::{self, Plan, Request, Step, Trouble};

/// Longer than all retries.
const PATIENT: Deadline = Deadline::seconds(60);

struct Unit {
    address: Address,
    memory: MemoryDisk,
    server: ServerDisk,
    disk: Disk,
    model: Model,
    block: usize,
    blocks: u64,
    is_thin: bool,
}

struct Run<'a> {
    platform: &'static FakePlatform,
    host: Host,
    server: Server,
    client: Controller,
    units: Vec<Unit>,
    plan: &'a Plan,
    may_stall: bool,
}

/// A request in flight.
enum Flight {
    Read(usize, usize, Transfer<DmaBuffer>),
    Write(usize, usize, Vec<u8>, Transfer<Mdl>),
    Flush(usize, Covered, Transfer),
    Discard(Transfer),
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    // No two sectors alike, and no zero among them.
    (0..len)
        .map(|index| ((index % 251) as u8 ^ seed ^ (index / 512) as u8) | 1)
        .collect()
}

pub(crate) fn run(plan: &Plan) {
    let platform = FakePlatform::new();
    let mut run = Run::new(platform, plan);
    for step in &plan.steps {
        match step {
            Step::Batch {
                requests,
                troubles,
                shuffle,
            } => run.batch(requests, troubles, *shuffle),
            Step::PowerCut { disk, seed } => run.power_cut(*disk, *seed),
            Step::HotPlug { disk } => run.hot_plug(*disk),
        }
    }
    run.end();
    platform.assert_no_faults();
}

impl<'a> Run<'a> {
    fn new(platform: &'static FakePlatform, plan: &'a Plan) -> Self {
        let host = Host::new(platform, || Instant::from_reference_units(platform.look_at_clock())).unwrap();
        let config = Config {
            max_version: [Version::V6_2, Version::V6_0, Version::V5_1, Version::V4_2][plan.version],
            max_transfer_bytes: plan.max_transfer,
            queue_depth: plan.queue_depth,
            ..Config::default()
        };
        let server = Server::new(&host, config).unwrap();
        let mut disks = Vec::new();
        for disk in &plan.disks {
            let len = disk.blocks * u64::from(disk.block);
            let memory = MemoryDisk::new(platform, len, WriteCache::Volatile).unwrap();
            let made = ServerDisk::new(memory.clone(), disk_config(disk)).unwrap();
            server.attach(Address::lun(disk.lun), made.clone()).unwrap();
            disks.push((memory, made));
        }
        server.offer().unwrap();
        let config = storage::Config {
            commands: plan.commands,
            copy_buffer_len: 8192,
            ..storage::Config::default()
        };
        assert_eq!(config.class, SCSI);
        let client = storage::attach_with(&host, &config, || (), PATIENT).unwrap();
        let added = client.rescan(PATIENT).unwrap();
        assert_eq!(added.len(), plan.disks.len());
        let found = client.disks().unwrap();
        let units = plan
            .disks
            .iter()
            .zip(disks)
            .zip(found)
            .map(|((disk, (memory, server)), found)| Unit {
                address: Address::lun(disk.lun),
                memory,
                server,
                model: Model::new(usize::try_from(found.size_bytes()).unwrap()),
                block: disk.block as usize,
                blocks: disk.blocks,
                is_thin: disk.is_thin,
                disk: found,
            });
        Self {
            platform,
            units: units.collect(),
            host,
            server,
            client,
            plan,
            may_stall: false,
        }
    }

    /// The bytes that a request means: position and length.
    fn place(&self, unit: usize, at: u16, len: u16) -> (usize, usize) {
        let unit = &self.units[unit];
        let blocks = usize::try_from(unit.blocks).unwrap();
        let first = usize::from(at) * blocks / 65536;
        let count = (usize::from(len) * blocks).div_ceil(65536).min(blocks - first);
        (first * unit.block, count * unit.block)
    }

    fn lba(&self, unit: usize, at: usize) -> Lba {
        Lba((at / self.units[unit].block) as u64)
    }

    fn batch(&mut self, requests: &[Request], troubles: &[(Trouble, u8)], shuffle: Option<u64>) {
        for (trouble, after) in troubles {
            let fault = Fault::new(Filter::any(), effect(*trouble)).after(u32::from(*after));
            self.server.inject(fault).unwrap();
        }
        let may_fail = troubles.iter().any(|(trouble, _)| trouble.may_fail());
        // Nobody releases what is held while the only task waits.
        self.may_stall = troubles
            .iter()
            .any(|(trouble, _)| matches!(trouble, Trouble::Held | Trouble::AnswerHeld));
        // Answers that are held come when they are released, and nobody waits for them before.
        if shuffle.is_some() {
            self.server.hold();
        }
        let mut flights = Vec::new();
        for request in requests {
            self.start(request, &mut flights, may_fail);
        }
        if let Some(seed) = shuffle {
            self.host.process();
            self.release(seed);
        }
        self.finish(&mut flights, may_fail);
        self.server.clear_faults();
        self.drain();
    }

    /// Has all that is held answered, and what comes behind it: nothing of it comes later.
    fn drain(&self) {
        self.server.resume();
        self.host.process();
        while self.server.held_count() > 0 {
            self.server.resume();
            self.host.process();
        }
    }

    /// Answers what is held, in some order.
    fn release(&self, mut seed: u64) {
        let mut held = Vec::new();
        while let Some(next) = self.server.next_held(held.last().copied()) {
            held.push(next.number);
        }
        while !held.is_empty() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let index = usize::try_from(seed >> 33).unwrap() % held.len();
            assert!(self.server.release(held.swap_remove(index)));
        }
        self.server.resume();
        self.host.process();
    }

    /// Waits for those that touch the same bytes: who needs an order waits.
    fn make_way(
        &mut self,
        flights: &mut Vec<Flight>,
        unit: usize,
        at: usize,
        len: usize,
        writes: bool,
        may_fail: bool,
    ) {
        let meets = |flight: &Flight| match flight {
            // Where a read ends is only known when it has ended.
            Flight::Read(other, from, _) => writes && *other == unit && *from < at + len,
            Flight::Write(other, from, data, _) => *other == unit && *from < at + len && at < *from + data.len(),
            Flight::Flush(..) => false,
            Flight::Discard(_) => true,
        };
        if flights.iter().any(meets) {
            self.server.resume();
            self.finish(flights, may_fail);
        }
    }

    fn start(&mut self, request: &Request, flights: &mut Vec<Flight>, may_fail: bool) {
        match *request {
            Request::Read { disk, at, len, offset } => {
                let (at, len) = self.place(disk, at, len);
                self.make_way(flights, disk, at, len, false, may_fail);
                let whole = DmaBuffer::allocate(self.platform, 4096 + len).unwrap();
                let buffer = whole.slice(usize::from(offset), len).unwrap();
                flights.push(Flight::Read(
                    disk,
                    at,
                    self.units[disk].disk.start_read(self.lba(disk, at), buffer),
                ));
            }
            Request::Write {
                disk,
                at,
                len,
                offset,
                seed,
            } => {
                let (at, len) = self.place(disk, at, len);
                self.make_way(flights, disk, at, len, true, may_fail);
                let whole = DmaBuffer::allocate(self.platform, 4096 + len).unwrap();
                let buffer = whole.slice(usize::from(offset), len).unwrap();
                self.start_write(flights, disk, at, bytes(len, seed), buffer.into());
            }
            Request::WriteScattered { disk, at, len, seed } => {
                let (at, len) = self.place(disk, at, len);
                self.make_way(flights, disk, at, len, true, may_fail);
                let first = len / self.units[disk].block / 2 * self.units[disk].block;
                let part = |len: usize| {
                    let whole = DmaBuffer::allocate(self.platform, 4096 + len).unwrap();
                    Mdl::from(whole.slice(77, len).unwrap())
                };
                let mdl = Mdl::chain([part(first), part(len - first)]).unwrap();
                self.start_write(flights, disk, at, bytes(len, seed), mdl);
            }
            Request::CopyIn { disk, at, len } => {
                let (at, len) = self.place(disk, at, len);
                self.make_way(flights, disk, at, len, false, may_fail);
                self.server.resume();
                let mut target = vec![0; len];
                let result = self.units[disk]
                    .disk
                    .read_into(self.lba(disk, at), &mut target, PATIENT);
                if self.judge(result, may_fail) {
                    self.units[disk].model.check_read(at, &target);
                }
            }
            Request::CopyOut { disk, at, len, seed } => {
                let (at, len) = self.place(disk, at, len);
                self.make_way(flights, disk, at, len, true, may_fail);
                self.server.resume();
                let source = bytes(len, seed);
                self.units[disk].model.begin_write(at, &source);
                let result = self.units[disk].disk.write_from(self.lba(disk, at), &source, PATIENT);
                let is_done = self.judge(result, may_fail);
                self.units[disk].model.end_write(at, &source, is_done);
            }
            Request::Flush { disk } => {
                let covered = self.units[disk].model.begin_flush();
                flights.push(Flight::Flush(disk, covered, self.units[disk].disk.start_flush()));
            }
            Request::Discard { disk, at, len } => {
                let (at, len) = self.place(disk, at, len);
                self.server.resume();
                self.finish(flights, may_fail);
                let unit = &mut self.units[disk];
                let count = (len / unit.block) as u64;
                let transfer = unit.disk.start_discard(Lba((at / unit.block) as u64), count);
                if unit.is_thin {
                    unit.model.discard(at, len);
                    flights.push(Flight::Discard(transfer));
                } else {
                    assert_eq!(transfer.wait(PATIENT).unwrap_err().error, Error::Unsupported);
                }
            }
        }
    }

    fn start_write(&mut self, flights: &mut Vec<Flight>, unit: usize, at: usize, data: Vec<u8>, mdl: Mdl) {
        mdl.write_at(0, &data).unwrap();
        self.units[unit].model.begin_write(at, &data);
        let transfer = self.units[unit].disk.start_write(self.lba(unit, at), mdl);
        flights.push(Flight::Write(unit, at, data, transfer));
    }

    fn finish(&mut self, flights: &mut Vec<Flight>, may_fail: bool) {
        // Not in the order in which they began.
        for flight in flights.drain(..).rev() {
            match flight {
                Flight::Read(unit, at, transfer) => {
                    if let Some(buffer) = self.settle(transfer, may_fail) {
                        let mut data = vec![0; buffer.len()];
                        buffer.read_at(0, &mut data).unwrap();
                        assert!(buffer.is_sole_owner(), "the host still has it");
                        self.units[unit].model.check_read(at, &data);
                    }
                }
                Flight::Write(unit, at, data, transfer) => {
                    let mdl = self.settle(transfer, may_fail);
                    if let Some(mdl) = &mdl {
                        let mut after = vec![0; mdl.len()];
                        mdl.read_at(0, &mut after).unwrap();
                        assert_eq!(after, data, "a write changes nothing in memory");
                    }
                    self.units[unit].model.end_write(at, &data, mdl.is_some());
                }
                Flight::Flush(unit, covered, transfer) => {
                    if self.settle(transfer, may_fail).is_some() {
                        self.units[unit].model.end_flush(&covered);
                    }
                }
                Flight::Discard(transfer) => {
                    self.settle(transfer, may_fail);
                }
            }
        }
    }

    /// Waits; what is held is released once time is up for the first time, because the host answers in the end.
    fn settle<B: storage::Lend>(&self, transfer: Transfer<B>, may_fail: bool) -> Option<B> {
        self.drain();
        match transfer.wait(PATIENT) {
            Ok(buffer) => Some(buffer),
            Err(Failed { error, buffer }) => {
                let is_stalled = self.may_stall && error == Error::TimedOut;
                assert!(may_fail || is_stalled, "failed without a reason: {error}");
                assert_eq!(
                    buffer.is_none(),
                    error == Error::TimedOut,
                    "{error}: who has the memory?"
                );
                self.drain();
                None
            }
        }
    }

    fn judge(&self, result: Result<(), Error>, may_fail: bool) -> bool {
        if let Err(error) = result {
            let is_stalled = self.may_stall && error == Error::TimedOut;
            assert!(may_fail || is_stalled, "failed without a reason: {error}");
        }
        self.drain();
        result.is_ok()
    }

    fn power_cut(&mut self, unit: usize, seed: Option<u64>) {
        let unit = &mut self.units[unit];
        unit.memory
            .cut_power(seed.map_or(PowerCut::LosesAll, PowerCut::LosesSome));
        let mut data = vec![0; usize::try_from(unit.disk.size_bytes()).unwrap()];
        unit.memory.read_at(0, &mut data).unwrap();
        unit.model.check_after_power_cut(&data);
    }

    fn hot_plug(&mut self, index: usize) {
        let unit = &mut self.units[index];
        let taken = self.server.detach(unit.address).unwrap();
        let _ = self.host.process();
        // Whether the host's word or the request's failure comes first.
        assert_eq!(unit.disk.flush(PATIENT).unwrap_err(), Error::DiskGone);
        assert!(!unit.disk.is_present());
        let changes = self.client.rescan(PATIENT).unwrap();
        assert!(matches!(&changes[..], [Change::Removed(disk)] if disk.address().lun == unit.address.lun));
        self.server.attach(unit.address, taken).unwrap();
        let _ = self.host.process();
        assert!(self.client.needs_rescan());
        let changes = self.client.rescan(PATIENT).unwrap();
        let [Change::Added(disk)] = &changes[..] else {
            panic!("{changes:?}")
        };
        unit.disk = disk.clone();
    }

    /// All is well again: every disk holds what the model says, and nothing is left behind.
    fn end(mut self) {
        for index in 0..self.units.len() {
            let unit = &mut self.units[index];
            unit.disk.flush(PATIENT).unwrap();
            let covered = unit.model.begin_flush();
            let len = usize::try_from(unit.disk.size_bytes()).unwrap();
            let mut data = vec![0; len];
            unit.disk.read_into(Lba(0), &mut data, PATIENT).unwrap();
            unit.model.check_read(0, &data);
            unit.model.end_flush(&covered);
            unit.memory.cut_power(PowerCut::LosesAll);
            let mut kept = vec![0; len];
            unit.memory.read_at(0, &mut kept).unwrap();
            assert_eq!(data, kept, "what was flushed is there");
            assert_eq!(unit.server.blocks(), self.plan.disks[index].blocks);
        }
        assert_eq!(self.server.first_violation(), None);
        // The controller goes with requests in flight.
        self.server.hold();
        let disk = self.units[0].disk.clone();
        let buffer = DmaBuffer::allocate(self.platform, disk.block_len() as usize).unwrap();
        let reads: Vec<_> = (0..8).map(|_| disk.start_read(Lba(0), buffer.clone())).collect();
        let _ = self.host.process();
        self.server.revoke(PATIENT).unwrap();
        let _ = self.host.process();
        for read in reads {
            let failed = read.wait(PATIENT).unwrap_err();
            assert_eq!((failed.error, failed.buffer.is_some()), (Error::ControllerGone, true));
        }
        assert!(buffer.is_sole_owner() && !disk.is_present());
        let Self {
            platform,
            host,
            server,
            client,
            units,
            ..
        } = self;
        drop((disk, buffer, units, client, server, host));
        assert_eq!(platform.live_pages(), 0, "pages left behind");
    }
}

fn disk_config(disk: &plan::Disk) -> DiskConfig {
    let mut id = [7; 16];
    id[0] = disk.lun;
    DiskConfig {
        block_bytes: disk.block,
        id: Guid::from_wire(id),
        provisioning: if disk.is_thin {
            Provisioning::Thin {
                max_blocks: 16,
                max_ranges: 1,
                granularity: 1,
            }
        } else {
            Provisioning::Full
        },
        write_cache: WriteCache::Volatile,
        ..DiskConfig::default()
    }
}

fn effect(trouble: Trouble) -> Effect {
    match trouble {
        Trouble::UnitAttention => Effect::Answer(Outcome::unit_attention(0x29, 0)),
        Trouble::AbortedAttention => Effect::Answer(Outcome::aborted_attention(0x2a, 1)),
        Trouble::Busy => Effect::Answer(Outcome::busy()),
        Trouble::TaskSetFull => Effect::Answer(Outcome::task_set_full()),
        Trouble::Reset => Effect::Answer(Outcome::of(0x0e, 0)),
        Trouble::NotReady => Effect::Answer(Outcome::not_ready(4, 1)),
        Trouble::Reserved => Effect::Answer(Outcome::reservation_conflict()),
        Trouble::Medium => Effect::Answer(Outcome::medium_error(0)),
        Trouble::Hardware => Effect::Answer(Outcome::hardware_error()),
        Trouble::DoneAndBusy => Effect::ExecuteAndAnswer(Outcome::busy()),
        Trouble::DoneAndMedium => Effect::ExecuteAndAnswer(Outcome::medium_error(1)),
        Trouble::Short => Effect::Short(512),
        Trouble::Held => Effect::Hold,
        Trouble::AnswerHeld => Effect::HoldAnswer,
        Trouble::Never => Effect::NeverAnswer,
        Trouble::Twice => Effect::AnswerTwice,
        Trouble::Stray => Effect::StrayAnswer(0xffff_ffff_0000_0001),
        Trouble::Garbage => Effect::rewrite(|answer| {
            answer.put(0, &[0xff; 4]);
        })
        .unwrap(),
    }
}
