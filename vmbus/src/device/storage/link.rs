//! What everything on one controller shares: [`Link`], the context of its channel, and [`Inner`], the open channel.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::Waker;

use super::protocol::{self, Address, Version};
use crate::Platform;
use crate::bus::Throttle;
use crate::fallible::{ReservedQueue, Shared};
use crate::kmcl::{Channel, IncomingPacket};
use crate::platform::Callers;
use crate::sync::Lock;

/// A way to tell the operating system that the devices have changed. Called in deferred work.
pub(super) type Wake = Box<dyn Fn() + Send + Sync>;

macro_rules! counters {
    ($($(#[$attribute:meta])* $name:ident,)*) => {
        /// What happened on a controller so far, in numbers. A snapshot.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$attribute])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counting {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counting {
            pub(super) fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Commands sent, those that were sent again included.
    commands,
    /// Commands sent again.
    retries,
    /// Commands that failed for good.
    failures,
    /// Answers that cannot be understood, or say what cannot be.
    malformed,
    /// Packets by which the host told that something has changed.
    notices,
}

/// Adds one. Relaxed: numbers for people.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Whom to wake when a packet of the channel may be free: in the order of their tickets, each once.
#[derive(Default)]
struct Line {
    waiters: VecDeque<(Ticket, Waker)>,
    last: u64,
}

impl Line {
    fn place(&self, ticket: Ticket) -> Option<usize> {
        self.waiters.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()
    }
}

/// Stands for one who waits for a packet, or has been woken for one. To be given back: see [`Link::leave_line`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The context of the channel: what its callbacks and the requests on it need.
pub(super) struct Link {
    pub(super) platform: &'static dyn Platform,
    /// Whether all calls come one at a time, so that numbers need no locked instructions.
    is_alone: bool,
    pub(super) counting: Counting,
    pub(super) throttle: Throttle,
    news: AtomicBool,
    wake: Wake,
    /// Requests that are in flight, and whose owner will look at their completion or drop them.
    live: AtomicUsize,
    /// Futures that found all packets of the channel in use.
    line: Lock<Line>,
    is_awaited: AtomicBool,
}

impl Link {
    pub(super) fn new(platform: &'static dyn Platform, wake: Wake) -> Self {
        Self {
            platform,
            is_alone: platform.callers() == Callers::OneAtATime,
            counting: Counting::default(),
            throttle: Throttle::default(),
            // Nobody has looked yet.
            news: AtomicBool::new(true),
            wake,
            live: AtomicUsize::new(0),
            line: Lock::new(Line::default()),
            is_awaited: AtomicBool::new(false),
        }
    }

    /// Takes a packet that the host sends of its own accord. Whatever it is about, the bus is to be looked at again; and none
    /// wants an answer.
    pub(super) fn on_packet(&self, packet: IncomingPacket<Self>) {
        match protocol::parse_notice(packet.payload()) {
            Ok(_) => {
                count(&self.counting.notices);
                self.note_news();
            }
            Err(_) => count(&self.counting.malformed),
        }
        // The error means that an answer was too long, and this one is empty.
        let _ = packet.complete(&[]);
    }

    /// The devices may have changed.
    pub(super) fn note_news(&self) {
        self.news.store(true, Ordering::Release);
        (self.wake)();
    }

    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    pub(super) fn take_news(&self) {
        self.news.store(false, Ordering::Release);
    }

    /// A command is in flight.
    pub(super) fn enter(&self) {
        if self.is_alone {
            // Nobody comes between the two, by the platform's promise.
            let (live, commands) = (&self.live, &self.counting.commands);
            live.store(live.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            commands.store(commands.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        } else {
            self.live.fetch_add(1, Ordering::SeqCst);
            count(&self.counting.commands);
        }
    }

    /// A request is in flight no more, or at least nobody looks: somebody who waits for a packet may try again.
    pub(super) fn leave(&self) {
        if self.is_alone {
            let live = &self.live;
            live.store(live.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.live.fetch_sub(1, Ordering::SeqCst);
        }
        if self.is_awaited.load(Ordering::SeqCst) {
            self.wake_one();
        }
    }

    #[cold]
    fn wake_one(&self) {
        let first = {
            let mut line = self.line.lock(self.platform);
            let first = line.waiters.pop_front();
            self.is_awaited.store(!line.waiters.is_empty(), Ordering::SeqCst);
            first
        };
        // Somebody else's code, outside the lock.
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }

    /// Has `waker` woken when a packet may be free. Whoever stands in line already, by `ticket`, keeps its place.
    #[cold]
    pub(super) fn await_packet(&self, ticket: &mut Option<Ticket>, waker: &Waker) {
        if waker.will_wake(Waker::noop()) {
            return;
        }
        // A waker is somebody else's code: made and dropped outside the lock.
        let mut fresh = Some(waker.clone());
        let old;
        {
            let mut line = self.line.lock(self.platform);
            let place = ticket.and_then(|ticket| line.place(ticket));
            if let Some((_, kept)) = place.and_then(|place| line.waiters.get_mut(place)) {
                old = fresh.take().map(|fresh| core::mem::replace(kept, fresh));
            } else {
                old = None;
                let next = Ticket(line.last.saturating_add(1));
                if line.waiters.try_reserve(1).is_ok()
                    && let Some(waker) = fresh.take()
                {
                    line.last = next.0;
                    // There is room.
                    let _ = line.waiters.push_back_within((next, waker));
                    *ticket = Some(next);
                }
            }
            self.is_awaited.store(!line.waiters.is_empty(), Ordering::SeqCst);
        }
        drop(old);
        // With all requests given up, nobody would wake it; this side of the pair looks after it has stood in line, the other
        // looks at the line after it has left.
        if fresh.is_some() || self.live.load(Ordering::SeqCst) == 0 {
            waker.wake_by_ref();
        }
    }

    /// Gives a ticket back. Whoever was woken for a packet wakes the next: it may have found more than it needs, or need none.
    #[cold]
    pub(super) fn leave_line(&self, ticket: Ticket) {
        let left = {
            let mut line = self.line.lock(self.platform);
            let left = line.place(ticket).and_then(|place| line.waiters.remove(place));
            self.is_awaited.store(!line.waiters.is_empty(), Ordering::SeqCst);
            left
        };
        if left.is_none() {
            self.wake_one();
        }
        drop(left);
    }
}

/// The open channel, initialised. Disks keep it open.
pub(super) struct Inner {
    pub(super) channel: Channel<Link>,
    pub(super) version: Version,
    /// The longest transfer of one command, in bytes.
    pub(super) max_transfer: u32,
    /// Bytes of the channel's buffers for calls that copy.
    pub(super) copy_len: usize,
}

impl Inner {
    pub(super) fn link(&self) -> &Link {
        self.channel.context()
    }
}

/// A logical unit, as commands to it need it.
pub(super) struct Unit {
    pub(super) inner: Shared<Inner>,
    pub(super) address: Address,
    pub(super) is_gone: AtomicBool,
    /// The longest transfer of one command, in bytes.
    pub(super) max_transfer: u32,
    /// It is being asked what it is: nothing that it says is news.
    pub(super) is_probed: bool,
}

impl Unit {
    pub(super) fn new(inner: Shared<Inner>, address: Address) -> Self {
        Self {
            max_transfer: inner.max_transfer,
            inner,
            address,
            is_gone: AtomicBool::new(false),
            is_probed: false,
        }
    }
}
