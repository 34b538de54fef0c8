//! The devices of the bus for the status table: each offer, and what became of it; then the channels within this kernel.

use alloc::string::ToString as _;
use alloc::vec::Vec;

use vmbus::bus::{Bus, Origin};
use vmbus::device::dynamic_memory::CLASS as DYNAMIC_MEMORY;

use crate::status::Device;

/// Returns a row for each offer, and for each end of a channel within this kernel.
#[must_use]
pub fn rows(bus: Option<&Bus>) -> Vec<Device> {
    let mut rows: Vec<Device> = bus
        .into_iter()
        .flat_map(Bus::offers)
        .filter(|offer| offer.origin == Origin::Host)
        .map(|offer| {
            let (state, counters) = match offer.class {
                DYNAMIC_MEMORY => (
                    super::dynamic_memory::state(),
                    super::dynamic_memory::shown().and_then(|shown| shown.channel),
                ),
                class if super::storage::is_storage(&class) => super::storage::controller(offer.instance),
                _ => ("offered", None),
            };
            Device {
                name: offer.class_name().to_string(),
                class: offer.class.to_string(),
                instance: offer.instance.to_string(),
                channel: offer.channel.0,
                state: state.to_string(),
                counters,
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.name, a.channel).cmp(&(&b.name, b.channel)));
    #[cfg(any(test, feature = "selftest"))]
    rows.extend(super::local::rows());
    rows
}
