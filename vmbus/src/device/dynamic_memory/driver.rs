//! The driver: the engine on a channel, [`DynamicMemory`].

#[cfg(test)]
mod bus_tests;
#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::time::Duration;

use super::protocol::MAX_MESSAGE_BYTES;
use super::{CLASS, Config, Engine, HeldPages, Inbox, MemoryPool, Outbox, Progress, RING_DATA_PAGES, SendError, State};
use crate::fallible::{OutOfMemory, ReservedQueue, try_box};
use crate::kmcl::{
    Channel, Error, Gone, IncomingPacket, Instance, OfferSource, Refused, SendFlags, StateChangeCallbacks,
    SynchronousRequest,
};
use crate::sync::Lock;
use crate::{Deadline, Instant, Platform};

/// How many packets may be taken from the ring before they are worked through. The rest waits in the ring.
const PACKETS_IN_LINE: u32 = 4;

/// A way to tell the operating system that [`DynamicMemory::run`] has something to do. Called in deferred work.
type Wake = Box<dyn Fn() + Send + Sync>;

/// What the channel's callbacks and the driver share.
pub(super) struct Link {
    platform: &'static dyn Platform,
    /// Never grows: as many as the quota lets in.
    line: Lock<VecDeque<IncomingPacket<Self>>>,
    wake: Wake,
}

impl Link {
    fn next(&self) -> Option<IncomingPacket<Self>> {
        self.line.lock(self.platform).pop_front()
    }

    /// Lets go of what has not been looked at. Each packet outside the lock: letting go calls the channel.
    fn clear(&self) {
        while let Some(packet) = self.next() {
            finish(packet);
        }
    }

    fn on_packet(&self, packet: IncomingPacket<Self>) {
        let mut line = self.line.lock(self.platform);
        let kept = line.push_back_within(packet);
        drop(line);
        debug_assert!(kept.is_ok(), "the quota lets no more in");
        (self.wake)();
    }
}

/// Dynamic memory on a channel. Belongs to one task or main loop of the operating system, which calls
/// [`DynamicMemory::run`]; it lives as long as that, through any number of openings.
pub struct DynamicMemory<P> {
    platform: &'static dyn Platform,
    engine: Engine<P>,
    channel: Option<Channel<Link>>,
    /// Why the last channel has ended, if not by us.
    gone: Option<Gone>,
    /// The packet that the engine is to look at next, and from when on.
    front: Option<(IncomingPacket<Link>, Instant)>,
    request_delay: Duration,
}

impl<P: MemoryPool> DynamicMemory<P> {
    /// Makes a driver without a channel.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(platform: &'static dyn Platform, config: Config, pool: P) -> Result<Self, OutOfMemory> {
        Ok(Self {
            platform,
            engine: Engine::new(config, pool)?,
            channel: None,
            gone: None,
            front: None,
            request_delay: config.request_delay,
        })
    }

    /// Opens the device's channel and begins the conversation; [`DynamicMemory::run`] carries it on. `wake` is called in
    /// deferred work when there is something to run for; a system that polls leaves it empty.
    ///
    /// # Errors
    ///
    /// Those of [`DisabledChannel::enable`](crate::kmcl::DisabledChannel::enable); [`Error::WrongState`] if there is a channel.
    pub fn attach(
        &mut self,
        bus: &impl OfferSource,
        instance: Instance,
        wake: impl Fn() + Send + Sync + 'static,
        deadline: Deadline,
    ) -> Result<(), Error> {
        if self.channel.is_some() {
            return Err(Error::WrongState);
        }
        let mut line = VecDeque::new();
        line.try_reserve_exact(PACKETS_IN_LINE as usize)
            .map_err(|_| OutOfMemory)?;
        let link = Link {
            platform: self.platform,
            line: Lock::new(line),
            wake: try_box(wake)?,
        };
        let callbacks = StateChangeCallbacks::new().suspend(|channel: &Channel<Link>| {
            channel.context().clear();
            (channel.context().wake)();
        });
        let channel = Channel::allocate_client_with(bus, link)?
            .init_set_target(CLASS, instance)
            .init_set_friendly_name("dynamic memory")
            .init_set_ring_buffer_page_count(RING_DATA_PAGES, RING_DATA_PAGES)
            .init_set_transaction_quota(PACKETS_IN_LINE)
            .init_set_maximum_packet_count(1)
            .init_set_maximum_packet_size(MAX_MESSAGE_BYTES)
            .map_err(|refused| refused.error)?
            .init_set_maximum_external_data(1, 1)
            .map_err(|refused| refused.error)?
            .init_set_state_change_callbacks(callbacks)
            .init_set_process_packet_callback(|channel, packet| channel.context().on_packet(packet))
            .enable(deadline)
            .map_err(|refused| refused.error)?;
        self.channel = Some(channel);
        self.gone = None;
        self.engine.start();
        Ok(())
    }

    /// Does what there is to do, for one slice; see [`Engine::pump`]. To be called after `wake`, at
    /// [`DynamicMemory::next_wakeup`], and again as long as it returns [`Progress::More`].
    pub fn run(&mut self, now: Instant) -> Progress {
        match &self.channel {
            Some(channel) if channel.is_running() => {
                let is_running = matches!(self.engine.state(), State::Running { .. });
                let mut packets = Packets {
                    link: channel.context(),
                    front: &mut self.front,
                    now,
                    // The handshake is the host's answer to us: nothing to wait for.
                    delay: if is_running { self.request_delay } else { Duration::ZERO },
                };
                let progress = self.engine.pump(now, &mut packets, &mut Sender(channel));
                if self.engine.state() == State::Closed {
                    self.let_go();
                }
                progress
            }
            // Gone. What the host has given back is still to be worked through.
            _ => {
                self.let_go();
                self.engine.poll(now, &mut |_: &[u8]| Err(SendError::Gone))
            }
        }
    }

    /// Returns what the channel has done since it was opened; `None` while there is none.
    #[must_use]
    pub fn channel_counters(&self) -> Option<crate::kmcl::Counters> {
        self.channel.as_ref().map(Channel::counters)
    }

    /// Returns why the last channel has ended, if the host ended it or broke its ring and no other has been opened since.
    #[must_use]
    pub const fn gone(&self) -> Option<Gone> {
        self.gone
    }

    /// Closes the channel. The pages that the host has stay untouched.
    ///
    /// # Errors
    ///
    /// Those of [`Channel::disable`]; the channel stays then.
    pub fn detach(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.engine.on_closed();
        self.drop_front();
        let Some(channel) = self.channel.take() else {
            return Ok(());
        };
        channel.disable(deadline).map(drop).map_err(|Refused { error, given }| {
            self.channel = Some(given);
            error
        })
    }

    /// Returns when [`DynamicMemory::run`] is due even if nothing comes from the host, or `None` if never.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Instant> {
        let front_due = self.front.as_ref().map(|(_, due)| *due);
        [self.engine.next_wakeup(), front_due].into_iter().flatten().min()
    }

    fn drop_front(&mut self) {
        if let Some((packet, _)) = self.front.take() {
            finish(packet);
        }
    }

    /// Returns the engine: its state, figures and counters.
    #[must_use]
    pub const fn engine(&self) -> &Engine<P> {
        &self.engine
    }

    /// Ends the driver; see [`Engine::into_parts`].
    pub fn into_parts(mut self) -> (P, HeldPages) {
        self.let_go();
        self.engine.into_parts()
    }

    /// Drops the channel and its packets; the host is told nothing more.
    fn let_go(&mut self) {
        if self.engine.state() != State::Closed {
            self.engine.on_closed();
        }
        self.drop_front();
        if let Some(channel) = self.channel.take() {
            self.gone = channel.gone();
        }
    }
}

/// Packets of this device want no completion.
fn finish(packet: IncomingPacket<Link>) {
    if packet.complete(&[]).is_err() {
        log::debug!(target: "vmbus::dynamic_memory", "the host waited for a completion, which could not be sent");
    }
}

struct Packets<'a> {
    link: &'a Link,
    front: &'a mut Option<(IncomingPacket<Link>, Instant)>,
    now: Instant,
    delay: Duration,
}

impl Inbox for Packets<'_> {
    fn front(&mut self) -> Option<&[u8]> {
        if self.front.is_none() {
            let due = self.now.saturating_add(self.delay);
            *self.front = self.link.next().map(|packet| (packet, due));
        }
        let (packet, due) = self.front.as_ref()?;
        (self.now >= *due).then(|| packet.payload())
    }

    fn pop(&mut self) {
        if let Some((packet, _)) = self.front.take() {
            finish(packet);
        }
    }
}

struct Sender<'a>(&'a Channel<Link>);

impl Outbox for Sender<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let request = SynchronousRequest {
            payload: message,
            mdl: None,
            flags: SendFlags::empty(),
            completion: None,
            // Into the ring or not at all: what waited in line would not have been told to the host.
            deadline: Deadline::IMMEDIATE,
        };
        match self.0.send_synchronous(request) {
            Ok(_) => Ok(()),
            Err(refused) => Err(match refused.error {
                // A broken ring takes nothing any more: the channel ends soon.
                Error::Gone(_) | Error::WrongState | Error::Corrupt => SendError::Gone,
                _ => SendError::Full,
            }),
        }
    }
}

impl<P> core::fmt::Debug for DynamicMemory<P> {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("DynamicMemory")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}
