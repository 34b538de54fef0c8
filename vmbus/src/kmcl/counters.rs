//! What a channel has done: [`Counters`], a snapshot that can be taken at any time.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What a channel has done since it was allocated; a snapshot, of which the numbers may be a few packets apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The live counters. Relaxed throughout: nothing is concluded from one about another.
        #[derive(Debug, Default)]
        pub(crate) struct LiveCounters {
            $(pub(crate) $name: AtomicU64,)+
            /// Incoming packets that were delivered once are completed; [`Counters::incoming_outstanding`] is what was delivered,
            /// less these.
            pub(crate) incoming_completed: AtomicU64,
            /// The sending side has something to do for whoever processes: a line, packets to hand back, a broken ring.
            pub(crate) outgoing_work: AtomicBool,
        }

        impl LiveCounters {
            pub(crate) fn snapshot(&self) -> Counters {
                // In this order: what is completed was delivered before.
                let completed = self.incoming_completed.load(Ordering::Acquire);
                let mut counters = Counters { $($name: self.$name.load(Ordering::Relaxed),)+ };
                counters.incoming_outstanding = counters.incoming_outstanding.saturating_sub(completed);
                counters
            }

            /// Packets that were delivered and are not completed. Exact under the lock of the sending side; without it perhaps
            /// too many.
            pub(crate) fn indicated(&self) -> u64 {
                let completed = self.incoming_completed.load(Ordering::Acquire);
                self.incoming_outstanding.load(Ordering::Acquire).wrapping_sub(completed)
            }
        }

        impl Counters {
            /// Returns name and value of each counter, for a status table.
            ///
            /// ```
            /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
            /// # let both = Loopback::echo()?;
            /// # let channel = both.open()?;
            /// let names: Vec<&str> = channel.counters().iter().map(|(name, _)| name).collect();
            /// assert!(names.contains(&"late_completions"));
            /// # Ok::<(), Error>(())
            /// ```
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Packets put into the outgoing ring, completions included.
    packets_sent,
    /// Payload bytes of these.
    bytes_sent,
    /// Packets taken from the incoming ring, completions included.
    packets_received,
    /// Payload bytes of these.
    bytes_received,
    /// Deliveries to the packet callback, repeated ones included.
    packets_processed,
    /// Signals that the peer was given.
    signals_sent,
    /// Times that the peer signalled.
    signals_received,
    /// Packets that found the ring full and were queued.
    ring_full,
    /// Packets refused because all were in use.
    refused,
    /// Requests whose time was up, or whose future was dropped, before the completion came.
    cancelled,
    /// Completions that came after their request had been cancelled.
    late_completions,
    /// Completions that answer no request: unknown, stale or repeated ids.
    unknown_completions,
    /// Incoming packets that were completed empty because the driver dropped them, or has no callback.
    dropped,
    /// Incoming packets that the driver failed.
    failed,
    /// Incoming packets indicated or held and not completed yet.
    incoming_outstanding,
    /// Requests sent or queued and not completed yet.
    outgoing_outstanding,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Adds to a counter that is only ever changed under one lock, or in the gate: without the price of a locked instruction.
#[inline]
pub(crate) fn add_alone(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// Subtracts from such a counter.
pub(crate) fn subtract_alone(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_names_each_counter_once() {
        let live = LiveCounters::default();
        add(&live.packets_sent, 3);
        add(&live.incoming_outstanding, 2);
        add_alone(&live.incoming_completed, 1);
        assert_eq!(live.indicated(), 1);
        let counters = live.snapshot();
        assert_eq!((counters.packets_sent, counters.incoming_outstanding), (3, 1));
        assert_eq!(counters.iter().map(|(_, value)| value).sum::<u64>(), 4);
        assert!(
            counters
                .iter()
                .any(|(name, value)| name == "packets_sent" && value == 3)
        );
    }
}
