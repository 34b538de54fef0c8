//! Processors: what firmware says there is. Only the first one runs so far; the others stay parked where firmware left them.

use super::{Verdict, ensure};
use crate::acpi::{self, madt};
use crate::arch::apic;
use crate::memory::FirmwareMemory;
use crate::start;

/// The processors that firmware names.
#[must_use]
pub fn processors() -> Option<madt::Processors> {
    let rsdp = start::info()?.rsdp;
    let table = acpi::find(&FirmwareMemory, rsdp, madt::SIGNATURE)?;
    Some(madt::processors(&FirmwareMemory, table))
}

pub(super) fn run() -> Verdict {
    let found = processors().ok_or("firmware has no table of processors")?;
    let running = apic::id();
    ensure!(found.ids().len() >= 2, "there is only one processor: {:?}", found.ids());
    ensure!(
        found.ids().contains(&running),
        "the running processor {running} is not among {:?}",
        found.ids()
    );
    log::info!(
        "{} processors, {} more, number {running} runs, the others are parked",
        found.ids().len(),
        found.more
    );
    crate::println!("@@ mark processors {}", found.ids().len() + found.more);
    Ok(())
}
