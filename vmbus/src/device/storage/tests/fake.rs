//! A controller in this process that does as a test says. It speaks bytes: none of the driver's structures.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::storage::{Config, Controller, Disk, SCSI, attach, attach_with};
use crate::host::Host;
use crate::kmcl::{Channel, ExternalData, IncomingPacket, Instance};
use crate::memory::DmaBuffer;
use crate::protocol::Guid;
use crate::test_platform::TestPlatform;
use crate::{Deadline, Instant};

pub(super) const SOON: Deadline = Deadline::seconds(5);
pub(super) const INSTANCE: Guid = Guid::literal("00000000-0001-8899-0000-000000000000");

/// A disk in memory; blocks beyond the memory read as zeros.
#[derive(Clone)]
pub(super) struct FakeDisk {
    pub(super) block: usize,
    pub(super) blocks: u64,
    pub(super) data: Vec<u8>,
    /// What a flush has made durable.
    pub(super) durable: Vec<u8>,
    pub(super) serial: &'static str,
    pub(super) device_type: u8,
    pub(super) protected: bool,
    pub(super) unmap: bool,
    pub(super) has_capacity_16: bool,
    pub(super) has_pages: bool,
}

impl FakeDisk {
    pub(super) fn new(blocks: u64, block: usize) -> Self {
        let len = usize::try_from(blocks).unwrap_or(usize::MAX).min(4096) * block;
        Self {
            block,
            blocks,
            data: if cfg!(miri) {
                repeated(0..251, len)
            } else {
                (0..len).map(|index| (index / block * 7 + index % 251) as u8).collect()
            },
            durable: Vec::new(),
            serial: "SERIAL-1",
            device_type: 0,
            protected: false,
            unmap: true,
            has_capacity_16: true,
            has_pages: true,
        }
    }
}

/// How a command ends.
#[derive(Clone, Default)]
pub(super) struct Ending {
    /// In the packet's header.
    pub(super) status: u32,
    pub(super) srb: u8,
    pub(super) scsi: u8,
    pub(super) sense: Vec<u8>,
    /// Instead of what was really transferred.
    pub(super) transferred: Option<u32>,
    /// The data is transferred before the command ends so.
    pub(super) is_done: bool,
}

pub(super) fn ending(srb: u8, scsi: u8) -> Ending {
    Ending {
        srb,
        scsi,
        ..Ending::default()
    }
}

/// Fixed sense data, flagged as valid.
pub(super) fn sense(key: u8, code: u8, qualifier: u8) -> Ending {
    let mut sense = vec![0; 18];
    (sense[0], sense[2], sense[7], sense[12], sense[13]) = (0x70, key, 10, code, qualifier);
    Ending {
        sense,
        ..ending(0x84, 2)
    }
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) operation: u8,
    pub(super) lun: u8,
    pub(super) cdb: Vec<u8>,
    pub(super) transfer: u32,
    pub(super) time_out: u32,
    pub(super) packet_len: usize,
    pub(super) is_external: bool,
}

pub(super) struct Script {
    pub(super) versions: Vec<u16>,
    pub(super) max_transfer: u32,
    pub(super) disks: BTreeMap<u8, FakeDisk>,
    pub(super) reports_luns: bool,
    /// For the next commands with this operation code, in order.
    pub(super) faults: VecDeque<(u8, Ending)>,
    /// Instead of an answer, for the next command.
    pub(super) raw_answer: Option<Vec<u8>>,
    /// Answers to the steps of the initialisation, instead of success.
    pub(super) init_status: BTreeMap<u32, u32>,
    pub(super) seen: Vec<Seen>,
    pub(super) steps: Vec<u32>,
    pub(super) holds: bool,
    held: Vec<IncomingPacket<Shared>>,
    next_step: u32,
}

/// Memory that a request lends.
pub(super) trait Memory {
    fn len(&self) -> usize;
    fn read(&self, target: &mut [u8]);
    fn write(&self, source: &[u8]);
}

impl Memory for ExternalData<'_> {
    fn len(&self) -> usize {
        self.len()
    }
    fn read(&self, target: &mut [u8]) {
        self.read_at(0, target).unwrap();
    }
    fn write(&self, source: &[u8]) {
        self.write_at(0, source).unwrap();
    }
}

type Shared = Arc<Mutex<Script>>;

/// The controller, its host, and a clock that goes on a little with each look.
pub(super) struct Fake {
    pub(super) host: Host,
    pub(super) platform: &'static TestPlatform,
    pub(super) server: Option<Channel<Shared>>,
    script: Shared,
    pub(super) clock: Arc<AtomicU64>,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Fake {
    pub(super) fn new(disks: impl IntoIterator<Item = (u8, FakeDisk)>) -> Self {
        Self::of_class(SCSI, INSTANCE, disks)
    }

    pub(super) fn of_class(class: Guid, instance: Guid, disks: impl IntoIterator<Item = (u8, FakeDisk)>) -> Self {
        let platform = TestPlatform::leak();
        let clock = Arc::new(AtomicU64::new(1));
        let looks = clock.clone();
        // 10 us for each look, 1 ms where a look takes that long.
        let step = if cfg!(miri) { 10_000 } else { 100 };
        let now = move || Instant::from_reference_units(looks.fetch_add(step, Ordering::Relaxed));
        let host = Host::new(platform, now).unwrap();
        let script = Arc::new(Mutex::new(Script::new(disks)));
        let server = Channel::allocate_server_with(&host, script.clone())
            .unwrap()
            .init_set_target_interface_id(class, instance)
            .init_set_maximum_packet_size(64)
            .unwrap()
            .init_set_maximum_external_data(2 << 20, 8)
            .unwrap()
            .init_set_transaction_quota(if cfg!(miri) { 80 } else { 256 })
            .init_set_ring_buffer_page_count(16, 16)
            .init_set_process_packet_callback(|_, packet| {
                let script = packet.channel().context().clone();
                let mut script = script.lock().unwrap();
                if script.holds {
                    script.held.push(packet);
                } else {
                    script.answer(packet);
                }
            })
            .enable(SOON)
            .unwrap();
        Self {
            host,
            platform,
            server: Some(server),
            script,
            clock,
        }
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(super) fn attach(&self) -> Controller {
        attach(&self.host, SCSI, SOON).unwrap()
    }

    pub(super) fn attach_with(&self, config: Config) -> Controller {
        attach_with(
            &self.host,
            &Config {
                instance: Instance::Any,
                ..config
            },
            || (),
            SOON,
        )
        .unwrap()
    }

    /// A controller with one disk.
    pub(super) fn disk(&self) -> Disk {
        let disk = self.attach().wait_for_disk(SOON).unwrap();
        self.script().seen.clear();
        disk
    }

    pub(super) fn buffer(&self, len: usize) -> DmaBuffer {
        DmaBuffer::allocate(self.platform, len).unwrap()
    }

    /// A buffer with bytes that no fresh disk has.
    pub(super) fn pattern(&self, len: usize, seed: u8) -> DmaBuffer {
        let buffer = self.buffer(len);
        buffer.write_at(0, &pattern(len, seed)).unwrap();
        buffer
    }

    /// Sends a packet of the controller's own accord.
    pub(super) fn notify(&self, bytes: &[u8]) {
        self.server.as_ref().unwrap().send(bytes).unwrap();
        self.host.process();
    }

    /// Answers what was held, in the order that `order` makes of it.
    pub(super) fn release(&self, order: impl FnOnce(&mut Vec<IncomingPacket<Shared>>)) {
        let mut held = core::mem::take(&mut self.script().held);
        order(&mut held);
        for packet in held {
            let mut script = self.script();
            script.answer(packet);
        }
    }

    pub(super) fn held(&self) -> usize {
        self.script().held.len()
    }

    pub(super) fn fault(&self, operation: u8, ending: Ending) {
        self.script().faults.push_back((operation, ending));
    }

    /// Takes the offer back.
    pub(super) fn revoke(&mut self) {
        let held = core::mem::take(&mut self.script().held);
        drop(held);
        self.server.take().unwrap().disable(SOON).unwrap();
        self.host.process();
    }

    pub(super) fn seen(&self, operation: u8) -> Vec<Seen> {
        let script = self.script();
        script
            .seen
            .iter()
            .filter(|seen| seen.operation == operation)
            .cloned()
            .collect()
    }
}

/// These bytes again and again, so many in all: copied, since Miri takes long for each that is computed.
fn repeated(bytes: impl Iterator<Item = u8>, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> = bytes.collect();
    let mut all = bytes.repeat(len.div_ceil(bytes.len()));
    all.truncate(len);
    all
}

pub(super) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    if cfg!(miri) {
        return repeated((0..253).map(|byte| byte ^ seed), len);
    }
    (0..len).map(|index| (index % 253) as u8 ^ seed).collect()
}

pub(super) fn bytes_of(buffer: &DmaBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read_at(0, &mut bytes).unwrap();
    bytes
}

impl Script {
    pub(super) fn new(disks: impl IntoIterator<Item = (u8, FakeDisk)>) -> Self {
        Self {
            versions: vec![0x602, 0x600, 0x501, 0x402],
            max_transfer: 0x40000,
            disks: disks.into_iter().collect(),
            reports_luns: true,
            faults: VecDeque::new(),
            raw_answer: None,
            init_status: BTreeMap::new(),
            seen: Vec::new(),
            steps: Vec::new(),
            holds: false,
            held: Vec::new(),
            next_step: 7,
        }
    }

    /// As if the controller had just been opened.
    pub(super) fn restart(&mut self) {
        self.next_step = 7;
    }

    fn answer(&mut self, mut packet: IncomingPacket<Shared>) {
        let bytes = packet.payload().to_vec();
        assert!(packet.wants_completion(), "every packet asks for a completion");
        let answer = if packet.has_external_data() {
            let data = packet.external_data().unwrap();
            self.answer_to(&bytes, Some(&data))
        } else {
            self.answer_to(&bytes, None)
        };
        packet.complete(&answer).unwrap();
    }

    /// Returns the answer to a packet that may lend memory.
    pub(super) fn answer_to(&mut self, bytes: &[u8], memory: Option<&dyn Memory>) -> Vec<u8> {
        assert_eq!(
            word(bytes, 4),
            1,
            "each packet says in its flags that it wants a completion"
        );
        let mut answer = vec![0; bytes.len()];
        answer[0] = 1;
        let operation = word(bytes, 0);
        if operation == 3 {
            if let Some(raw) = self.raw_answer.take() {
                return raw;
            }
            self.execute(bytes, memory, &mut answer);
        } else {
            self.initialise(operation, bytes, &mut answer);
        }
        answer
    }

    fn initialise(&mut self, operation: u32, bytes: &[u8], answer: &mut [u8]) {
        self.steps.push(operation);
        let mut status = self.init_status.get(&operation).copied().unwrap_or(0);
        if operation == 6 {
            // A reset of the bus.
        } else if operation != self.next_step {
            status = 0xc000_0184;
        } else if operation == 9 {
            let version = u16::from_le_bytes([bytes[12], bytes[13]]);
            if self.versions.contains(&version) {
                self.next_step = 10;
            } else {
                status = 0xc000_0059;
            }
        } else {
            self.next_step = match operation {
                7 => 9,
                10 => 8,
                _ => 0,
            };
        }
        answer[8..12].copy_from_slice(&status.to_le_bytes());
        if operation == 10 {
            answer[24..28].copy_from_slice(&self.max_transfer.to_le_bytes());
        }
    }

    fn execute(&mut self, bytes: &[u8], memory: Option<&dyn Memory>, answer: &mut [u8]) {
        let (lun, cdb_len, data_in) = (bytes[19], usize::from(bytes[20]), bytes[22]);
        let transfer = word(bytes, 24);
        let cdb = bytes[28..28 + cdb_len].to_vec();
        let is_external = memory.is_some();
        self.seen.push(Seen {
            operation: cdb[0],
            lun,
            cdb: cdb.clone(),
            transfer,
            time_out: if bytes.len() == 64 { word(bytes, 56) } else { 0 },
            packet_len: bytes.len(),
            is_external,
        });
        assert_eq!(transfer > 0, is_external, "memory where there is data");
        assert_eq!(
            usize::from(u16::from_le_bytes([bytes[12], bytes[13]])),
            bytes.len() - 12,
            "the length of the request"
        );
        let at = self.faults.iter().position(|(operation, _)| *operation == cdb[0]);
        let fault = at.and_then(|at| self.faults.remove(at)).map(|(_, ending)| ending);
        let mut end = match &fault {
            Some(fault) if !fault.is_done => fault.clone(),
            _ => {
                let mut input = vec![0; transfer as usize];
                if let Some(memory) = memory
                    && data_in == 0
                {
                    assert!(memory.len() >= input.len(), "the memory is as long as the transfer");
                    memory.read(&mut input);
                }
                let (mut end, output) = self.scsi(lun, &cdb, &input);
                if !output.is_empty() {
                    assert_eq!(data_in, 1, "the direction of {:#x}", cdb[0]);
                    let len = output.len().min(transfer as usize);
                    memory.unwrap().write(&output[..len]);
                    end.transferred = Some(len as u32);
                } else if end.srb == 1 {
                    end.transferred = Some(if data_in == 0 { transfer } else { 0 });
                }
                end
            }
        };
        if let Some(fault) = fault
            && fault.is_done
        {
            end = Ending {
                transferred: fault.transferred.or(end.transferred),
                ..fault
            };
        }
        answer[8..12].copy_from_slice(&end.status.to_le_bytes());
        (answer[14], answer[15]) = (end.srb, end.scsi);
        answer[24..28].copy_from_slice(&end.transferred.unwrap_or(0).to_le_bytes());
        answer[21] = end.sense.len() as u8;
        for (target, source) in answer[28..48].iter_mut().zip(&end.sense) {
            *target = *source;
        }
    }

    /// Executes a command: how it ends, and the data that it brings.
    fn scsi(&mut self, lun: u8, cdb: &[u8], input: &[u8]) -> (Ending, Vec<u8>) {
        let good = ending(1, 0);
        let be = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        if cdb[0] == 0xa0 {
            if !self.reports_luns {
                return (sense(5, 0x20, 0), Vec::new());
            }
            let mut list = vec![0; 8];
            list[..4].copy_from_slice(&(self.disks.len() as u32 * 8).to_be_bytes());
            for lun in self.disks.keys() {
                list.extend([0, *lun, 0, 0, 0, 0, 0, 0]);
            }
            return (good, list);
        }
        let Some(disk) = self.disks.get_mut(&lun) else {
            if cdb[0] == 0x12 && cdb[1] == 0 {
                let mut data = vec![0; 36];
                data[0] = 0x7f;
                return (good, data);
            }
            return (ending(0x20, 2), Vec::new());
        };
        match cdb[0] {
            0x00 => (good, Vec::new()),
            0x12 if cdb[1] == 0 => {
                let mut data = vec![0; 36];
                (data[0], data[2], data[4]) = (disk.device_type, 4, 31);
                data[8..36].copy_from_slice(b"Msft    Virtual Disk    1.0 ");
                (good, data)
            }
            0x12 if disk.has_pages => match cdb[2] {
                0x00 => (good, vec![0, 0, 0, 5, 0, 0x80, 0x83, 0xb0, 0xb2]),
                0x80 => {
                    let mut data = vec![0, 0x80, 0, disk.serial.len() as u8];
                    data.extend(disk.serial.as_bytes());
                    (good, data)
                }
                0x83 => (
                    good,
                    vec![
                        0,
                        0x83,
                        0,
                        12,
                        1,
                        3,
                        0,
                        8,
                        0x60,
                        1,
                        2,
                        3,
                        4,
                        5,
                        6,
                        disk.serial.as_bytes()[7],
                    ],
                ),
                0xb0 => {
                    let mut data = vec![0; 64];
                    (data[1], data[3]) = (0xb0, 60);
                    data[20..24].copy_from_slice(&16_u32.to_be_bytes());
                    data[24..28].copy_from_slice(&1_u32.to_be_bytes());
                    data[28..32].copy_from_slice(&4_u32.to_be_bytes());
                    (good, data)
                }
                0xb2 => (good, vec![0, 0xb2, 0, 4, 0, if disk.unmap { 0x80 } else { 0 }, 2, 0]),
                _ => (sense(5, 0x24, 0), Vec::new()),
            },
            0x1a => (good, vec![3, 0, if disk.protected { 0x80 } else { 0 }, 0]),
            0x25 => {
                let last = u32::try_from(disk.blocks - 1).unwrap_or(u32::MAX);
                let mut data = last.to_be_bytes().to_vec();
                data.extend((disk.block as u32).to_be_bytes());
                (good, data)
            }
            0x9e if disk.has_capacity_16 => {
                let mut data = (disk.blocks - 1).to_be_bytes().to_vec();
                data.extend((disk.block as u32).to_be_bytes());
                data.resize(32, 0);
                data[13] = 3;
                (good, data)
            }
            0x35 => {
                disk.durable = disk.data.clone();
                (good, Vec::new())
            }
            0x42 if disk.unmap => {
                let (lba, blocks) = (be(&input[8..16]), be(&input[16..20]));
                assert!(blocks <= 16 && lba + blocks <= disk.blocks, "the limits of UNMAP");
                let (from, to) = (lba as usize * disk.block, (lba + blocks) as usize * disk.block);
                disk.data[from..to].fill(0);
                (good, Vec::new())
            }
            0x28 | 0x88 | 0x2a | 0x8a => {
                let (lba, blocks) = if cdb.len() == 10 {
                    (be(&cdb[2..6]), be(&cdb[7..9]))
                } else {
                    (be(&cdb[2..10]), be(&cdb[10..14]))
                };
                if lba + blocks > disk.blocks {
                    return (sense(5, 0x21, 0), Vec::new());
                }
                let len = blocks as usize * disk.block;
                let from = usize::try_from(lba).unwrap() * disk.block;
                if cdb[0] & 0x0f == 0x08 {
                    let there = disk.data.get(from..).unwrap_or_default();
                    let mut data = there[..len.min(there.len())].to_vec();
                    data.resize(len, 0);
                    return (good, data);
                }
                assert_eq!(input.len(), len, "blocks and bytes agree");
                if disk.data.len() >= from + len {
                    disk.data[from..from + len].copy_from_slice(input);
                }
                (good, Vec::new())
            }
            _ => (sense(5, 0x20, 0), Vec::new()),
        }
    }
}
