//! The devices of the bus for the status table: each offer, and what became of it; then the channels within this kernel.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use vmbus::bus::{Bus, Origin};
use vmbus::device::dynamic_memory::CLASS as DYNAMIC_MEMORY;
use vmbus::kmcl::{Counters, Gone};

use crate::status::Device;

/// What became of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// A word: `offered`, `running`, `faulted`, ...
    pub state: &'static str,
    /// Why, where that is worth a word.
    pub reason: Option<String>,
    /// What its channel has done, while it is open.
    pub counters: Option<Counters>,
}

impl DeviceState {
    /// A state that needs no reason.
    #[must_use]
    pub const fn new(state: &'static str, counters: Option<Counters>) -> Self {
        Self {
            state,
            reason: None,
            counters,
        }
    }

    /// The channel has ended while the device is there.
    #[must_use]
    pub fn faulted(why: Gone, counters: Option<Counters>) -> Self {
        Self {
            state: "faulted",
            reason: Some(why.to_string()),
            counters,
        }
    }
}

/// Returns a row for each offer, and for each end of a channel within this kernel.
#[must_use]
pub fn rows(bus: Option<&Bus>) -> Vec<Device> {
    let mut rows: Vec<Device> = bus
        .into_iter()
        .flat_map(Bus::offers)
        .filter(|offer| offer.origin == Origin::Host)
        .map(|offer| {
            let DeviceState {
                state,
                reason,
                counters,
            } = match offer.class {
                DYNAMIC_MEMORY => super::dynamic_memory::device_state(),
                class if super::storage::is_storage(&class) => super::storage::controller(offer.instance),
                _ => DeviceState::new("offered", None),
            };
            Device {
                name: offer.class_name().to_string(),
                class: offer.class.to_string(),
                instance: offer.instance.to_string(),
                channel: offer.channel.0,
                state: state.to_string(),
                reason,
                counters,
            }
        })
        .collect();
    rows.sort_by(|a, b| (&a.name, a.channel).cmp(&(&b.name, b.channel)));
    #[cfg(any(test, feature = "selftest"))]
    rows.extend(super::local::rows());
    rows
}
