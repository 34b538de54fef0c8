//! Handles that packets of the pools have of their channel.
//!
//! To count each packet among a channel's owners would cost more than all the rest of a packet. Where calls into the crate come one
//! at a time ([`Callers::OneAtATime`](crate::platform::Callers)) it is not needed: the channel keeps itself until it has ended and
//! all packets are home (`Outgoing::keeper`), and whoever brings the last one home takes that owner over and drops it when all
//! else is done. Elsewhere another task could do so meanwhile, and each packet is an owner.
#![expect(unsafe_code, reason = "the audited module that lends handles")]

use super::{Channel, Context};
use crate::fallible::Handle;

impl<C: Context> Channel<C> {
    /// Makes the handle for a packet of the channel's pools, incoming or outgoing, which is out from now on and home when its
    /// memory is in the pool again: it counts nothing if the channel keeps itself. Not for one that is taken from the pool of a
    /// channel that has ended: nothing keeps that.
    #[inline]
    pub(crate) fn for_packet_of_pool(&self) -> Self {
        if self.core().lends_handles() {
            // SAFETY: the packet's memory is out of its pool, or not completed, as long as the packet holds it, and so long
            // `Outgoing` keeps an owner: it had one when the memory left the pool. Who gives up the memory in a method of the
            // packet, and gets that owner back, drops it last; nobody else runs meanwhile, by the platform's promise.
            Self::lent(unsafe { Handle::lent(&self.shared()) })
        } else {
            self.uncounted()
        }
    }
}
