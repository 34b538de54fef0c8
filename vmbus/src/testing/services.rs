//! What this kernel offers beside the host, for the tests of the bus and of the KMCL-style interface.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::bus::{Bus, OfferEvents};
use crate::host::Host;
use crate::kmcl::{Channel, DisabledChannel, Instance};
use crate::protocol::Guid;

pub(crate) const SERVICE: Guid = Guid::literal("5a17e5a1-0000-4000-8000-0000000005e7");

/// Counts how often somebody was told of offers, for the one test that has it.
pub(crate) struct Told(AtomicU32);

impl Told {
    pub(crate) const fn never() -> Self {
        Self(AtomicU32::new(0))
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl OfferEvents for Told {
    fn offers_changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Makes a host in this kernel, on the clock of `bus`; it is not attached.
pub(crate) fn host_for(bus: &Bus) -> Host {
    let hypervisor = bus.hypervisor();
    Host::new(bus.platform(), || hypervisor.now()).unwrap()
}

/// Makes a server that answers with what came.
pub(crate) fn service(host: &Host) -> DisabledChannel {
    Channel::allocate_server(host)
        .unwrap()
        .init_set_target(SERVICE, Instance::Any)
        .init_set_friendly_name("a service")
        .init_set_process_packet_callback(|_, packet| {
            let answer = packet.payload().to_vec();
            packet.complete(&answer).unwrap();
        })
}
