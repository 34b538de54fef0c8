//! [`Config`]: how a bus is connected.

use core::fmt;
use core::time::Duration;

use crate::hyperv::{EndOfInterrupt, GuestId};
use crate::protocol::{Guid, Version};

/// Told when offers come or go: for an operating system that wants to wake a task rather than look now and then.
pub trait OfferEvents: Sync {
    /// Offers have come or gone since the last call; [`Bus::next_offer`](super::Bus::next_offer) tells which.
    ///
    /// Called without any lock, in the context that looked at the messages or that closed a channel whose device had been
    /// offered anew: deferred work, or a task in a call to the bus. It must not wait.
    fn offers_changed(&self);
}

/// How a bus is connected. The default suits most systems; one with several processors sets `processors`.
#[derive(Clone, Copy)]
pub struct Config {
    /// The newest version of the protocol to ask for.
    pub max_version: Version,
    /// The oldest version of the protocol to accept.
    pub min_version: Version,
    /// The interrupt vector of the bus on every processor. The operating system's handler calls
    /// [`Bus::acknowledge_interrupt`](super::Bus::acknowledge_interrupt).
    pub vector: u8,
    /// Who is to end these interrupts. The default, nobody, is not to be had on every host: see
    /// [`Bus::end_of_interrupt`](super::Bus::end_of_interrupt). A handler that ends them in any case, as interrupts before
    /// [`Bus::connect`](super::Bus::connect) has returned require, asks for [`EndOfInterrupt::Explicit`].
    pub end_of_interrupt: EndOfInterrupt,
    /// How many processors the operating system may bring: their numbers are below this.
    pub processors: u32,
    /// Who this guest is.
    pub guest_id: GuestId,
    /// The well-known GUID of this guest's software, for hosts with version 6.0; usually none.
    pub client_id: Option<Guid>,
    /// How long to wait for the answer to each contact.
    pub contact_timeout: Duration,
    /// How long to wait for the host's list of offers. If it stays incomplete, the bus is connected all the same.
    pub offers_timeout: Duration,
    /// How long to try to post a message to a host that is busy.
    pub post_timeout: Duration,
    /// The longest wait for the host's answer when the connection ends. The host may flush disk caches meanwhile.
    pub unload_timeout: Duration,
    /// The same for [`Bus::emergency_unload`](super::Bus::emergency_unload).
    pub emergency_timeout: Duration,
    /// How long after a channel was withdrawn its memory is kept from use if the host does not confirm that it has given
    /// it up. `None`: until the connection ends.
    pub rescind_grace: Option<Duration>,
    /// How many offers there can be at a time, the host's and those of this kernel together.
    pub offers: u16,
    /// Channel ids of the host are below this. Hosts use one event flag for each, of which there are 2048.
    pub channel_ids: u16,
    /// How many requests can wait for an answer at a time.
    pub requests: u16,
    /// How many GPADLs there can be at a time: one for each open channel, and those that drivers make.
    pub gpadls: u16,
    /// How many bytes of memory may be shared with the host at a time. `None`: what hosts of the negotiated version are
    /// known to allow (384 MiB before 5.0, 1280 MiB from then on).
    pub gpadl_bytes: Option<u64>,
    /// Told when offers come or go.
    pub offer_events: Option<&'static dyn OfferEvents>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_version: Version::V6_0,
            min_version: Version::V2_4,
            vector: 0xf3,
            end_of_interrupt: EndOfInterrupt::Automatic,
            processors: 1,
            guest_id: GuestId::default(),
            client_id: None,
            contact_timeout: Duration::from_secs(5),
            offers_timeout: Duration::from_secs(10),
            post_timeout: Duration::from_secs(10),
            unload_timeout: Duration::from_secs(100),
            emergency_timeout: Duration::from_secs(10),
            rescind_grace: Some(Duration::from_secs(10)),
            offers: 128,
            channel_ids: 2048,
            requests: 64,
            // Miri takes long to look through the table.
            gpadls: if cfg!(all(test, miri)) { 64 } else { 512 },
            gpadl_bytes: None,
            offer_events: None,
        }
    }
}

impl Config {
    /// Returns how many bytes may be shared with a host that speaks `version`.
    pub(super) fn gpadl_byte_limit(&self, version: Version) -> u64 {
        const MIB: u64 = 1024 * 1024;
        let known = if version >= Version::V5_0 {
            1280 * MIB
        } else {
            384 * MIB
        };
        self.gpadl_bytes.unwrap_or(known)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Config")
            .field("max_version", &self.max_version)
            .field("min_version", &self.min_version)
            .field("vector", &self.vector)
            .field("processors", &self.processors)
            .finish_non_exhaustive()
    }
}
