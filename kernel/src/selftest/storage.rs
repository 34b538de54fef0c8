//! Storage, from the offer to files: a controller inside this kernel, which the driver finds on the bus like any other.
//!
//! Disks come, are formatted, keep files through a power cut, are shown as the command line would, and go. One disk stays, for the report.

use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;

use spin::Once;
use vmbus::host::storage::{
    Address, Config, Controller, Disk, DiskConfig, Effect, Fault, Filter, MemoryDisk, Outcome, PowerCut, WriteCache,
};

use super::{Verdict, ensure};
use crate::files::show::{AnyDisk, show};
use crate::files::{Blocks as _, FileError, FilePath, Partition, Stream, Volume};
use crate::hyperv::local;
use crate::hyperv::port::PLATFORM;
use crate::hyperv::storage::{self, DiskBlocks};
use crate::task;
use crate::time::{self, Deadline};

/// Bytes of the disk that files are on.
const SIZE: u64 = 16 << 20;
/// What the driver is given to notice something.
const SOON: u64 = 5000;

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The controller; it stays, so that the report shows a disk.
static CONTROLLER: Once<Controller> = Once::new();

fn await_disks(count: usize) -> Result<Vec<DiskBlocks>, String> {
    task::wait_until(Deadline::after_ms(SOON), || storage::disks().len() == count);
    let disks = storage::disks();
    ensure!(
        disks.len() == count,
        "there are {} disks instead of {count}",
        disks.len()
    );
    Ok(disks)
}

fn range(disk: &DiskBlocks) -> Result<Stream<DiskBlocks>, String> {
    Stream::new(disk.clone(), &Partition::whole(disk)).map_err(text)
}

/// The test.
pub(super) fn run() -> Verdict {
    let host = local::host().ok_or("there is no host inside this kernel")?;
    let before = storage::disks().len();
    let controller = CONTROLLER.try_call_once(|| Controller::new(host, Config::default()).map_err(text))?;
    let memory = MemoryDisk::new(&PLATFORM, SIZE, WriteCache::Volatile).map_err(text)?;
    attach(controller, 0, memory.clone(), 512)?;
    controller.offer().map_err(text)?;
    let disk = await_disks(before + 1)?.pop().ok_or("no disk")?;
    ensure!(
        disk.block_count() * 512 == SIZE,
        "the disk has {} blocks",
        disk.block_count()
    );
    time::reached("disk-found");

    files(&disk, &memory)?;
    faults(controller, &disk)?;
    comes_and_goes(controller, before + 1)?;
    let violation = controller.first_violation();
    ensure!(violation.is_none(), "the driver broke the protocol: {violation:?}");
    Ok(())
}

fn attach(controller: &Controller, lun: u8, memory: MemoryDisk, block_bytes: u32) -> Result<(), String> {
    let config = DiskConfig {
        block_bytes,
        write_cache: WriteCache::Volatile,
        ..DiskConfig::default()
    };
    let disk = Disk::new(memory, config).map_err(text)?;
    controller.attach(Address::lun(lun), disk).map_err(text)
}

/// Formats the disk, and looks whether files are still there when its power was cut.
fn files(disk: &DiskBlocks, memory: &MemoryDisk) -> Verdict {
    let volume = Volume::format(range(disk)?, "selftest").map_err(text)?;
    let content: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0] ^ 0x5a).collect();
    volume.write("/etc/name.txt", b"appliance\n").map_err(text)?;
    volume.write("/var/a longer name.bin", &content).map_err(text)?;
    volume.write("/gone", b"x").map_err(text)?;
    volume.remove("/gone").map_err(text)?;
    volume.close().map_err(text)?;
    ensure!(memory.flushes() > 0, "no flush has reached the disk");
    // What was not flushed is lost.
    memory.cut_power(PowerCut::LosesAll);

    let volume = Volume::open(range(disk)?).map_err(text)?;
    let read = volume.read("/VAR/a longer NAME.bin", content.len()).map_err(text)?;
    ensure!(read == content, "the file came back with other bytes");
    ensure!(
        volume.read("/gone", 1) == Err(FileError::NotFound),
        "a file that was removed is there"
    );
    drop(volume);

    let mut disks = [disk.clone()];
    let [disk] = &mut disks;
    let mut disks: [&mut AnyDisk<'_>; 1] = [disk];
    let path = FilePath::parse("0.0:/etc/name.txt").map_err(text)?;
    let shown = show(&mut disks, &path).map_err(text)?.to_string();
    ensure!(shown == "appliance", "shown was {shown:?}");
    Ok(())
}

/// Errors of the disk are errors here, and pass.
fn faults(controller: &Controller, disk: &DiskBlocks) -> Verdict {
    let mut disk = disk.clone();
    let mut block = vec![0; 512];
    let bad = Fault::new(
        Filter::reads().blocks(1000..1001),
        Effect::Answer(Outcome::medium_error(1000)),
    );
    controller.inject(bad).map_err(text)?;
    let error = disk.read(1000, &mut block).err();
    ensure!(error.is_some(), "a bad block was read");
    log::info!("as it should be: {}", error.map_or(String::new(), text));
    disk.read(1000, &mut block).map_err(text)?;
    // What may be asked again is asked again.
    let attention = Fault::new(Filter::writes(), Effect::Answer(Outcome::unit_attention(0x29, 0)));
    controller.inject(attention).map_err(text)?;
    disk.write(2000, &block).map_err(text)?;
    disk.flush().map_err(text)
}

/// A disk of larger blocks comes while the machine runs, and goes.
fn comes_and_goes(controller: &Controller, before: usize) -> Verdict {
    let memory = MemoryDisk::new(&PLATFORM, 3 << 40, WriteCache::Volatile).map_err(text)?;
    attach(controller, 5, memory.clone(), 4096)?;
    let mut disk = await_disks(before + 1)?.pop().ok_or("no disk")?;
    ensure!(
        disk.block_size() == 4096 && disk.block_count() == (3 << 40) / 4096,
        "the disk has {} blocks of {} bytes",
        disk.block_count(),
        disk.block_size()
    );
    // Behind 2 TiB.
    let far = disk.block_count() - 2;
    disk.write(far, &[0xa5; 8192]).map_err(text)?;
    let mut read = vec![0; 8192];
    disk.read(far, &mut read).map_err(text)?;
    ensure!(read == [0xa5; 8192], "the last blocks came back with other bytes");
    ensure!(
        disk.read(far + 1, &mut read).is_err(),
        "blocks behind the last were read"
    );
    drop(controller.detach(Address::lun(5)));
    await_disks(before)?;
    ensure!(disk.read(0, &mut read).is_err(), "a disk that is gone was read");
    Ok(())
}
