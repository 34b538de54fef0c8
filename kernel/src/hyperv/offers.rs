//! Which offer a device was: so that one that failed is left alone until its own offer comes anew.
//!
//! A host could otherwise have a device opened again and again, at ten seconds a time, by offering and withdrawing anything else.

use alloc::string::String;
use alloc::vec::Vec;

use vmbus::bus::{Bus, Offer, Origin};
use vmbus::protocol::Guid;

/// An offer. One that comes anew is another one, also with the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfferKey {
    origin: Origin,
    sequence: u64,
}

impl OfferKey {
    /// Returns the key of an offer.
    #[must_use]
    pub const fn of(offer: &Offer) -> Self {
        Self {
            origin: offer.origin,
            sequence: offer.sequence,
        }
    }
}

/// What is offered of a device, or of a class.
pub(super) fn offered(bus: &Bus, is_it: impl Fn(&Offer) -> bool) -> Option<OfferKey> {
    bus.offers()
        .find(|offer| is_primary(offer) && is_it(offer))
        .map(|offer| OfferKey::of(&offer))
}

/// Whether the offer is its device's first channel: others come and go with the driver's wishes.
pub(super) const fn is_primary(offer: &Offer) -> bool {
    offer.subchannel_index == 0
}

/// Devices of which the offer is known and left alone, and why.
#[derive(Debug)]
pub(super) struct LeftAlone {
    devices: Vec<Device>,
}

/// A device that is offered, but not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) instance: Guid,
    /// `failed`: it could not be opened; `faulted`: its channel has ended while it is offered still.
    pub(super) state: &'static str,
    pub(super) reason: String,
    pub(super) offer: OfferKey,
}

impl LeftAlone {
    pub(super) const fn new() -> Self {
        Self { devices: Vec::new() }
    }

    /// Leaves a device alone.
    pub(super) fn add(&mut self, device: Device) {
        self.devices.retain(|other| other.instance != device.instance);
        self.devices.push(device);
    }

    pub(super) fn find(&self, instance: Guid) -> Option<&Device> {
        self.devices.iter().find(|device| device.instance == instance)
    }

    /// Forgets those whose offer has gone or come anew; `offered` tells the offer that a device has now.
    pub(super) fn look(&mut self, offered: impl Fn(Guid) -> Option<OfferKey>) {
        self.devices
            .retain(|device| offered(device.instance) == Some(device.offer));
    }

    /// Forgets all: this is another connection.
    pub(super) fn clear(&mut self) {
        self.devices.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Guid = Guid::literal("5e1f7e57-0000-4000-8000-00000000000a");
    const B: Guid = Guid::literal("5e1f7e57-0000-4000-8000-00000000000b");

    const fn key(sequence: u64) -> OfferKey {
        OfferKey {
            origin: Origin::Host,
            sequence,
        }
    }

    fn device(instance: Guid, sequence: u64) -> Device {
        Device {
            instance,
            state: "faulted",
            reason: "the peer broke the ring".into(),
            offer: key(sequence),
        }
    }

    #[test]
    fn a_device_is_left_alone_until_its_own_offer_changes() {
        let mut left = LeftAlone::new();
        left.add(device(A, 3));
        left.add(device(B, 4));
        // Others come and go.
        for other in 5..100 {
            left.look(|instance| Some(if instance == A { key(3) } else { key(4) }));
            assert!(left.find(A).is_some() && left.find(B).is_some(), "after {other}");
        }
        left.look(|instance| Some(if instance == A { key(100) } else { key(4) }));
        assert!(left.find(A).is_none(), "offered anew");
        assert!(left.find(B).is_some());
        left.look(|_| None);
        assert!(left.find(B).is_none(), "offered no more");
    }

    #[test]
    fn a_device_has_one_entry_and_another_connection_none() {
        let mut left = LeftAlone::new();
        left.add(device(A, 1));
        left.add(device(A, 2));
        assert_eq!(left.devices.len(), 1);
        left.add(device(B, 1));
        left.clear();
        assert!(left.find(B).is_none());
    }
}
