//! The table of GPADLs: which numbers are taken, how much memory is shared, and memory that is parked.
//!
//! A number is taken from before its first message until the host confirms the teardown, so that none is used twice
//! meanwhile. Memory whose teardown was not confirmed in time is *parked*: kept from use until the confirmation comes,
//! until the connection has ended with the host's word, or until long enough after the channel was withdrawn. If none of
//! that happens it is lost on purpose, since the host might still write to it.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::error::Error;
use super::parked::{Kept, Parked};
use crate::fallible::{OutOfMemory, try_vec_of};
use crate::protocol::{ChannelId, GpadlId};
use crate::sync::{Lock, LockGuard};
use crate::{Instant, Platform};

struct Held {
    id: GpadlId,
    channel: ChannelId,
    len_bytes: u64,
    is_tearing_down: bool,
    /// The host was too busy to be asked: it is asked when it is parked, and the host takes it.
    is_owed: bool,
    /// It is the rings of a channel that is open for the host, which could not be told that it closes: to ask for them is not allowed,
    /// and its word would mean nothing.
    is_in_use: bool,
    /// The host has given it up; its owner has not asked yet.
    is_confirmed: bool,
    parked: Option<Parked>,
    /// When parked memory goes back to use without the host's word: its channel was withdrawn.
    free_at: Option<Instant>,
}

struct State {
    held: Vec<Option<Held>>,
    next_id: u32,
    shared_bytes: u64,
    /// The connection has ended without the host's word: what is parked is lost.
    is_lost: bool,
}

pub(super) struct Gpadls {
    platform: &'static dyn Platform,
    state: Lock<State>,
    /// The earliest `free_at`, in reference units.
    due: AtomicU64,
    /// The host is to be asked for something that is parked.
    has_debts: AtomicBool,
}

/// What the host's word about a teardown meant.
pub(super) enum TornDown {
    /// No teardown of this number is under way.
    Stray,
    /// The owner waits for it, or will ask.
    Waited,
    /// It was parked: the memory is free. Dropped without a lock.
    Parked(Parked),
}

/// What became of memory that was to be kept along with what is parked.
pub(super) enum Keeping {
    Kept,
    /// It is kept, and lost with all that is parked.
    Lost,
    /// The host has given up what it was to be kept with.
    GivenUp(Kept),
    /// There is something already.
    Refused(Kept),
}

/// What became of memory that was to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parking {
    Parked,
    /// It is parked, and lost with all that is.
    Lost,
    /// The host has given it up, and it was dropped.
    GivenUp,
}

impl Gpadls {
    pub(super) fn new(platform: &'static dyn Platform, count: u16) -> Result<Self, OutOfMemory> {
        Ok(Self {
            platform,
            state: Lock::new(State {
                held: try_vec_of(usize::from(count.max(1)), |_| None)?,
                next_id: 1,
                shared_bytes: 0,
                is_lost: false,
            }),
            due: AtomicU64::new(u64::MAX),
            has_debts: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> LockGuard<'_, State> {
        self.state.lock(self.platform)
    }

    /// Takes a number for `len_bytes` bytes that will be shared on `channel`.
    pub(super) fn reserve(&self, channel: ChannelId, len_bytes: u64, limit: u64) -> Result<GpadlId, Error> {
        let mut state = self.lock();
        let shared = state.shared_bytes;
        let total = shared.checked_add(len_bytes).filter(|total| *total <= limit);
        let total = total.ok_or(Error::GpadlLimit {
            wanted: len_bytes,
            shared,
            limit,
        })?;
        let place = state
            .held
            .iter()
            .position(Option::is_none)
            .ok_or(Error::TooManyGpadls)?;
        // There are fewer entries than numbers, so this ends.
        let mut id = state.next_id;
        while id == 0 || state.held.iter().flatten().any(|held| held.id.0 == id) {
            id = id.wrapping_add(1);
        }
        state.next_id = id.wrapping_add(1);
        state.shared_bytes = total;
        if let Some(free) = state.held.get_mut(place) {
            *free = Some(Held {
                id: GpadlId(id),
                channel,
                len_bytes,
                is_tearing_down: false,
                is_owed: false,
                is_in_use: false,
                is_confirmed: false,
                parked: None,
                free_at: None,
            });
        }
        Ok(GpadlId(id))
    }

    fn change<T>(&self, id: GpadlId, change: impl FnOnce(&mut Held) -> T) -> Option<T> {
        self.lock()
            .held
            .iter_mut()
            .flatten()
            .find(|held| held.id == id)
            .map(change)
    }

    fn remove(state: &mut State, which: impl Fn(&Held) -> bool) -> Option<Held> {
        let place = state.held.iter().position(|held| held.as_ref().is_some_and(&which))?;
        let held = state.held.get_mut(place)?.take()?;
        state.shared_bytes = state.shared_bytes.saturating_sub(held.len_bytes);
        Some(held)
    }

    /// Frees a number that the host does not know, or knows no more.
    pub(super) fn forget(&self, id: GpadlId) {
        let held = Self::remove(&mut self.lock(), |held| held.id == id);
        drop(held);
    }

    /// Notes that the host is asked to give up a GPADL.
    pub(super) fn begin_teardown(&self, id: GpadlId) {
        self.change(id, |held| {
            held.is_tearing_down = true;
            held.is_owed = false;
        });
    }

    /// Notes that the host was too busy to be asked for a GPADL, which is parked or about to be, unless its channel `is_withdrawn`.
    /// Asked under the lock, as in [`Gpadls::park`].
    pub(super) fn owe(&self, id: GpadlId, is_withdrawn: impl FnOnce() -> bool) {
        self.change(id, |held| held.is_owed = !is_withdrawn());
        // Release: pairs with the acquire in `has_debts`.
        self.has_debts.store(true, Ordering::Release);
    }

    /// Returns true if the host may have to be asked for something.
    pub(super) fn has_debts(&self) -> bool {
        self.has_debts.load(Ordering::Acquire)
    }

    /// Returns a GPADL that the host is to be asked for now, until [`Gpadls::paid`].
    pub(super) fn next_owed(&self) -> Option<(ChannelId, GpadlId)> {
        if !self.has_debts() {
            return None;
        }
        let mut state = self.lock();
        let Some(held) = state.held.iter_mut().flatten().find(|held| held.is_owed) else {
            self.has_debts.store(false, Ordering::Release);
            return None;
        };
        held.is_tearing_down = true;
        Some((held.channel, held.id))
    }

    /// The host was asked, or cannot be.
    pub(super) fn paid(&self, id: GpadlId) {
        self.change(id, |held| held.is_owed = false);
    }

    /// The host is not to be asked for the rings of a channel that is open for it.
    pub(super) fn stays_in_use(&self, id: GpadlId) {
        self.change(id, |held| {
            held.is_owed = false;
            held.is_in_use = true;
        });
    }

    /// As [`Gpadls::stays_in_use`], of all that a channel has that the host is to be asked for later.
    pub(super) fn owed_stays_in_use(&self, channel: ChannelId) {
        for held in self.lock().held.iter_mut().flatten() {
            if held.channel == channel && held.is_owed {
                held.is_owed = false;
                held.is_in_use = true;
            }
        }
    }

    /// Keeps memory from use until the host gives it up, or until the time that `free_at` returns.
    ///
    /// `free_at` is asked under the lock: a withdrawal of the channel is either known to it, or finds the memory parked in
    /// [`Gpadls::channel_withdrawn`].
    pub(super) fn park(&self, id: GpadlId, memory: Parked, free_at: impl FnOnce() -> Option<Instant>) -> Parking {
        let mut memory = Some(memory);
        let mut state = self.lock();
        if Self::remove(&mut state, |held| held.id == id && held.is_confirmed).is_none()
            && let Some(held) = state.held.iter_mut().flatten().find(|held| held.id == id)
        {
            let free_at = free_at();
            held.is_tearing_down = true;
            held.parked = memory.take();
            held.free_at = free_at;
            let is_lost = state.is_lost;
            drop(state);
            self.note_due(free_at);
            return if is_lost { Parking::Lost } else { Parking::Parked };
        }
        drop(state);
        drop(memory);
        Parking::GivenUp
    }

    /// Keeps something along with what is parked under this number.
    pub(super) fn keep(&self, id: GpadlId, kept: Kept) -> Keeping {
        let mut state = self.lock();
        let is_lost = state.is_lost;
        let mut held = state.held.iter_mut().flatten();
        // A number is not used again soon: if it is free, the host has given up what had it.
        let Some(parked) = held.find(|held| held.id == id).and_then(|held| held.parked.as_mut()) else {
            return Keeping::GivenUp(kept);
        };
        match parked.keep(kept) {
            None if is_lost => Keeping::Lost,
            None => Keeping::Kept,
            Some(kept) => Keeping::Refused(kept),
        }
    }

    fn note_due(&self, free_at: Option<Instant>) {
        if let Some(free_at) = free_at {
            self.due.fetch_min(free_at.reference_units(), Ordering::Relaxed);
        }
    }

    /// Lets parked memory of a withdrawn channel go back to use at `free_at`. The host is asked for it no more.
    pub(super) fn channel_withdrawn(&self, channel: ChannelId, free_at: Option<Instant>) {
        let mut is_any = false;
        for held in self.lock().held.iter_mut().flatten() {
            if held.channel == channel {
                held.is_owed = false;
                if held.parked.is_some() && held.free_at.is_none() {
                    held.free_at = free_at;
                    is_any = true;
                }
            }
        }
        if is_any {
            self.note_due(free_at);
        }
    }

    /// Takes the host's word that it has given up a GPADL.
    pub(super) fn torn_down(&self, id: GpadlId) -> TornDown {
        let mut state = self.lock();
        let is_it = |held: &Held| held.id == id && held.is_tearing_down && !held.is_confirmed;
        let Some(held) = state.held.iter_mut().flatten().find(|held| is_it(held)) else {
            return TornDown::Stray;
        };
        if held.parked.is_none() {
            held.is_confirmed = true;
            return TornDown::Waited;
        }
        let memory = Self::remove(&mut state, is_it).and_then(|held| held.parked);
        drop(state);
        memory.map_or(TornDown::Stray, TornDown::Parked)
    }

    /// Frees the number if the host has given up the GPADL. Returns true if so.
    pub(super) fn take_confirmed(&self, id: GpadlId) -> bool {
        Self::remove(&mut self.lock(), |held| held.id == id && held.is_confirmed).is_some()
    }

    /// Returns parked memory that has waited long enough after its channel was withdrawn.
    pub(super) fn take_due(&self, now: Instant) -> Option<Parked> {
        if self.due.load(Ordering::Relaxed) > now.reference_units() {
            return None;
        }
        let mut state = self.lock();
        let is_due = |held: &Held| held.parked.is_some() && held.free_at.is_some_and(|at| at <= now);
        let due = Self::remove(&mut state, is_due);
        if due.is_none() {
            let next = state.held.iter().flatten().filter_map(|held| held.free_at).min();
            let next = next.map_or(u64::MAX, Instant::reference_units);
            self.due.store(next, Ordering::Relaxed);
        }
        drop(state);
        due.and_then(|held| held.parked)
    }

    /// Returns any parked memory, for a connection that has ended with the host's word.
    pub(super) fn take_parked(&self) -> Option<Parked> {
        let mut state = self.lock();
        Self::remove(&mut state, |held| held.parked.is_some()).and_then(|held| held.parked)
    }

    /// Returns a GPADL of the host that it has not been asked for.
    pub(super) fn next_live(&self) -> Option<(ChannelId, GpadlId)> {
        let state = self.lock();
        let mut live = state.held.iter().flatten();
        live.find(|held| !held.is_in_use && (!held.is_tearing_down || held.is_owed))
            .map(|held| (held.channel, held.id))
    }

    /// Returns true if the host has a GPADL that is being torn down.
    pub(super) fn is_tearing_down(&self) -> bool {
        let state = self.lock();
        let mut held = state.held.iter().flatten();
        held.any(|held| held.is_tearing_down && !held.is_confirmed)
    }

    /// Returns how many bytes are shared with the host.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.lock().shared_bytes
    }

    /// The connection has ended without the host's word: what is parked, and will be, is lost. Returns how many blocks that is now.
    pub(super) fn lose_parked(&self) -> u64 {
        let mut state = self.lock();
        state.is_lost = true;
        Self::parked_blocks(&state)
    }

    fn parked_blocks(state: &State) -> u64 {
        let parked = state.held.iter().flatten().filter_map(|held| held.parked.as_ref());
        parked.map(Parked::blocks).sum()
    }

    /// Returns how many blocks of memory are parked.
    #[cfg(test)]
    pub(super) fn parked_count(&self) -> u64 {
        Self::parked_blocks(&self.lock())
    }

    #[cfg(test)]
    pub(super) fn with_lock_for_test<T>(&self, work: impl FnOnce() -> T) -> T {
        let _state = self.lock();
        work()
    }

    /// Sets the next number to try, for tests of its wrap.
    #[cfg(test)]
    pub(super) fn set_next_id(&self, id: u32) {
        self.lock().next_id = id;
    }
}

impl Drop for Gpadls {
    fn drop(&mut self) {
        // What the host has given up was taken out before; the rest is lost on purpose.
        while let Some(memory) = self.take_parked() {
            memory.lose();
        }
    }
}
