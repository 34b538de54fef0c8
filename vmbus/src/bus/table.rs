//! The table of offers: of fixed size, filled and emptied by the host's messages, with the open channels beside it.
//!
//! An entry lives until its offer was withdrawn *and* nobody uses it any more; then its channel id is given back to the
//! host, once. A second offer of the same device, or of an id that is still in use, is held back until then.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use super::channel::ChannelCore;
use super::error::Error;
use super::offer::Offer;
use crate::Platform;
use crate::fallible::{OutOfMemory, Shared, try_vec_of, try_vec_zeroed};
use crate::protocol::ChannelId;
use crate::sync::{Lock, LockGuard};

#[derive(Debug)]
struct Entry {
    offer: Offer,
    /// Not shown: an older entry has the same id or is the same device.
    is_held: bool,
    is_rescinded: bool,
    is_open: bool,
    /// It was closed, and the host was too busy to be told: it is not opened before it has been.
    owes_close: bool,
    /// The host is being told that its id is free.
    is_releasing: bool,
    /// The open channel, and each of its GPADLs.
    users: u32,
}

impl Entry {
    const fn is_visible(&self) -> bool {
        !self.is_held && !self.is_rescinded
    }

    const fn is_releasable(&self) -> bool {
        self.is_rescinded && self.users == 0 && !self.is_releasing
    }
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Shown,
    Held,
    DuplicateId,
    BadId,
    NoRoom,
}

/// What became of a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Withdrawal {
    /// The entry in this place, which was shown.
    Shown(usize),
    /// One that was held back and never shown.
    Held,
    Unknown,
}

pub(super) struct Table {
    platform: &'static dyn Platform,
    entries: Lock<Vec<Option<Entry>>>,
    /// For each channel id of the host one more than the place of the entry that has it; 0: none.
    ids: Vec<AtomicU16>,
    /// The open channel of each entry.
    open: Vec<Lock<Option<Shared<ChannelCore>>>>,
    sequence: AtomicU64,
    generation: AtomicU64,
    has_releases: AtomicBool,
    has_debts: AtomicBool,
}

impl Table {
    pub(super) fn new(platform: &'static dyn Platform, offers: u16, channel_ids: u16) -> Result<Self, OutOfMemory> {
        let offers = usize::from(offers.clamp(1, u16::MAX - 1));
        Ok(Self {
            platform,
            entries: Lock::new(try_vec_of(offers, |_| None)?),
            ids: try_vec_zeroed(usize::from(channel_ids))?,
            open: try_vec_of(offers, |_| Lock::new(None))?,
            sequence: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            has_releases: AtomicBool::new(false),
            has_debts: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> LockGuard<'_, Vec<Option<Entry>>> {
        self.entries.lock(self.platform)
    }

    /// Returns the number that changes whenever an offer comes or goes.
    pub(super) fn generation(&self) -> u64 {
        // Acquire: pairs with the release in `changed`; what changed is seen.
        self.generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn place_word(&self, channel: ChannelId) -> Option<&AtomicU16> {
        // Channel 0 is no channel.
        let index = usize::try_from(channel.0).ok().filter(|index| *index != 0)?;
        self.ids.get(index)
    }

    /// Returns the place of the entry that has this id.
    fn place(&self, channel: ChannelId) -> Option<usize> {
        let word = self.place_word(channel)?;
        // Acquire: pairs with the release in `name`.
        usize::from(word.load(Ordering::Acquire)).checked_sub(1)
    }

    fn name(&self, offer: &Offer, place: Option<usize>) {
        if let Some(word) = self.place_word(offer.channel) {
            let value = place
                .and_then(|place| u16::try_from(place.checked_add(1)?).ok())
                .unwrap_or(0);
            word.store(value, Ordering::Release);
        }
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Takes an offer in.
    pub(super) fn admit(&self, mut offer: Offer) -> (Admission, Offer) {
        if self.place_word(offer.channel).is_none() {
            return (Admission::BadId, offer);
        }
        let mut entries = self.lock();
        let has_same_id = |entry: &Entry| entry.offer.channel == offer.channel;
        if entries
            .iter()
            .flatten()
            .any(|entry| has_same_id(entry) && !entry.is_rescinded)
        {
            return (Admission::DuplicateId, offer);
        }
        let is_held = entries
            .iter()
            .flatten()
            .any(|entry| has_same_id(entry) || entry.offer.is_same_device(&offer));
        let Some((place, free)) = entries.iter_mut().enumerate().find(|(_, entry)| entry.is_none()) else {
            return (Admission::NoRoom, offer);
        };
        offer.sequence = self.next_sequence();
        *free = Some(Entry {
            offer,
            is_held,
            is_rescinded: false,
            is_open: false,
            owes_close: false,
            is_releasing: false,
            users: 0,
        });
        if is_held {
            return (Admission::Held, offer);
        }
        self.name(&offer, Some(place));
        self.changed();
        (Admission::Shown, offer)
    }

    /// Marks an offer as withdrawn.
    pub(super) fn withdraw(&self, channel: ChannelId) -> Withdrawal {
        let mut entries = self.lock();
        let found = entries
            .iter_mut()
            .enumerate()
            .filter_map(|(place, entry)| Some((place, entry.as_mut()?)))
            .find(|(_, entry)| entry.offer.channel == channel && !entry.is_rescinded);
        let Some((place, entry)) = found else {
            return Withdrawal::Unknown;
        };
        entry.is_rescinded = true;
        if entry.is_releasable() {
            self.has_releases.store(true, Ordering::Release);
        }
        if entry.is_held {
            return Withdrawal::Held;
        }
        self.changed();
        Withdrawal::Shown(place)
    }

    /// Marks all offers as withdrawn: the connection has ended.
    pub(super) fn withdraw_all(&self) {
        for entry in self.lock().iter_mut().flatten() {
            entry.is_rescinded = true;
        }
        self.changed();
    }

    /// Returns the first offer from `place` on that is shown, and its place.
    pub(super) fn shown_from(&self, place: usize) -> Option<(usize, Offer)> {
        let entries = self.lock();
        let mut rest = entries.iter().enumerate().skip(place);
        rest.find_map(|(place, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.is_visible())?;
            Some((place, entry.offer))
        })
    }

    /// Returns the oldest offer that is shown and newer than `sequence`.
    pub(super) fn shown_after(&self, sequence: u64) -> Option<Offer> {
        let entries = self.lock();
        let newer = entries
            .iter()
            .flatten()
            .filter(|entry| entry.is_visible() && entry.offer.sequence > sequence);
        newer.map(|entry| entry.offer).min_by_key(|offer| offer.sequence)
    }

    pub(super) fn shown(&self, channel: ChannelId) -> Option<Offer> {
        let place = self.place(channel)?;
        let entries = self.lock();
        let entry = entries.get(place)?.as_ref()?;
        (entry.is_visible() && entry.offer.channel == channel).then_some(entry.offer)
    }

    /// Claims a channel for opening. Given back with [`Table::closed`].
    pub(super) fn claim(&self, channel: ChannelId) -> Result<(usize, Offer), Error> {
        let place = self.place(channel).ok_or(Error::NoSuchChannel(channel))?;
        let mut entries = self.lock();
        let entry = entries
            .get_mut(place)
            .and_then(Option::as_mut)
            // Another one with the same id may have come since, and be held back.
            .filter(|entry| entry.offer.channel == channel && !entry.is_held)
            .ok_or(Error::NoSuchChannel(channel))?;
        if entry.is_rescinded {
            return Err(Error::Rescinded(channel));
        }
        if entry.is_open || entry.owes_close {
            return Err(Error::InUse(channel));
        }
        entry.is_open = true;
        entry.users = entry.users.saturating_add(1);
        Ok((place, entry.offer))
    }

    fn with_entry<T>(&self, place: usize, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut entries = self.lock();
        let entry = entries.get_mut(place)?.as_mut()?;
        let result = change(entry);
        if entry.is_releasable() {
            self.has_releases.store(true, Ordering::Release);
        }
        Some(result)
    }

    /// Gives back what [`Table::claim`] claimed.
    pub(super) fn closed(&self, place: usize) {
        self.with_entry(place, |entry| {
            entry.is_open = false;
            entry.users = entry.users.saturating_sub(1);
        });
    }

    /// Notes that the host was too busy to be told that the channel closes, which is open still.
    pub(super) fn owe_close(&self, place: usize) {
        self.with_entry(place, |entry| entry.owes_close = true);
        // Release: pairs with the acquire in `has_debts`.
        self.has_debts.store(true, Ordering::Release);
    }

    /// Returns true if the host may have to be told of a channel that it was closed.
    pub(super) fn has_debts(&self) -> bool {
        self.has_debts.load(Ordering::Acquire)
    }

    /// Returns a channel of which the host is to be told that it was closed, until [`Table::paid`]. One that was withdrawn is closed
    /// all the same.
    pub(super) fn next_owed(&self) -> Option<(usize, ChannelId)> {
        if !self.has_debts() {
            return None;
        }
        let entries = self.lock();
        let mut owing = entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| Some((place, entry.as_ref()?)))
            .filter(|(_, entry)| entry.owes_close && !entry.is_rescinded);
        let found = owing.next().map(|(place, entry)| (place, entry.offer.channel));
        if found.is_none() {
            self.has_debts.store(false, Ordering::Release);
        }
        found
    }

    /// The host was told that the channel closes, or cannot be told.
    pub(super) fn paid(&self, place: usize, channel: ChannelId) {
        self.with_entry(place, |entry| {
            if entry.offer.channel == channel {
                entry.owes_close = false;
            }
        });
    }

    /// Notes a further user of an offer's entry: a GPADL. Returns false if the entry is another offer's by now, or about to be.
    pub(super) fn add_user(&self, place: usize, offer: &Offer) -> bool {
        let added = self.with_entry(place, |entry| {
            let is_same = entry.offer.sequence == offer.sequence && !entry.is_releasing;
            entry.users = entry.users.saturating_add(u32::from(is_same));
            is_same
        });
        added.unwrap_or(false)
    }

    /// Notes that a user is gone.
    pub(super) fn remove_user(&self, place: usize) {
        self.with_entry(place, |entry| entry.users = entry.users.saturating_sub(1));
    }

    pub(super) fn is_rescinded(&self, place: usize) -> bool {
        self.with_entry(place, |entry| entry.is_rescinded).unwrap_or(true)
    }

    /// Returns a withdrawn entry that nobody uses, to tell the host that its id is free. Each is returned once, until
    /// [`Table::release_later`].
    pub(super) fn next_release(&self) -> Option<(usize, ChannelId)> {
        // Acquire: pairs with the releases where it is set.
        if !self.has_releases.load(Ordering::Acquire) {
            return None;
        }
        let mut entries = self.lock();
        let found = entries
            .iter_mut()
            .enumerate()
            .filter_map(|(place, entry)| Some((place, entry.as_mut()?)))
            .find(|(_, entry)| entry.is_releasable());
        let Some((place, entry)) = found else {
            self.has_releases.store(false, Ordering::Release);
            return None;
        };
        entry.is_releasing = true;
        Some((place, entry.offer.channel))
    }

    /// The host could not be told now.
    pub(super) fn release_later(&self, place: usize) {
        self.with_entry(place, |entry| entry.is_releasing = false);
    }

    /// The host was told: the entry goes, and one that it held back is shown. Returns true if one is.
    pub(super) fn released(&self, place: usize) -> bool {
        let mut entries = self.lock();
        let Some(gone) = entries.get_mut(place).and_then(Option::take) else {
            return false;
        };
        if self.place(gone.offer.channel) == Some(place) {
            self.name(&gone.offer, None);
        }
        let mut is_shown = false;
        // The oldest of those that it held back, if nothing else does.
        while let Some(next) = Self::next_to_show(&entries) {
            let Some(entry) = entries.get_mut(next).and_then(Option::as_mut) else {
                break;
            };
            entry.is_held = false;
            // It comes now: an observer that has seen a younger offer in the meantime is still to see this one.
            entry.offer.sequence = self.next_sequence();
            self.name(&entry.offer, Some(next));
            self.changed();
            is_shown = true;
        }
        is_shown
    }

    fn next_to_show(entries: &[Option<Entry>]) -> Option<usize> {
        let shown = || entries.iter().flatten().filter(|entry| !entry.is_held);
        let candidates = entries
            .iter()
            .enumerate()
            .filter_map(|(place, entry)| Some((place, entry.as_ref()?)))
            .filter(|(_, entry)| entry.is_held && !entry.is_rescinded)
            .filter(|(_, held)| {
                !shown()
                    .any(|entry| entry.offer.channel == held.offer.channel || entry.offer.is_same_device(&held.offer))
            });
        let oldest = candidates.min_by_key(|(_, entry)| entry.offer.sequence);
        oldest.map(|(place, _)| place)
    }

    /// Returns one more than the largest channel id in the table.
    pub(super) fn flag_limit(&self) -> u32 {
        let entries = self.lock();
        let ids = entries.iter().flatten();
        ids.map(|entry| entry.offer.channel.0)
            .max()
            .map_or(0, |id| id.saturating_add(1))
    }

    /// Makes `core` the open channel of its entry, so that signals reach it.
    pub(super) fn set_open(&self, place: usize, core: Shared<ChannelCore>) {
        if let Some(open) = self.open.get(place) {
            *open.lock(self.platform) = Some(core);
        }
    }

    /// Removes the open channel of an entry: no further signal reaches it, but callbacks may still run.
    pub(super) fn clear_open(&self, place: usize) {
        if let Some(open) = self.open.get(place) {
            let core = open.lock(self.platform).take();
            // Dropped without the lock.
            drop(core);
        }
    }

    /// Returns the open channel in a place, with a callback noted as in flight: the caller ends it with
    /// [`ChannelCore::leave`].
    pub(super) fn enter(&self, place: usize, filter: impl FnOnce(&ChannelCore) -> bool) -> Option<Shared<ChannelCore>> {
        let open = self.open.get(place)?.lock(self.platform);
        let core = open.as_ref().filter(|core| filter(core))?;
        core.enter();
        Some(core.clone())
    }

    /// As [`Table::enter`], for the channel with an id.
    pub(super) fn enter_channel(&self, channel: ChannelId) -> Option<Shared<ChannelCore>> {
        self.enter(self.place(channel)?, |core| core.id() == channel)
    }

    /// Tells the open channel of an entry something.
    pub(super) fn with_open(&self, place: usize, tell: impl FnOnce(&ChannelCore)) {
        if let Some(open) = self.open.get(place)
            && let Some(core) = open.lock(self.platform).as_ref()
        {
            tell(core);
        }
    }

    /// As [`Table::with_open`], for the channel with an id.
    pub(super) fn with_channel(&self, channel: ChannelId, tell: impl FnOnce(&ChannelCore)) {
        if let Some(place) = self.place(channel) {
            self.with_open(place, |core| {
                if core.id() == channel {
                    tell(core);
                }
            });
        }
    }

    #[cfg(test)]
    pub(super) fn with_lock_for_test<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entries = self.lock();
        work()
    }

    /// Returns how many places there are.
    pub(super) const fn len(&self) -> usize {
        self.open.len()
    }
}

impl core::fmt::Debug for Table {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("Table")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}
