//! Storage: the disks of the machine, and the task that looks after their controllers.
//!
//! The task opens each controller that is offered, looks for disks when the host says that there are others, and lets go of what has
//! gone. Others take what there is ([`disks`]), show it ([`rows`]), and read files on it ([`crate::files`], by [`DiskBlocks`]).

use alloc::string::ToString as _;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use vmbus::Deadline;
use vmbus::bus::Offer;
use vmbus::device::storage::{self, Change, Config, Controller, Disk, Lba, PATIENCE};
use vmbus::kmcl::{Gone, Instance, OfferSource};
use vmbus::protocol::Guid;

use super::bus;
use super::devices::DeviceState;
use super::offers::{self, Device, LeftAlone, OfferKey};
use crate::files::{BlockError, Blocks, Partition, partitions};
use crate::status::DiskRow;
use crate::sync::IrqMutex;
use crate::{task, time};

/// How long a controller and a look at its disks may take.
const STEP: Deadline = Deadline::seconds(10);

/// How long a controller is left alone that could not be asked for its disks.
const RETRY_MS: u64 = 5000;

/// A disk, and what its table says.
#[derive(Debug, Clone)]
struct Known {
    disk: Disk,
    controller: Guid,
    partitions: Vec<Partition>,
}

/// A controller that is open.
#[derive(Debug, Clone)]
struct Open {
    controller: Controller,
    /// What it was offered as.
    offer: OfferKey,
}

struct Shared {
    controllers: Vec<Open>,
    disks: Vec<Known>,
    /// Controllers that are left alone until they are offered anew.
    left_alone: LeftAlone,
}

static SHARED: IrqMutex<Shared> = IrqMutex::new(Shared {
    controllers: Vec::new(),
    disks: Vec::new(),
    left_alone: LeftAlone::new(),
});

/// Whether the task has something to look at.
static WOKEN: AtomicBool = AtomicBool::new(true);
/// Whether the task has seen all that there was.
static SETTLED: AtomicBool = AtomicBool::new(false);
/// Whether the machine ends.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Whether offers of this class are storage controllers.
#[must_use]
pub const fn is_storage(class: &Guid) -> bool {
    matches!(*class, storage::SCSI | storage::IDE)
}

/// Starts the task. Again is nothing.
///
/// # Errors
///
/// [`task::SpawnError`] if there is no room for it.
pub fn start() -> Result<(), task::SpawnError> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if !STARTED.swap(true, Ordering::Relaxed) {
        task::spawn("storage", run)?;
    }
    Ok(())
}

/// Waits until the task has seen all that was offered, or time is up. Context: task.
pub fn await_disks(deadline: time::Deadline) {
    task::wait_until(deadline, || {
        SETTLED.load(Ordering::Acquire) && !WOKEN.load(Ordering::Acquire)
    });
}

/// Returns the disks that there are, in the order in which they were found.
#[must_use]
pub fn disks() -> Vec<DiskBlocks> {
    let shared = SHARED.lock();
    shared
        .disks
        .iter()
        .map(|known| DiskBlocks(known.disk.clone()))
        .collect()
}

/// Returns a row of the status table for each disk.
#[must_use]
pub fn rows() -> Vec<DiskRow> {
    let known = SHARED.lock().disks.clone();
    known.iter().map(row).collect()
}

fn row(known: &Known) -> DiskRow {
    let disk = &known.disk;
    let info = disk.info();
    DiskRow {
        model: alloc::format!("{} {}", info.vendor, info.product).trim().to_string(),
        bytes: disk.size_bytes(),
        block_bytes: disk.block_len(),
        controller: known.controller.to_string(),
        lun: disk.address().lun,
        state: match (disk.is_present(), disk.is_write_protected()) {
            (false, _) => "gone",
            (true, true) => "read-only",
            (true, false) => "running",
        },
        partitions: known.partitions.clone(),
    }
}

/// Returns the controller's part of the status table.
#[must_use]
pub fn controller(instance: Guid) -> DeviceState {
    let shared = SHARED.lock();
    let open = shared.controllers.iter().map(|open| &open.controller);
    if let Some(open) = open.into_iter().find(|open| open.instance() == instance) {
        let counters = Some(open.channel_counters());
        // The task will let go of it, but has not seen it yet.
        return match open.gone() {
            Some(why) => DeviceState::faulted(why, counters),
            None => DeviceState::new("running", counters),
        };
    }
    match shared.left_alone.find(instance) {
        Some(device) => DeviceState {
            state: device.state,
            reason: Some(device.reason.clone()),
            counters: None,
        },
        None => DeviceState::new("offered", None),
    }
}

/// Opens a controller of `source`, with the task's ear for its news.
///
/// # Errors
///
/// Those of [`storage::attach_with`].
pub fn open(source: &impl OfferSource, class: Guid, instance: Instance) -> Result<Controller, storage::Error> {
    storage::attach_with(source, &Config::of(class, instance), wake, STEP)
}

/// Lets go of all controllers and disks: their channels are closed.
pub(super) fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
    forget();
}

fn forget() {
    let mut shared = SHARED.lock();
    let disks = core::mem::take(&mut shared.disks);
    let controllers = core::mem::take(&mut shared.controllers);
    drop(shared);
    // Outside the lock: closing a channel waits.
    drop((disks, controllers));
}

/// Offers have come or gone.
pub(super) fn offers_changed() {
    wake();
}

/// The bus is joined: what failed before may work now.
pub(super) fn connected() {
    SHARED.lock().left_alone.clear();
    wake();
}

fn wake() {
    WOKEN.store(true, Ordering::Release);
    task::notify();
}

/// The task.
fn run() {
    loop {
        WOKEN.store(false, Ordering::Relaxed);
        if !STOPPED.load(Ordering::Relaxed) {
            open_offered();
            look_at_controllers();
        }
        SETTLED.store(true, Ordering::Release);
        task::notify();
        task::wait_until(time::Deadline::Never, || WOKEN.load(Ordering::Acquire));
    }
}

/// Opens the controllers that are offered and not open.
fn open_offered() {
    let Some(bus) = bus::connected() else { return };
    let offered: Vec<Offer> = bus
        .offers()
        .filter(|offer| offers::is_primary(offer) && is_storage(&offer.class))
        .collect();
    SHARED.lock().left_alone.look(|instance| {
        let offer = offered.iter().find(|offer| offer.instance == instance);
        offer.map(OfferKey::of)
    });
    for offer in offered {
        let instance = offer.instance;
        if controller(instance).state != "offered" {
            continue;
        }
        let key = OfferKey::of(&offer);
        match open(&bus, offer.class, Instance::Only(instance)) {
            Ok(controller) => SHARED.lock().controllers.push(Open { controller, offer: key }),
            Err(error) => {
                log::warn!("storage {instance}: {error}");
                SHARED.lock().left_alone.add(Device {
                    instance,
                    state: "failed",
                    reason: error.to_string(),
                    offer: key,
                });
            }
        }
    }
}

/// Looks for disks where the host says that something has changed; lets go of controllers that have gone.
fn look_at_controllers() {
    let controllers = SHARED.lock().controllers.clone();
    for Open { controller, offer } in controllers {
        if let Some(why) = controller.gone() {
            let instance = controller.instance();
            log::warn!("storage {instance}: the controller has gone, and its disks with it: {why}");
            let mut shared = SHARED.lock();
            if why != Gone::Rescinded {
                // It is offered still: a host that breaks rings is not asked again and again.
                shared.left_alone.add(Device {
                    instance,
                    state: "faulted",
                    reason: why.to_string(),
                    offer,
                });
            }
            // This one alone: another that has gone meanwhile has its own turn, for its own disks and its own reason.
            let is_it = |open: &mut Open| open.controller.instance() == instance && !open.controller.is_present();
            let closed: Vec<Open> = shared.controllers.extract_if(.., is_it).collect();
            let gone: Vec<Known> = shared
                .disks
                .extract_if(.., |known| known.controller == instance)
                .collect();
            drop(shared);
            // Outside the lock: closing a channel waits.
            drop((closed, gone));
            // It may be offered anew already: that was passed over while it stood here.
            WOKEN.store(true, Ordering::Release);
        } else if controller.needs_rescan() {
            match controller.rescan(STEP) {
                Ok(changes) => changes.into_iter().for_each(|change| note(&controller, change)),
                Err(error) => {
                    log::warn!("storage {}: cannot look for disks: {error}", controller.instance());
                    // It is tried again, but not at once.
                    task::wait_until(time::Deadline::after_ms(RETRY_MS), || STOPPED.load(Ordering::Relaxed));
                }
            }
        }
    }
}

fn note(controller: &Controller, change: Change) {
    match change {
        Change::Added(disk) => {
            let partitions = partitions(&mut DiskBlocks(disk.clone())).unwrap_or_else(|error| {
                log::warn!("{disk}: the table of partitions cannot be read: {error}");
                Vec::new()
            });
            let known = Known {
                disk,
                controller: controller.instance(),
                partitions,
            };
            SHARED.lock().disks.push(known);
        }
        Change::Removed(disk) => {
            let instance = controller.instance();
            let is_it = |known: &mut Known| known.controller == instance && known.disk.address() == disk.address();
            let gone: Vec<Known> = SHARED.lock().disks.extract_if(.., is_it).collect();
            drop(gone);
        }
        _ => {}
    }
}

/// A disk of the bus, for files.
#[derive(Debug, Clone)]
pub struct DiskBlocks(pub Disk);

fn block_error(first: u64) -> impl Fn(storage::Error) -> BlockError {
    move |error| match error {
        storage::Error::OutOfRange => BlockError::OutOfRange { first },
        other => BlockError::Device(other.to_string()),
    }
}

impl Blocks for DiskBlocks {
    fn block_size(&self) -> usize {
        self.0.block_len() as usize
    }

    fn block_count(&self) -> u64 {
        self.0.blocks()
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> Result<(), BlockError> {
        self.0.read_into(Lba(first), into, PATIENCE).map_err(block_error(first))
    }

    fn write(&mut self, first: u64, from: &[u8]) -> Result<(), BlockError> {
        self.0
            .write_from(Lba(first), from, PATIENCE)
            .map_err(block_error(first))
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        self.0.flush(PATIENCE).map_err(block_error(0))
    }
}
