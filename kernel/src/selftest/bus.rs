//! The bus: connected, closed and opened again, left and joined again.

use vmbus::Deadline;
use vmbus::protocol::Version;

use super::{Verdict, ensure};
use crate::hyperv::dynamic_memory::{self, Wish};
use crate::hyperv::{bus, devices};
use crate::memory;
use crate::time::Deadline as Until;

/// How often a channel or the bus is closed and opened.
const ROUNDS: u32 = 5;

fn open() -> Verdict {
    dynamic_memory::wish(Wish::Open);
    ensure!(
        dynamic_memory::await_wish(Until::after_ms(10_000)),
        "dynamic memory does not run but is {}",
        dynamic_memory::state()
    );
    Ok(())
}

fn close() -> Verdict {
    dynamic_memory::wish(Wish::Closed);
    ensure!(
        dynamic_memory::await_wish(Until::after_ms(10_000)),
        "dynamic memory does not close"
    );
    Ok(())
}

/// The bus is connected, the offers are there, dynamic memory runs.
pub(super) fn connect() -> Verdict {
    let bus = bus::connected().ok_or("there is no connection")?;
    for device in devices::rows(Some(&bus)) {
        crate::println!(
            "  offer: {}  class {}  instance {}",
            device.name,
            device.class,
            device.instance
        );
    }
    ensure!(bus.offers().count() > 0, "the host offers nothing");
    ensure!(bus.has_all_offers(), "the host did not say that these are all offers");
    open()
}

/// The channel is closed and opened again, and no memory is lost on the way.
pub(super) fn reopen() -> Verdict {
    open()?;
    let mut before = None;
    for _ in 0..ROUNDS {
        close()?;
        let free = memory::heap::free_in_all();
        ensure!(
            before.is_none_or(|before| before == free),
            "{before:?} bytes were free after the last round, {free} are now"
        );
        before = Some(free);
        open()?;
    }
    Ok(())
}

/// The bus is joined again on top of a connection that nobody has ended, as after a loader that has not cleaned up.
pub(super) fn takeover() -> Verdict {
    open()?;
    close()?;
    let version = bus::connected().ok_or("there is no connection")?.version();
    bus::abandon().map_err(|error| alloc::format!("{error}"))?;
    let again = bus::connect().map_err(|error| alloc::format!("{error}"))?;
    ensure!(
        again.version() == version,
        "{} the second time, {version} the first",
        again.version()
    );
    ensure!(again.offers().count() > 0, "nothing is offered the second time");
    open()
}

/// The bus is left and joined again.
pub(super) fn reconnect() -> Verdict {
    open()?;
    let mut before = None;
    for round in 0..ROUNDS {
        close()?;
        let version = bus::connected().ok_or("there is no connection")?.version();
        bus::disconnect(Deadline::seconds(10)).map_err(|error| alloc::format!("{error}"))?;
        ensure!(bus::connected().is_none(), "still connected after leaving");
        let free = memory::heap::free_in_all();
        // Before 3.0 a host cannot be told to let go, so the pages that it knows of are kept from use.
        if version >= Version::V3_0 {
            ensure!(
                before.is_none_or(|before| before == free),
                "{before:?} bytes were free after the last round, {free} after round {round}"
            );
        }
        before = Some(free);
        let again = bus::connect().map_err(|error| alloc::format!("{error}"))?;
        ensure!(
            again.version() == version,
            "{} the second time, {version} the first",
            again.version()
        );
        open()?;
    }
    Ok(())
}
