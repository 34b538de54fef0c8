//! The whole way: a controller of the model of a host, over messages, interrupts and a real channel of the bus, which reaches the
//! guest's memory by the page numbers that it is given.

use std::sync::{Arc, Mutex};

use super::fake::{FakeDisk, Memory, SOON, Script, bytes_of, pattern};
use crate::bus::{Bus, Config};
use crate::device::storage::{Controller, Disk, Error, Lba, SCSI, attach};
use crate::hyperv::Hypervisor;
use crate::memory::{DmaBuffer, Mdl};
use crate::testing::FakePlatform;
use crate::testing::model::{self, Device, GuestRange, Host, HostChannel, Offer, Personality};

struct Guest<'a>(&'a HostChannel<'a>, GuestRange);

impl Memory for Guest<'_> {
    fn len(&self) -> usize {
        self.0.read_range(&self.1).len()
    }
    fn read(&self, target: &mut [u8]) {
        let bytes = self.0.read_range(&self.1);
        target.copy_from_slice(&bytes[..target.len()]);
    }
    fn write(&self, source: &[u8]) {
        let mut bytes = self.0.read_range(&self.1);
        bytes[..source.len()].copy_from_slice(source);
        self.0.write_range(&self.1, &bytes);
    }
}

/// A controller at the host's end of a channel.
struct Storage(Arc<Mutex<Script>>);

impl Device for Storage {
    fn signalled(&mut self, channel: &HostChannel<'_>) {
        self.run(channel);
    }

    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        let mut script = self.0.lock().unwrap();
        let mut has_worked = false;
        while !script.holds
            && let Some(packet) = channel.receive()
        {
            has_worked = true;
            let memory = packet.ranges().map(|mut ranges| {
                assert_eq!(ranges.len(), 1, "one range for each request");
                Guest(channel, ranges.remove(0))
            });
            let answer = script.answer_to(&packet.payload, memory.as_ref().map(|memory| memory as &dyn Memory));
            channel.send_completion(packet.transaction, &answer).unwrap();
        }
        has_worked
    }
}

struct Machine {
    platform: &'static FakePlatform,
    host: &'static Host,
    channel: u32,
    script: Arc<Mutex<Script>>,
    bus: Bus,
}

impl Machine {
    fn new(personality: Personality) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, model::Config::new(personality));
        let script = Arc::new(Mutex::new(Script::new([(2, FakeDisk::new(4096, 512))])));
        let offer = Offer::new(
            "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f",
            "5a17e5a1-0000-4000-8000-000000000007",
        );
        let channel = host.offer_with(offer, Storage(script.clone()));
        let hypervisor: &'static Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).unwrap()));
        let bus = Bus::connect(hypervisor, platform, Config::default()).unwrap();
        host.drive(&bus);
        Self {
            platform,
            host,
            channel,
            script,
            bus,
        }
    }

    fn disk(&self) -> (Controller, Disk) {
        let controller = attach(&self.bus, SCSI, SOON).unwrap();
        let disk = controller.wait_for_disk(SOON).unwrap();
        (controller, disk)
    }

    fn buffer(&self, len: usize) -> DmaBuffer {
        DmaBuffer::allocate(self.platform, len).unwrap()
    }

    fn settle(&self) {
        self.host.settle_with(&self.bus);
    }
}

#[test]
fn a_disk_on_a_real_channel_is_found_read_and_written_on_each_host() {
    for personality in [Personality::HyperV, Personality::OpenVmm] {
        let machine = Machine::new(personality);
        if cfg!(miri) {
            machine.script.lock().unwrap().max_transfer = 16 * 1024;
        }
        let (controller, disk) = machine.disk();
        assert_eq!((disk.address().lun, disk.blocks()), (2, 4096));
        // From inside a page, across several, longer than one command; both shorter under Miri.
        let len = if cfg!(miri) { 36 } else { 600 } * 1024;
        let whole = machine.buffer(len + 4096);
        let source = whole.slice(1000, len).unwrap();
        source.write_at(0, &pattern(len, 3)).unwrap();
        let source = disk.write(Lba(100), source, SOON).unwrap();
        assert_eq!(
            machine.script.lock().unwrap().disks[&2].data[100 * 512..100 * 512 + len],
            pattern(len, 3)
        );
        let target = disk.read(Lba(100), machine.buffer(len), SOON).unwrap();
        assert_eq!(bytes_of(&target), bytes_of(&source));
        // Scattered, copied, discarded, flushed.
        let part = |offset: usize| Mdl::from(machine.buffer(8192).slice(offset, 1024).unwrap());
        disk.read(Lba(7), Mdl::chain([part(5), part(3000)]).unwrap(), SOON)
            .unwrap();
        let mut copied = [0; 1024];
        disk.read_into(Lba(101), &mut copied, SOON).unwrap();
        assert_eq!(copied, pattern(len, 3)[512..1536]);
        disk.discard(Lba(0), 40, SOON).unwrap();
        disk.flush(SOON).unwrap();
        let stored = machine.script.lock().unwrap().disks[&2].clone();
        assert!(stored.durable == stored.data && stored.data[..40 * 512].iter().all(|byte| *byte == 0));
        drop((controller, disk));
        machine.settle();
        machine.host.assert_no_violations();
    }
}

#[test]
fn a_real_controller_that_is_withdrawn_with_requests_in_flight_is_gone_for_each_of_them() {
    let machine = Machine::new(Personality::HyperV);
    let (controller, disk) = machine.disk();
    machine.script.lock().unwrap().holds = true;
    let buffer = machine.buffer(4096);
    let reads: Vec<_> = (0..16).map(|_| disk.start_read(Lba(0), buffer.clone())).collect();
    let flush = disk.start_flush();
    machine.settle();
    machine.host.rescind(machine.channel);
    // No deferred work runs: the wait alone notices.
    for read in reads {
        let failed = read.wait(SOON).unwrap_err();
        assert_eq!((failed.error, failed.buffer.is_some()), (Error::ControllerGone, true));
    }
    assert_eq!(flush.wait(SOON).unwrap_err().error, Error::ControllerGone);
    machine.settle();
    assert!(buffer.is_sole_owner());
    assert!(!disk.is_present() && !controller.is_present());
    assert_eq!(disk.flush(SOON).unwrap_err(), Error::ControllerGone);
    drop((controller, disk));
    machine.settle();
    machine.host.assert_no_violations();
}
