//! The way into the VMBus, a loop, and the way out.

use alloc::boxed::Box;
use core::error::Error;

use vmbus::bus::{self, Bus};
use vmbus::device::dynamic_memory::{Config, DynamicMemory, Engine, MemoryPool};
use vmbus::hyperv::{Hypervisor, NotHyperV};
use vmbus::kmcl::Instance;
use vmbus::testing::check_platform;
use vmbus::{Deadline, Platform};

/// Finds the hypervisor, or says what was found instead.
pub(crate) fn hypervisor() -> Result<&'static Hypervisor, NotHyperV> {
    Ok(Box::leak(Box::new(Hypervisor::detect()?)))
}

/// Connects to the VMBus, lists the offers, and lets the host have `memory` for as long as `goes_on` says.
pub(crate) fn run<P: MemoryPool>(
    hypervisor: &'static Hypervisor,
    platform: &'static dyn Platform,
    memory: P,
    mut goes_on: impl FnMut(&Engine<P>) -> bool,
) -> Result<(), Box<dyn Error>> {
    log::info!("{:?}", check_platform(platform, 1)?);
    let bus = Bus::connect(hypervisor, platform, bus::Config::default())?;
    bus.offers().for_each(|offer| log::info!("{offer}"));

    let config = Config {
        hot_add_alignment: None,
        ..Default::default()
    };
    let mut driver = DynamicMemory::new(platform, config, memory)?;
    driver.attach(&bus, Instance::Any, || {}, Deadline::seconds(10))?;
    while goes_on(driver.engine()) {
        bus.poll();
        driver.run(hypervisor.now());
        core::hint::spin_loop();
    }

    driver.detach(Deadline::seconds(10))?;
    bus.disconnect(Deadline::seconds(100))?;
    Ok(())
}
