//! A host inside this kernel: one part of it offers a channel, another opens it, on the same channel code as for the devices of
//! the real host. It is attached to the bus, so that whoever asks the bus finds both; without a connection it works by itself. Its
//! signals come by the same deferred work.

use alloc::string::{String, ToString as _};

use spin::Once;
use vmbus::Instant;
use vmbus::device::dynamic_memory::CLASS as DYNAMIC_MEMORY;
use vmbus::host::{Host, Status};
use vmbus::kmcl::Counters;

use super::{bus, port::PLATFORM};
use crate::status::Device;
use crate::time;

static HOST: Once<Option<Host>> = Once::new();

/// Returns the host; the first call makes it. `None` if there is no memory or no room for deferred work.
pub fn host() -> Option<&'static Host> {
    HOST.call_once(|| {
        let clock = || Instant::from_reference_units(time::now_ns() / 100);
        bus::has_deferred_work()
            .then(|| Host::new(&PLATFORM, clock).ok())
            .flatten()
    })
    .as_ref()
}

/// Returns the rows of the status table: each offer, and the two ends of its channel once it is open.
pub(super) fn rows() -> impl Iterator<Item = Device> {
    let host = HOST.get().and_then(Option::as_ref);
    host.into_iter().flat_map(|host| host.statuses().flat_map(rows_of))
}

fn rows_of(status: Status) -> impl Iterator<Item = Device> {
    let name = match status.name() {
        "" => status.offer.class_name(),
        name => name,
    };
    let row = |state: &str, reason: Option<String>, counters: Counters| Device {
        name: String::from(name),
        class: status.offer.class.to_string(),
        instance: status.offer.instance.to_string(),
        channel: status.offer.channel.0,
        state: String::from(state),
        reason,
        counters: Some(counters),
    };
    // What a driver of this kernel has made of it, or what the channel's end says of itself.
    let driver = match status.offer.class {
        DYNAMIC_MEMORY => super::dynamic_memory::device_state().reason,
        class if super::storage::is_storage(&class) => super::storage::controller(status.offer.instance).reason,
        _ => None,
    };
    match (status.client, status.client_gone) {
        (None, _) => [Some(row("offered by this kernel", driver, status.server)), None],
        (Some(client), None) => [
            Some(row("open, offering end", None, status.server)),
            Some(row("open, using end", driver, client)),
        ],
        (Some(client), Some(why)) => [
            Some(row("open, offering end", None, status.server)),
            Some(row("faulted", Some(why.to_string()), client)),
        ],
    }
    .into_iter()
    .flatten()
}

/// Runs the callbacks of those who were signalled, where there is no bus that does. Context: deferred work.
pub(super) fn process() {
    if let Some(Some(host)) = HOST.get() {
        host.process();
    }
}
