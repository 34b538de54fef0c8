//! A host inside this kernel: one part of it offers a channel, another opens it, on the same channel code as for the devices of
//! the real host. Its signals come by the same deferred work.

use spin::Once;
use vmbus::Instant;
use vmbus::host::Host;

use super::{bus, port::PLATFORM};
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

/// Runs the callbacks of those who were signalled. Context: deferred work.
pub(super) fn process() {
    if let Some(Some(host)) = HOST.get() {
        host.process();
    }
}
