//! When and where a channel delivers what comes: it is paused, started, disabled and processed, at a level and up to a quota.

use core::sync::atomic::Ordering;

use super::Channel;
use crate::Deadline;
use crate::kmcl::endpoint::Core;
use crate::kmcl::receive::new_slots;
use crate::kmcl::{Context, DisabledChannel, Error, Level, Refused};

impl<C: Context> Channel<C> {
    /// Stops the delivery of packets (`VmbChannelPause`): calls the suspend callback, then waits until the driver has completed
    /// all packets that it holds.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.pause(Deadline::seconds(1))?;
    /// // No packet callback runs, and none will.
    /// channel.start(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WouldDeadlock`] from the channel's own callback; [`Error::TimedOut`]: delivery has stopped, but packets are
    /// still held, so call again; [`Error::Gone`].
    pub fn pause(&self, deadline: Deadline) -> Result<(), Error> {
        Core::pause(&self.shared(), self.core().until(deadline))
    }

    /// Delivers packets again (`VmbChannelStart`): calls the started and post-started callbacks. Nothing happens if the channel
    /// is not paused.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// let channel = both.client()?.pause_when_enabled().enable(Deadline::seconds(1))?;
    /// channel.start(Deadline::seconds(1))?;
    /// assert!(channel.is_running());
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WouldDeadlock`] from the channel's own callback; [`Error::WrongState`] if it is still being paused;
    /// [`Error::TimedOut`] if another callback did not end in time; [`Error::Gone`].
    pub fn start(&self, deadline: Deadline) -> Result<(), Error> {
        Core::start(&self.shared(), self.core().until(deadline))
    }

    /// Closes the channel, or takes the offer back (`VmbChannelDisable`): delivery stops, packets that the driver holds are
    /// awaited, the channel is closed with the peer, requests end with [`Error::Gone`], and the closed callback is called. A host that
    /// does not answer to the end in time may still write to what requests have lent: that is kept from use until it does, or the
    /// connection has ended.
    /// What the channel was initialised with is kept, and may be changed and enabled again. Other handles answer
    /// [`Error::Gone`] from now on.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// let disabled = channel.disable(Deadline::seconds(1))?;
    /// let channel = disabled.init_set_maximum_packet_count(64).enable(Deadline::seconds(1))?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The handle comes back: [`Error::WouldDeadlock`] from the channel's own callback; [`Error::TimedOut`]: the channel ends,
    /// but the driver still holds packets, so call again; [`Error::OutOfMemory`]: it has ended, and cannot be enabled again.
    pub fn disable(self, deadline: Deadline) -> Result<DisabledChannel<C>, Refused<Self>> {
        match Core::disable(&self.shared(), self.core().until(deadline)) {
            Ok(()) => match DisabledChannel::again(&self.shared()) {
                Ok(disabled) => Ok(disabled),
                Err(error) => Err(Refused { error, given: self }),
            },
            Err(error) => Err(Refused { error, given: self }),
        }
    }

    /// Chooses where packets are delivered from now on (`VmbChannelSetIncomingProcessingAtPassive`): only at
    /// [`Level::Passive`], by [`process_at_passive`](Self::process_at_passive), or at either level.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.set_incoming_processing_at_passive(Level::Passive);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn set_incoming_processing_at_passive(&self, level: Level) {
        self.core().at_passive.store(level == Level::Passive, Ordering::Relaxed);
        self.core().schedule();
    }

    /// Delivers what there is to deliver, at [`Level::Passive`]: from a task that may block, never from an interrupt.
    ///
    /// A channel that processes at `PASSIVE`, or defers packets to it, needs a task that calls this after the callback of
    /// [`init_set_passive_wake`](DisabledChannel::init_set_passive_wake).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.set_incoming_processing_at_passive(Level::Passive);
    /// both.server().send(b"packet")?;
    /// # both.host().process();
    /// // In a task of the driver's:
    /// if channel.needs_passive() {
    ///     channel.process_at_passive();
    /// }
    /// assert_eq!(channel.counters().packets_processed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn process_at_passive(&self) {
        self.core().passive_pending.store(false, Ordering::Relaxed);
        Core::process(self, Level::Passive);
    }

    /// Returns true if something waits for [`process_at_passive`](Self::process_at_passive).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// assert!(!channel.needs_passive());
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn needs_passive(&self) -> bool {
        self.core().passive_pending.load(Ordering::Relaxed)
    }

    /// Delivers what there is to deliver now, for those who poll.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// both.server().send(b"packet")?;
    /// channel.process();
    /// assert_eq!(channel.counters().packets_processed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn process(&self) {
        Core::process(self, Level::Dispatch);
    }

    /// Sets how many incoming packets may be held uncompleted (`VmbChannelSetTransactionQuota`). At the quota the ring is not
    /// read. A quota below the packets that are held takes effect as they are completed; raising it does not by itself restart
    /// a channel that stands at its quota, a completion does.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// channel.set_transaction_quota(64)?;
    /// assert_eq!(channel.set_transaction_quota(0), Err(Error::InvalidQuota));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidQuota`] for 0; [`Error::OutOfMemory`] if there is no memory for more packets; nothing changes then.
    pub fn set_transaction_quota(&self, quota: u32) -> Result<(), Error> {
        if quota == 0 {
            return Err(Error::InvalidQuota);
        }
        let more = {
            let incoming = self.core().incoming();
            quota.saturating_sub(incoming.slots())
        };
        let mut fresh = new_slots(&self.core().settings, more)?;
        self.core()
            .outgoing
            .lock(self.core().platform)
            .reserve_completions(quota)?;
        self.core()
            .incoming
            .lock(self.core().platform)
            .set_quota(&self.core().settings, quota, &mut fresh)?;
        Ok(())
    }
}
