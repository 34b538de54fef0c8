//! Two storage controllers: one is taken away in the middle of its work, the other works on.

use alloc::string::{String, ToString as _};
use alloc::vec;
use core::fmt::Display;

use vmbus::Deadline;
use vmbus::host::storage::{Address, Config, Controller, Disk, DiskConfig, MemoryDisk, WriteCache};
use vmbus::protocol::Guid;

use super::{Verdict, ensure};
use crate::files::Blocks as _;
use crate::hyperv::port::PLATFORM;
use crate::hyperv::storage::DiskBlocks;
use crate::hyperv::{local, storage};
use crate::status::Report;
use crate::task;
use crate::time::Deadline as Until;

/// The controller that dies. The runner looks for it in what the kernel says.
const DYING: Guid = Guid::literal("5e1f7e57-0000-4000-8000-00000000dead");
/// The one that stays.
const STAYING: Guid = Guid::literal("5e1f7e57-0000-4000-8000-00000000000a");
/// Bytes of a disk.
const SIZE: u64 = 1 << 20;
/// What the driver is given to notice something.
const SOON: u64 = 5000;

fn text(error: impl Display) -> String {
    error.to_string()
}

fn offer(instance: Guid) -> Result<(Controller, DiskBlocks), String> {
    let host = local::host().ok_or("there is no host inside this kernel")?;
    let config = Config {
        instance: Some(instance),
        ..Config::default()
    };
    let controller = Controller::new(host, config).map_err(text)?;
    let memory = MemoryDisk::new(&PLATFORM, SIZE, WriteCache::Volatile).map_err(text)?;
    let disk = Disk::new(memory, DiskConfig::default()).map_err(text)?;
    controller.attach(Address::lun(0), disk).map_err(text)?;
    let before = storage::disks().len();
    controller.offer().map_err(text)?;
    task::wait_until(Until::after_ms(SOON), || storage::disks().len() > before);
    let disk = storage::disks().pop().ok_or("the driver has not found the disk")?;
    ensure!(
        storage::disks().len() == before + 1,
        "the driver has not found the disk"
    );
    Ok((controller, disk))
}

/// Writes to a block and reads it back.
fn work(disk: &DiskBlocks, number: u8) -> Verdict {
    let mut disk = disk.clone();
    let mut read = vec![0; 512];
    disk.write(u64::from(number), &[number; 512]).map_err(text)?;
    disk.read(u64::from(number), &mut read).map_err(text)?;
    ensure!(read == [number; 512], "block {number} came back with other bytes");
    Ok(())
}

/// The test.
pub(super) fn run() -> Verdict {
    let (dying, first) = offer(DYING)?;
    let (staying, second) = offer(STAYING)?;
    for number in 1..50 {
        work(&first, number)?;
        work(&second, number)?;
    }
    // A request is on its way when the controller goes: it ends, with an error.
    dying.hold();
    let mut doomed = first.clone();
    let asked = task::spawn("doomed-read", move || {
        let answer = doomed.read(1, &mut [0; 512]);
        log::info!("as it should be: {answer:?}");
    })
    .map_err(text)?;
    ensure!(
        task::wait_until(Until::after_ms(SOON), || dying.held_count() == 1),
        "the read has not reached the controller"
    );
    dying.revoke(Deadline::seconds(5)).map_err(text)?;
    // Meanwhile and ever after.
    for number in 50..200 {
        work(&second, number)?;
    }
    ensure!(
        task::wait_until(Until::after_ms(SOON), || task::is_finished(asked)),
        "the read from the controller that died does not end"
    );
    ensure!(
        task::wait_until(Until::after_ms(SOON), || storage::disks().len() == 1),
        "the disk of the controller that died is still there"
    );
    ensure!(work(&first, 1).is_err(), "a disk that is gone was read");
    work(&second, 1)?;
    let report = Report::collect();
    let states = |instance: Guid| {
        report
            .disks
            .iter()
            .filter(|disk| disk.controller == instance.to_string())
            .count()
    };
    ensure!(
        (states(DYING), states(STAYING)) == (0, 1),
        "the table has other disks: {:?}",
        report.disks
    );
    ensure!(staying.first_violation().is_none(), "the driver broke the protocol");
    staying.revoke(Deadline::seconds(5)).map_err(text)
}
