//! The devices of the bus for the status table: each offer, and what became of it.

use alloc::string::ToString as _;
use alloc::vec::Vec;

use vmbus::bus::Bus;
use vmbus::device::dynamic_memory::CLASS as DYNAMIC_MEMORY;

use crate::status::Device;

/// Returns a row for each offer.
#[must_use]
pub fn rows(bus: &Bus) -> Vec<Device> {
    let mut rows: Vec<Device> = bus
        .offers()
        .map(|offer| Device {
            name: offer.class_name().to_string(),
            class: offer.class.to_string(),
            instance: offer.instance.to_string(),
            channel: offer.channel.0,
            state: match offer.class {
                DYNAMIC_MEMORY => super::dynamic_memory::state().to_string(),
                _ => "offered".to_string(),
            },
            counters: match offer.class {
                DYNAMIC_MEMORY => super::dynamic_memory::shown().and_then(|shown| shown.channel),
                _ => None,
            },
        })
        .collect();
    rows.sort_by(|a, b| (&a.name, a.channel).cmp(&(&b.name, b.channel)));
    rows
}
