//! [`Gpadl`]: memory shared with the other end of a channel.
#![expect(
    unsafe_code,
    reason = "a trait whose implementations vouch for the pages that they name"
)]

use alloc::boxed::Box;

use super::Bus;
use super::error::Error;
use super::gpadls::Parking;
use super::inner::BusInner;
use super::offer::Offer;
use super::parked::Parked;
use super::replies::Key;
use crate::fallible::try_box;
use crate::memory::Pfn;
use crate::platform::NotMapped;
use crate::protocol::gpadl::{GpadlBody, GpadlHeader, GpadlRange, GpadlTeardown};
use crate::protocol::{ChannelMessage, GpadlId};
use crate::{Deadline, Instant};

/// A GPADL could not be created.
pub(super) struct NotCreated {
    pub(super) error: Error,
    /// The number under which the other end may have the memory all the same.
    pub(super) maybe_held: Option<GpadlId>,
}

impl From<Error> for NotCreated {
    fn from(error: Error) -> Self {
        Self {
            error,
            maybe_held: None,
        }
    }
}

/// Memory that a GPADL shares with the host.
///
/// The value keeps the memory: it is dropped, or given back, only when the host has given the memory up.
///
/// # Safety
///
/// The host reads and writes the pages that [`pfn`](Self::pfn) names. As long as the value lives, they are memory that the host
/// may write to at any moment, and that this program reaches only as such: never by references. So the trait cannot be implemented
/// without a word for that:
///
/// ```compile_fail,E0200
/// use vmbus::{bus::GpadlMemory, memory::Pfn, platform::NotMapped};
///
/// /// The page of somebody else's.
/// struct Stack(u64);
/// impl GpadlMemory for Stack {
///     fn len_bytes(&self) -> usize {
///         4096
///     }
///     fn pfn(&self, _: usize) -> Result<Pfn, NotMapped> {
///         Ok(Pfn::new(self.0))
///     }
/// }
/// ```
pub unsafe trait GpadlMemory: Send + Sync + 'static {
    /// Returns where the memory begins in its first page, in bytes.
    fn offset_bytes(&self) -> usize {
        0
    }

    /// Returns how many bytes there are.
    fn len_bytes(&self) -> usize;

    /// Returns the guest-physical page of page `index` of the memory.
    ///
    /// # Errors
    ///
    /// [`NotMapped`] if there is no such page.
    fn pfn(&self, index: usize) -> Result<Pfn, NotMapped>;
}

impl BusInner {
    /// Describes `memory` to the other end of a channel and waits for its agreement.
    pub(super) fn create_gpadl(
        &self,
        offer: &Offer,
        place: usize,
        memory: &dyn GpadlMemory,
        until: Option<Instant>,
    ) -> Result<GpadlId, NotCreated> {
        let range = GpadlRange::new(memory.offset_bytes(), memory.len_bytes()).map_err(Error::from)?;
        let shared_bytes = u64::from(u32::try_from(range.page_count()).unwrap_or(u32::MAX)) * 4096;
        let limit = self.config.gpadl_byte_limit(self.version());
        let id = self.gpadls.reserve(offer.channel, shared_bytes, limit)?;
        let mut is_known = false;
        self.describe(offer, place, id, range, memory, until, &mut is_known)
            .map_err(|error| {
                // A refusal is the other end's word that it does not hold the memory.
                let is_held = is_known && !matches!(error, Error::Refused { .. });
                if !is_held {
                    self.gpadls.forget(id);
                }
                NotCreated {
                    error,
                    maybe_held: is_held.then_some(id),
                }
            })?;
        Ok(id)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of `create_gpadl`, which has them all"
    )]
    fn describe(
        &self,
        offer: &Offer,
        place: usize,
        id: GpadlId,
        range: GpadlRange,
        memory: &dyn GpadlMemory,
        until: Option<Instant>,
        is_known: &mut bool,
    ) -> Result<(), Error> {
        let ticket = self
            .replies
            .expect(Key::GpadlCreated(offer.channel, id), Some(offer.channel))?;
        if self.table.is_rescinded(place) {
            return Err(Error::Rescinded(offer.channel));
        }
        let page = |index: usize| Ok::<u64, Error>(memory.pfn(index)?.get());
        let header = GpadlHeader::describe(offer.channel, id, range, page)?;
        self.post(&header, until, Some(&ticket))?;
        *is_known = true;
        for number in 1..range.message_count() {
            let body = GpadlBody::describe(number, id, range, page)?;
            self.post(&body, until, Some(&ticket))?;
        }
        self.wait_for(&ticket, until)
    }

    /// Asks the other end to give up a GPADL and waits until it has. After an error, the caller parks the memory.
    pub(super) fn teardown(
        &self,
        offer: &Offer,
        place: usize,
        id: GpadlId,
        until: Option<Instant>,
    ) -> Result<(), Error> {
        self.gpadls.begin_teardown(id);
        if self.is_given_up() {
            // The end of the connection was the host's word for everything.
            self.gpadls.forget(id);
            return Ok(());
        }
        let request = GpadlTeardown::new(offer.channel, id).encode();
        let ticket = self.replies.expect(Key::GpadlTorndown(id), Some(offer.channel));
        // A withdrawn channel's host may never answer: look once. Asked after the waiter is noted, or a withdrawal could slip in
        // between and end nobody's wait.
        let until = if self.table.is_rescinded(place) {
            Some(self.now())
        } else {
            until
        };
        let owe = |error: &Error| self.owe_memory(error, place, id);
        let result = match ticket {
            Ok(ticket) => self
                .post(&request, until, Some(&ticket))
                .inspect_err(owe)
                .and_then(|()| self.wait_for(&ticket, until)),
            // Without a place to wait: the answer unparks the memory.
            Err(error) => self.try_post(request.as_slice()).inspect_err(owe).and(Err(error)),
        };
        if self.gpadls.take_confirmed(id) {
            return Ok(());
        }
        if self.is_given_up() {
            self.gpadls.forget(id);
            return Ok(());
        }
        match result {
            Err(Error::TimedOut) if self.table.is_rescinded(place) => Err(Error::Rescinded(offer.channel)),
            Ok(()) => Ok(()),
            error => error,
        }
    }

    /// Keeps memory from use until the other end gives it up.
    pub(super) fn park(&self, place: usize, id: GpadlId, memory: Parked) {
        let free_at = || {
            let grace = self.config.rescind_grace.filter(|_| self.table.is_rescinded(place))?;
            Some(self.now().saturating_add(grace))
        };
        let blocks = memory.blocks();
        let parking = self.gpadls.park(id, memory, free_at);
        if parking != Parking::GivenUp {
            self.counters.parked_blocks.add(blocks);
            if parking == Parking::Lost {
                self.counters.lost_blocks.add(blocks);
            }
            log::debug!("the memory of {id} rests until the other end gives it up");
            // The connection may have ended meanwhile, with the host's word for everything: who ended it has looked already.
            self.free_if_given_up();
        }
    }
}

/// Memory shared with the other end of a channel, under a number that the driver tells it.
///
/// Dropped without [`Gpadl::teardown`], the other end is asked to give the memory up, and the memory is kept from use
/// until it has.
#[derive(Debug)]
pub struct Gpadl<M: GpadlMemory> {
    bus: Bus,
    offer: Offer,
    place: usize,
    id: GpadlId,
    memory: Option<Box<M>>,
}

impl<M: GpadlMemory> Gpadl<M> {
    pub(super) fn create(bus: Bus, offer: &Offer, place: usize, memory: M, deadline: Deadline) -> Result<Self, Error> {
        let memory = try_box(memory)?;
        let until = deadline.resolve(bus.0.now());
        // First of all: a channel that is closed meanwhile, by another task, must not lose its entry to another offer.
        if !bus.0.table.add_user(place, offer) {
            return Err(Error::NotOpen(offer.channel));
        }
        match bus.0.create_gpadl(offer, place, &*memory, until) {
            Ok(id) => Ok(Self {
                bus,
                offer: *offer,
                place,
                id,
                memory: Some(memory),
            }),
            Err(NotCreated { error, maybe_held }) => {
                if let Some(id) = maybe_held {
                    bus.0.withdraw_memory(offer, place, id, memory);
                }
                bus.0.table.remove_user(place);
                bus.0.flush_releases();
                Err(error)
            }
        }
    }

    /// Returns the number, by which a driver names the memory to the other end.
    #[must_use]
    pub const fn id(&self) -> GpadlId {
        self.id
    }

    /// Returns the memory: always there, except for a value that is being dropped.
    #[must_use]
    pub fn memory(&self) -> Option<&M> {
        self.memory.as_deref()
    }

    /// Takes the memory back from the other end and returns it. The driver has told the other end to stop using it; for
    /// most devices this comes after the channel was closed. Context: task.
    ///
    /// # Errors
    ///
    /// [`Error`]: the other end has not given it up in time, or the channel was withdrawn. The memory is kept from use
    /// until that is certain.
    pub fn teardown(mut self, deadline: Deadline) -> Result<M, Error> {
        let until = deadline.resolve(self.bus.0.now());
        let result = self.bus.0.teardown(&self.offer, self.place, self.id, until);
        // Only taken here and when dropped.
        let memory = self.memory.take().ok_or(Error::Disconnected)?;
        match result {
            Ok(()) => Ok(*memory),
            Err(error) => {
                self.bus.0.park(self.place, self.id, Parked::new(memory, None));
                Err(error)
            }
        }
    }
}

impl<M: GpadlMemory> Drop for Gpadl<M> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.bus.0.withdraw_memory(&self.offer, self.place, self.id, memory);
        }
        self.bus.0.table.remove_user(self.place);
        self.bus.0.flush_releases();
    }
}

impl BusInner {
    /// Asks the other end, without waiting, to give up memory, which is parked until it has.
    pub(super) fn withdraw_memory<M: GpadlMemory>(&self, offer: &Offer, place: usize, id: GpadlId, memory: Box<M>) {
        match self.teardown(offer, place, id, Some(self.now())) {
            Ok(()) => drop(memory),
            Err(_) => self.park(place, id, Parked::new(memory, None)),
        }
    }
}
