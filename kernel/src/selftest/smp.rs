//! Processors: what firmware says there is.

use super::{Verdict, ensure};
use crate::acpi::madt;
use crate::arch::apic;

pub(super) fn run() -> Verdict {
    let found = madt::present().ok_or("firmware has no table of processors")?;
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
