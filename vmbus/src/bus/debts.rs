//! What a host is told later because it was too busy: that a channel is closed, and that memory is wanted back.
//!
//! Noted in the table of offers and among the GPADLs, and posted from [`BusInner::pump`], never waiting, until the host takes it. A
//! channel comes first, its memory after it: while a channel is open for the host, its rings are not asked for.

use core::sync::atomic::Ordering;

use super::error::Error;
use super::inner::{BusInner, LAST_POST_DELAY};
use crate::Instant;
use crate::hyperv::HypercallError;
use crate::protocol::channel::CloseChannel;
use crate::protocol::gpadl::GpadlTeardown;
use crate::protocol::{ChannelMessage, GpadlId, MessageBytes};

/// What became of a message that the host was too busy for before.
enum Paid {
    Told,
    /// It is too busy still.
    Later,
    /// It does not take it.
    Never,
}

impl BusInner {
    /// Returns true for an error of posting that may be gone a moment later.
    pub(super) const fn is_busy(error: &Error) -> bool {
        match error {
            Error::TimedOut | Error::Hypercall(HypercallError::InvalidConnection) => true,
            Error::Hypercall(error) => error.is_transient(),
            _ => false,
        }
    }

    /// The host was not told that a channel closes, and has it open with these rings: it is told later if it was too busy, and
    /// otherwise it is not to be asked for the rings.
    pub(super) fn note_untold(&self, error: &Error, place: usize, rings: GpadlId) {
        if Self::is_busy(error) {
            self.table.owe_close(place);
            self.owe_memory(error, place, rings);
        } else {
            self.gpadls.stays_in_use(rings);
        }
    }

    /// Has the host asked for memory later, if it was too busy to be asked.
    pub(super) fn owe_memory(&self, error: &Error, place: usize, id: GpadlId) {
        if Self::is_busy(error) {
            self.gpadls.owe(id, || self.table.is_rescinded(place));
        }
    }

    /// Tells the host what it was too busy for, as far as it takes it now: that channels are closed, and then that memory is wanted back.
    /// Never waits.
    pub(super) fn pay_debts(&self) {
        if !self.table.has_debts() && !self.gpadls.has_debts() {
            return;
        }
        // Relaxed: a time by itself. Whoever waits looks very often, and such a host is to be left alone for a while.
        if self.now().reference_units() < self.pay_again_at.load(Ordering::Relaxed) {
            return;
        }
        // One at a time: no memory is asked for before the host knows that its channel is closed.
        if self.is_paying.swap(true, Ordering::AcqRel) {
            return;
        }
        self.pay_alone();
        self.is_paying.store(false, Ordering::Release);
    }

    fn pay_alone(&self) {
        while let Some((place, channel)) = self.table.next_owed() {
            match self.pay(&CloseChannel::new(channel).encode()) {
                Paid::Told => {}
                Paid::Later => return,
                // It has the channel on, and with it the rings.
                Paid::Never => self.gpadls.owed_stays_in_use(channel),
            }
            self.table.paid(place, channel);
        }
        while let Some((channel, id)) = self.gpadls.next_owed() {
            if matches!(self.pay(&GpadlTeardown::new(channel, id).encode()), Paid::Later) {
                return;
            }
            self.gpadls.paid(id);
        }
    }

    /// Posts a message that the host was too busy for.
    fn pay(&self, message: &MessageBytes) -> Paid {
        let Err(error) = self.try_post(message.as_slice()) else {
            return Paid::Told;
        };
        if !Self::is_busy(&error) {
            return Paid::Never;
        }
        self.counters.busy_posts.add_one();
        let again_at = self.now().saturating_add(LAST_POST_DELAY);
        self.pay_again_at.store(again_at.reference_units(), Ordering::Relaxed);
        Paid::Later
    }

    /// Tells a host that takes memory back piece by piece of the channels that it was too busy to be told of, at last.
    pub(super) fn pay_closes(&self, until: Instant) {
        let is_alone = !self.is_paying.swap(true, Ordering::AcqRel);
        while let Some((place, channel)) = self.table.next_owed() {
            let close = CloseChannel::new(channel).encode();
            if !is_alone || self.post(&close, Some(until), None).is_err() {
                self.gpadls.owed_stays_in_use(channel);
            }
            self.table.paid(place, channel);
        }
        if is_alone {
            self.is_paying.store(false, Ordering::Release);
        }
    }
}
