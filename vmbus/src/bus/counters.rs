//! What happened on a bus, in numbers, and how often it is worth a line in the log.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::Instant;

macro_rules! counters {
    ($($(#[$attribute:meta])* $name:ident,)*) => {
        /// What happened on a bus since it was connected. A snapshot.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$attribute])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counting {
            $(pub(super) $name: Counter,)*
        }

        impl Counting {
            pub(super) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Channel messages that came.
    messages,
    /// Messages of types that we do not know, or that a host does not send.
    unknown_messages,
    /// Messages too short for what they say they are.
    short_messages,
    /// Answers that nobody waits for.
    stray_replies,
    /// Offers taken.
    offers,
    /// Offers refused: a channel id that is in use or out of range.
    refused_offers,
    /// Offers refused for want of room in the table.
    excess_offers,
    /// Withdrawals taken.
    rescinds,
    /// Withdrawals of what was not offered.
    stray_rescinds,
    /// Channel ids given back to the host.
    released_ids,
    /// Messages posted.
    posts,
    /// Attempts at posting that the host was too busy for.
    busy_posts,
    /// Signals sent.
    signals_sent,
    /// Signals that came for open channels.
    signals_received,
    /// Signals that came for channels that are not open.
    stray_signals,
    /// Blocks of memory kept from use because the host has not confirmed that it has given them up.
    parked_blocks,
    /// Of these, how many went back to use: confirmed, or long enough after the channel was withdrawn.
    unparked_blocks,
    /// Blocks of memory lost for good: the connection ended without the host's confirmation, or there was no memory to note what the
    /// requests of a channel had lent.
    lost_blocks,
}

/// A number that goes up.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, count: u64) {
        // Relaxed: a number for people.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lets the first few complaints through in each span of time, so that a host cannot fill the log.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    span_start: AtomicU64,
    in_span: AtomicU64,
}

impl Throttle {
    const LINES: u64 = 10;
    const SPAN: Duration = Duration::from_secs(10);

    /// Returns `Some(n)` if a line may be logged now, after `n` that were not.
    pub(crate) fn allow(&self, now: Instant) -> Option<u64> {
        // Relaxed: two processors at the edge of a span may let a line too many through.
        let start = Instant::from_reference_units(self.span_start.load(Ordering::Relaxed));
        let mut suppressed = 0;
        if now.saturating_duration_since(start) >= Self::SPAN {
            self.span_start.store(now.reference_units(), Ordering::Relaxed);
            suppressed = self.in_span.swap(0, Ordering::Relaxed).saturating_sub(Self::LINES);
        }
        (self.in_span.fetch_add(1, Ordering::Relaxed) < Self::LINES).then_some(suppressed)
    }
}

/// How many lines like this were not logged.
pub(crate) struct Suppressed(pub(crate) u64);

impl core::fmt::Display for Suppressed {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(formatter, " (and {count} more lines that were not logged)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m12_a_flood_of_complaints_becomes_a_few_lines() {
        let throttle = Throttle::default();
        let mut lines = 0;
        let mut suppressed = 0;
        // 100,000 complaints in 25 seconds.
        let count = if cfg!(miri) { 1_000 } else { 100_000_u64 };
        for complaint in 0..count {
            let now = Instant::from_reference_units(1_000_000_000 + complaint * (250_000_000 / count));
            if let Some(count) = throttle.allow(now) {
                lines += 1;
                suppressed += count;
            }
        }
        assert_eq!(lines, 30);
        assert_eq!(suppressed, 2 * (count / 5 * 2 - 10));
    }

    #[test]
    fn lines_that_were_not_logged_are_told_of() {
        assert_eq!(std::format!("{}", Suppressed(0)), "");
        assert_eq!(
            std::format!("{}", Suppressed(3)),
            " (and 3 more lines that were not logged)"
        );
    }
}
