//! Channels on the bus: a provider that opens the host's offers, and the transport of an open channel.

use alloc::boxed::Box;
use alloc::vec::Vec;
#[cfg(feature = "host")]
use core::sync::atomic::{AtomicBool, Ordering};

use super::external::Lent;
use super::transport::{
    GpadlAccess, Instance, OfferFacts, OfferSource, OpenRequest, Opened, Provider, ProviderHandle, Rings, Sink, Target,
    Transport, UserDefined, sealed,
};
use super::{Error, Gone, NtStatus};
use crate::bus::{self, Bus, ChannelCore, ChannelSink, ChannelState, GpadlMemory, Kept, Offer, OpenParameters, Origin};
use crate::fallible::{OutOfMemory, ReservedVec, Shared, TryPush, try_box, try_vec_with_capacity};
use crate::memory::{Mdl, Pfn};
use crate::platform::{NotMapped, Wait};
use crate::protocol::GpadlId;
use crate::ring::{Consumer, Producer};
use crate::sync::Lock;
use crate::{Deadline, Instant, Platform};

impl From<bus::Error> for Error {
    fn from(error: bus::Error) -> Self {
        match error {
            bus::Error::NoSuchChannel(_) => Self::NoSuchOffer,
            bus::Error::Rescinded(_) | bus::Error::Disconnected => Self::Gone(Gone::Rescinded),
            bus::Error::NotOpen(_) => Self::Gone(Gone::Closed),
            bus::Error::TimedOut => Self::TimedOut,
            bus::Error::WouldDeadlock => Self::WouldDeadlock,
            bus::Error::Refused { status } => Self::Refused(NtStatus(status)),
            bus::Error::OutOfMemory(error) => Self::OutOfMemory(error),
            bus::Error::OutOfPages(error) => Self::OutOfPages(error),
            other => {
                log::warn!(target: "vmbus::kmcl", "the bus: {other}");
                Self::Bus
            }
        }
    }
}

impl sealed::Source for Bus {
    fn provider(&self) -> Result<ProviderHandle, Error> {
        Ok(ProviderHandle(BusProvider::boxed(self)?))
    }
}

impl OfferSource for Bus {
    fn platform(&self) -> &'static dyn Platform {
        Self::platform(self)
    }
}

struct BusProvider {
    bus: Bus,
    /// The channel that came of it is one of this kernel.
    #[cfg(feature = "host")]
    is_local: AtomicBool,
}

impl BusProvider {
    fn boxed(bus: &Bus) -> Result<Box<dyn Provider>, Error> {
        let provider: Box<dyn Provider> = try_box(Self {
            bus: bus.clone(),
            #[cfg(feature = "host")]
            is_local: AtomicBool::new(false),
        })?;
        Ok(provider)
    }

    fn is_wanted(&self, offer: &Offer, target: &Target) -> bool {
        if let Some(channel) = target.channel {
            return offer.channel == channel;
        }
        let of_primary = |primary| {
            self.bus
                .offer(primary)
                .is_some_and(|primary| primary.class == offer.class && primary.instance == offer.instance)
        };
        offer.class == target.class
            && target.primary.map_or(offer.subchannel_index == 0, |primary| {
                offer.subchannel_index != 0 && of_primary(primary)
            })
            && match target.instance {
                Instance::Any => true,
                Instance::Only(instance) => offer.instance == instance,
            }
    }
}

impl Provider for BusProvider {
    fn another(&self) -> Result<Box<dyn Provider>, Error> {
        Self::boxed(&self.bus)
    }

    fn platform(&self) -> &'static dyn Platform {
        self.bus.platform()
    }

    fn now(&self) -> Instant {
        self.bus.hypervisor().now()
    }

    fn poll(&self) {
        #[cfg(feature = "host")]
        if self.is_local.load(Ordering::Relaxed)
            && let Some(host) = self.bus.attached_host()
        {
            host.run_servers();
            return;
        }
        self.bus.look_at_messages();
    }

    fn open(&self, request: &OpenRequest, sink: Box<dyn Sink>, deadline: Deadline) -> Result<Opened, Error> {
        let until = deadline.resolve(self.now());
        let rest = until.map_or(Deadline::Never, Deadline::At);
        let parameters = OpenParameters {
            outgoing_pages: u32::try_from(request.outgoing_pages).unwrap_or(u32::MAX),
            incoming_pages: u32::try_from(request.incoming_pages).unwrap_or(u32::MAX),
            // Packets are received into memory of the channel.
            max_packet_bytes: 0,
            target: request.processor,
            user_data: request.user_data,
        };
        let sink = Shared::try_new(sink)?;
        let mut outcome = Err(Error::NoSuchOffer);
        let mut look = || {
            self.bus.look_at_messages();
            let wanted = |offer: &Offer| offer.origin == Origin::Host && self.is_wanted(offer, &request.target);
            for offer in self.bus.offers().filter(wanted) {
                match self.bus.open(offer.channel, &parameters, BusSink(sink.clone()), rest) {
                    // Another driver has it; any other one will do.
                    Err(bus::Error::InUse(_) | bus::Error::NoSuchChannel(_)) => {}
                    Ok(channel) => {
                        outcome = Ok(Found::Host(channel, offer));
                        return true;
                    }
                    Err(error) => {
                        outcome = Err(error.into());
                        return true;
                    }
                }
            }
            #[cfg(feature = "host")]
            if let Some(taken) = self.bus.attached_host().and_then(|host| host.take(&request.target)) {
                outcome = Ok(Found::Local(taken));
                return true;
            }
            false
        };
        // The outcome tells whether one was found.
        let _ = self.platform().wait(&mut Wait::new(&mut look, &|| self.now(), until));
        match outcome? {
            Found::Host(channel, offer) => opened(channel, &offer),
            #[cfg(feature = "host")]
            Found::Local(taken) => {
                let host = self.bus.attached_host().ok_or(Error::NoSuchOffer)?;
                self.is_local.store(true, Ordering::Relaxed);
                host.open(taken, request, sink, until)
            }
        }
    }
}

/// What was found: a channel that the host has opened, or an offer of this kernel that was taken.
enum Found {
    Host(bus::Channel, Offer),
    #[cfg(feature = "host")]
    Local(crate::host::Taken),
}

fn opened(channel: bus::Channel, offer: &Offer) -> Result<Opened, Error> {
    let pages = channel.ring_pages().ok_or(Error::Gone(Gone::Closed))?;
    let rings = Rings {
        outgoing: Producer::attach(pages.first()?).map_err(|_| Error::Corrupt)?,
        incoming: Consumer::attach(pages.second()?, []).map_err(|_| Error::Corrupt)?,
    };
    let transport: Box<dyn Transport> = try_box(BusTransport {
        platform: channel.bus().platform(),
        channel,
        gpadls: Lock::new(Some(Vec::new())),
    })?;
    Ok(Opened {
        rings,
        transport: Shared::try_new(transport)?,
        offer: OfferFacts {
            channel: offer.channel,
            instance: offer.instance,
            mmio_megabytes: offer.mmio_megabytes,
            user_defined: UserDefined(offer.user_defined),
        },
        is_inherited: false,
    })
}

struct BusSink(Shared<Box<dyn Sink>>);

impl ChannelSink for BusSink {
    fn signalled(&self, _: &ChannelCore) {
        self.0.signalled();
    }

    fn rescinded(&self, _: &ChannelCore) {
        self.0.gone(Gone::Rescinded);
    }
}

/// The memory of a GPADL, with its page list made once.
struct SharedMdl {
    mdl: Mdl,
    first_offset: usize,
    pfns: Vec<Pfn>,
}

impl SharedMdl {
    fn new(mdl: &Mdl) -> Result<Self, OutOfMemory> {
        let mut pfns = try_vec_with_capacity(mdl.wire_extent().pages)?;
        for span in mdl.page_spans() {
            pfns.try_push(span.pfn)?;
        }
        Ok(Self {
            mdl: mdl.clone(),
            first_offset: mdl.page_spans().next().map_or(0, |span| span.offset),
            pfns,
        })
    }
}

#[expect(unsafe_code, reason = "vouches for the pages of an Mdl")]
// SAFETY: the pages are those of the `Mdl`, which is kept with them: memory that the host may write to as long as there is a clone of it.
unsafe impl GpadlMemory for SharedMdl {
    fn offset_bytes(&self) -> usize {
        self.first_offset
    }

    fn len_bytes(&self) -> usize {
        self.mdl.len()
    }

    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped> {
        self.pfns.get(index).copied().ok_or(NotMapped { address: index })
    }
}

struct BusTransport {
    platform: &'static dyn Platform,
    /// Dropped at the latest with the transport; in its own callback that ends the channel after the callback.
    channel: bus::Channel,
    /// None when the channel is closed: nothing is shared any more.
    gpadls: Lock<Option<Vec<bus::Gpadl<SharedMdl>>>>,
}

impl BusTransport {
    /// Makes room for one more GPADL.
    fn reserve(&self) -> Result<(), Error> {
        let mut gpadls = self.gpadls.lock(self.platform);
        let gpadls = gpadls.as_mut().ok_or(Error::Gone(Gone::Closed))?;
        gpadls.try_reserve(1).map_err(|_| OutOfMemory)?;
        Ok(())
    }

    /// Keeps a GPADL until the channel is closed; gives it back, and says why, if it is by now, or another one has taken the room.
    fn keep_gpadl(&self, gpadl: bus::Gpadl<SharedMdl>) -> Option<(Error, bus::Gpadl<SharedMdl>)> {
        let mut gpadls = self.gpadls.lock(self.platform);
        let Some(gpadls) = &mut *gpadls else {
            return Some((Error::Gone(Gone::Closed), gpadl));
        };
        // Without room it comes back.
        let _ = gpadls.try_reserve(1);
        let refused = gpadls.push_within(gpadl).err();
        refused.map(|gpadl| (OutOfMemory.into(), gpadl))
    }
}

impl Transport for BusTransport {
    fn signal(&self) {
        if let Err(error) = self.channel.signal() {
            log::debug!(target: "vmbus::kmcl", "{}: not signalled: {error}", self.channel.id());
        }
    }

    fn schedule(&self) {
        self.channel.schedule();
    }

    fn is_lost(&self) -> bool {
        self.channel.bus().is_lost()
    }

    fn keep(&self, memory: Vec<Lent>) -> u64 {
        let blocks = memory.len() as u64;
        // First the place: it would be dropped with one that is not to be had.
        match try_box(Vec::new()) {
            Ok(mut place) => {
                *place = memory;
                self.channel.keep(Kept::new(place, blocks));
                0
            }
            Err(_) => {
                core::mem::forget(memory);
                blocks
            }
        }
    }

    fn note_lost(&self, blocks: u64) {
        self.channel.bus().note_lost(blocks);
    }

    fn is_withdrawn(&self) -> bool {
        self.channel.state() == ChannelState::Rescinded
    }

    fn create_gpadl(&self, mdl: &Mdl, _: GpadlAccess, deadline: Deadline) -> Result<GpadlId, Error> {
        let ranges = mdl.wire_extent().ranges;
        if ranges != 1 {
            // A GPADL has one range: whole pages, but for its two ends.
            return Err(Error::InvalidExternalData { len: mdl.len(), ranges });
        }
        let memory = SharedMdl::new(mdl)?;
        self.reserve()?;
        let gpadl = self.channel.create_gpadl(memory, deadline)?;
        let id = gpadl.id();
        match self.keep_gpadl(gpadl) {
            None => Ok(id),
            Some((error, gpadl)) => {
                // In time, or the bus keeps it from use.
                let _ = gpadl.teardown(deadline);
                Err(error)
            }
        }
    }

    fn delete_gpadl(&self, gpadl: GpadlId, deadline: Deadline) -> Result<(), Error> {
        let gpadl = {
            let mut gpadls = self.gpadls.lock(self.platform);
            let gpadls = gpadls.as_mut().ok_or(Error::UnknownGpadl)?;
            let place = gpadls.iter().position(|other| other.id() == gpadl);
            place
                .and_then(|place| gpadls.swap_take(place))
                .ok_or(Error::UnknownGpadl)?
        };
        gpadl.teardown(deadline)?;
        Ok(())
    }

    fn close(&self, deadline: Deadline) -> Result<(), Error> {
        let closed = match self.channel.close(deadline) {
            Ok(()) | Err(bus::Error::NotOpen(_)) => Ok(()),
            // In its own callback: the channel ends when this transport is dropped and the callback has ended. The host has given up
            // everything already if it has withdrawn it.
            Err(bus::Error::WouldDeadlock) if self.is_withdrawn() => Ok(()),
            Err(error) => Err(error.into()),
        };
        // The channel has ended here, but nobody knows whether it has there: what was lent may still be written to.
        let closed = closed.and(if self.is_lost() {
            Err(Error::Gone(Gone::Rescinded))
        } else {
            Ok(())
        });
        // Memory that the host does not give up in time is kept from use by the bus.
        let gpadls = self.gpadls.lock(self.platform).take();
        for gpadl in gpadls.into_iter().flatten() {
            if let Err(error) = gpadl.teardown(deadline) {
                log::debug!(target: "vmbus::kmcl", "{}: memory is not given back yet: {error}", self.channel.id());
            }
        }
        closed
    }
}
