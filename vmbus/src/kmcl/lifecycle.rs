//! From open to closed and back: which callback comes when.
//!
//! ```text
//! open:   Opened [-> Started -> (sends flow) -> PostStarted -> running]      in brackets: unless it is to be paused
//! start:  Started -> (sends flow) -> PostStarted -> running
//! pause:  Suspend -> all packets that the driver holds are completed -> paused
//! end:    Suspend (unless paused) -> packets completed -> closed with the peer -> requests end -> Closed
//! ```
//!
//! Every step that calls the driver holds the gate. A peer that takes the channel away only leaves a note; the steps are
//! taken by whoever processes next, or by the task that disables the channel.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

#[cfg(feature = "host")]
use super::Counters;

use super::endpoint::{Core, Phase};
use super::gate::{Entered, Inside};
#[cfg(feature = "host")]
use super::settings::Name;
use super::settings::gone_code;
use super::transport::{Opened, ServerSink, Sink};
use super::{Channel, Context, Error, Gone, Level, Side};
use crate::Instant;
use crate::fallible::{OutOfMemory, Shared, try_box};
#[cfg(feature = "host")]
use crate::memory::Mdl;

#[cfg(test)]
#[cfg(feature = "host")]
mod tests;

/// What the bus tells a channel.
struct Receiver<C: Context>(Channel<C>);

impl<C: Context> Sink for Receiver<C> {
    fn signalled(&self) {
        Core::process_signalled(&self.0);
    }

    fn gone(&self, why: Gone) {
        self.0.core().end(why);
        Core::process(&self.0, Level::Dispatch);
    }

    #[cfg(feature = "host")]
    fn lent(&self, transaction_id: u64) -> Option<Mdl> {
        self.0.core().lent(transaction_id)
    }

    #[cfg(feature = "host")]
    fn counters(&self) -> Counters {
        self.0.counters()
    }

    #[cfg(feature = "host")]
    fn ended(&self) -> Option<Gone> {
        self.0.core().gone()
    }
}

impl<C: Context> ServerSink for Receiver<C> {
    fn opened(&self, opened: Opened, until: Option<Instant>) -> Result<(), Error> {
        Core::opened(&self.0.shared(), opened, until)
    }

    fn signalled(&self) {
        Sink::signalled(self);
    }

    fn gone(&self, why: Gone) {
        Sink::gone(self, why);
    }

    #[cfg(feature = "host")]
    fn counters(&self) -> Counters {
        self.0.counters()
    }

    #[cfg(feature = "host")]
    fn name(&self) -> Name {
        self.0.core().settings.name
    }
}

/// Makes the object that is told of a server's clients.
pub(crate) fn server_sink<C: Context>(core: &Shared<Core<C>>) -> Result<Box<dyn ServerSink>, OutOfMemory> {
    Ok(try_box(Receiver(Channel::borrowed(core)))?)
}

/// The gate, held by somebody who does not deliver. Who has found it taken meanwhile, with a signal of the peer's, is made up for.
pub(crate) struct Passing<'c, C: Context> {
    core: &'c Core<C>,
    entered: Option<Entered<'c>>,
}

impl<C: Context> Passing<'_, C> {
    fn now_inside(&self, inside: Inside) {
        if let Some(entered) = &self.entered {
            entered.now_inside(inside);
        }
    }
}

impl<C: Context> Drop for Passing<'_, C> {
    fn drop(&mut self) {
        if self.entered.take().is_some_and(Entered::leave) {
            self.core.reschedule();
        }
    }
}

impl<C: Context> Core<C> {
    /// Makes the object that the bus tells of signals.
    pub(crate) fn sink(this: &Shared<Self>) -> Result<Box<dyn Sink>, OutOfMemory> {
        Ok(try_box(Receiver(Channel::borrowed(this)))?)
    }

    /// Takes the gate, waiting for a callback that runs.
    pub(crate) fn enter_by(&self, until: Option<Instant>) -> Result<Passing<'_, C>, Error> {
        let task = self.current_task();
        let entered = self.wait_plain(until, || self.gate.try_enter(task, Inside::Callback))?;
        Ok(Passing {
            core: self,
            entered: Some(entered),
        })
    }

    /// The channel has been opened: takes its rings and runs the callbacks. On an error there is no traffic, and the rings are
    /// given up; the caller closes.
    pub(crate) fn opened(this: &Shared<Self>, opened: Opened, until: Option<Instant>) -> Result<(), Error> {
        let entered = this.enter_by(until)?;
        let channel = Channel::borrowed(this);
        {
            let mut outgoing = this.outgoing();
            outgoing.ring = Some(opened.rings.outgoing);
            outgoing.transport = Some(opened.transport);
            outgoing.flowing = false;
            outgoing.broken = false;
        }
        {
            let mut incoming = this.incoming();
            incoming.ring = Some(opened.rings.incoming);
            incoming.stopped = false;
            incoming.sealed = opened.is_inherited;
        }
        #[cfg(feature = "host")]
        this.set_progress(if opened.is_inherited {
            super::saving::Progress::Inherited
        } else {
            super::saving::Progress::None
        });
        *this.offer.lock(this.platform) = opened.offer;
        this.set_phase(Phase::Opening);
        if let Some(callback) = &this.callbacks.state.opened
            && let Err(status) = callback(&channel)
        {
            this.give_up_rings();
            this.set_phase(Phase::Closed);
            return Err(Error::OpenedFailed(status));
        }
        if opened.is_inherited || this.paused_at_open.load(Ordering::Relaxed) {
            this.set_phase(Phase::Paused);
        } else {
            this.begin(&channel, &entered);
        }
        drop(entered);
        // What came meanwhile was not delivered.
        Self::process(&Channel::borrowed(this), Level::Passive);
        Ok(())
    }

    fn begin(&self, channel: &Channel<C>, entered: &Passing<'_, C>) {
        self.incoming().sealed = false;
        self.set_phase(Phase::Starting);
        if let Some(callback) = &self.callbacks.state.started {
            callback(channel);
        }
        {
            let mut outgoing = self.outgoing();
            outgoing.flowing = true;
            outgoing.flush(&self.counters);
        }
        self.collect_placed();
        self.set_phase(Phase::Receiving);
        if let Some(callback) = &self.callbacks.state.post_started {
            entered.now_inside(Inside::PostStarted);
            callback(channel);
            entered.now_inside(Inside::Callback);
        }
        self.set_phase(Phase::Running);
    }

    fn give_up_rings(&self) {
        let (ring, transport) = {
            let mut outgoing = self.outgoing();
            outgoing.flowing = false;
            (outgoing.ring.take(), outgoing.transport.take())
        };
        let incoming = self.incoming().ring.take();
        drop((ring, incoming, transport));
    }

    /// Stops delivery and calls the driver's suspend callback, if the channel was running.
    fn suspend(&self, channel: &Channel<C>) {
        let was_running = matches!(self.phase(), Phase::Starting | Phase::Receiving | Phase::Running);
        self.set_phase(Phase::Suspending);
        if was_running && let Some(callback) = &self.callbacks.state.suspend {
            callback(channel);
        }
    }

    /// Stops the delivery of packets, and waits until the driver has completed those that it holds.
    pub(crate) fn pause(this: &Shared<Self>, until: Option<Instant>) -> Result<(), Error> {
        this.may_wait_for_callbacks()?;
        this.paused_at_open.store(true, Ordering::Relaxed);
        if matches!(this.phase(), Phase::Closed | Phase::Paused) {
            return Ok(());
        }
        let entered = this.enter_by(until)?;
        match this.phase() {
            Phase::Running => this.suspend(&Channel::borrowed(this)),
            Phase::Suspending => {}
            Phase::Ended => return Err(this.gone().unwrap_or(Gone::Disabled).into()),
            _ => return Ok(()),
        }
        drop(entered);
        loop {
            this.wait(until, |core| core.is_idle().then_some(()))?;
            let _entered = this.enter_by(until)?;
            if let Some(gone) = this.gone() {
                return Err(gone.into());
            }
            match this.phase() {
                // Paused, started and paused again by others, say.
                Phase::Suspending if !this.is_idle() => {}
                Phase::Suspending => {
                    this.set_phase(Phase::Paused);
                    return Ok(());
                }
                // Another task has done so, and perhaps started the channel since.
                _ => return Ok(()),
            }
        }
    }

    /// Delivers again.
    pub(crate) fn start(this: &Shared<Self>, until: Option<Instant>) -> Result<(), Error> {
        this.may_wait_for_callbacks()?;
        this.paused_at_open.store(false, Ordering::Relaxed);
        let entered = this.enter_by(until)?;
        if let Some(gone) = this.gone() {
            return Err(gone.into());
        }
        #[cfg(feature = "host")]
        this.may_start()?;
        match this.phase() {
            Phase::Paused => this.begin(&Channel::borrowed(this), &entered),
            Phase::Suspending => return Err(Error::WrongState),
            _ => {}
        }
        drop(entered);
        Self::process(&Channel::borrowed(this), Level::Passive);
        Ok(())
    }

    /// Ends this end and leaves offer, rings and client to the next server: its requests are the next one's now.
    #[cfg(feature = "host")]
    pub(crate) fn leave(&self) {
        self.end(Gone::Disabled);
        self.give_up_rings();
        self.outgoing().closed = Some(Gone::Disabled);
        self.incoming().drop_packets();
        self.set_phase(Phase::Ended);
        loop {
            let request = {
                let mut outgoing = self.outgoing();
                let first = outgoing.table.next_used(0);
                first.and_then(|(id, _)| outgoing.take_request(id, &self.counters))
            };
            match request {
                Some(request) => drop(self.free_packet(request.body)),
                None => break,
            }
        }
        self.provider.hand_over();
        drop(self.is_over());
    }

    /// Takes what steps can be taken towards the end of this opening, if it ends.
    #[inline]
    pub(crate) fn run_down_if_ending(&self, channel: &Channel<C>) {
        if self.ending.load(Ordering::Acquire) != 0 {
            self.run_down(channel);
        }
    }

    #[cold]
    #[inline(never)]
    fn run_down(&self, channel: &Channel<C>) {
        let Some(mut why) = self.gone() else {
            return;
        };
        if matches!(self.phase(), Phase::Ended) {
            return;
        }
        // Nobody can disable it any more.
        let is_deserted = self.users.load(Ordering::Acquire) == 0;
        if is_deserted && self.side == Side::Server {
            // A server that the client closed just now does not wait for the next one.
            why = Gone::Disabled;
            self.ending.store(gone_code(why), Ordering::Release);
        }
        if self.phase() != Phase::Suspending {
            if self.phase() == Phase::Closed && why != Gone::Disabled {
                // Not open yet: whoever opens it finds out.
                return;
            }
            self.suspend(channel);
        }
        self.incoming().drop_packets();
        // Ours to end, and to close with the peer, is up to the task that disables the channel; and a broken ring leaves the
        // peer with the memory that it was lent, until the channel is closed.
        if (is_deserted || matches!(why, Gone::Rescinded | Gone::Closed)) && self.is_idle() {
            self.finish(channel, why, Some(self.now()));
        }
    }

    /// The last steps: the channel is closed with the peer, requests end, and the driver is told.
    fn finish(&self, channel: &Channel<C>, why: Gone, until: Option<Instant>) {
        self.absorb();
        let reopens = self.side == Side::Server && why == Gone::Closed;
        let (ring, transport) = {
            let mut outgoing = self.outgoing();
            outgoing.flowing = false;
            // From here on, because nobody looks for what comes behind those that are told below.
            outgoing.closed = (!reopens).then_some(why);
            outgoing.drop_queue(why);
            (outgoing.ring.take(), outgoing.transport.take())
        };
        let incoming = {
            let mut incoming = self.incoming();
            incoming.drop_packets();
            incoming.ring.take()
        };
        let was_open = ring.is_some();
        drop((ring, incoming));
        let mut is_given_up = true;
        if let Some(transport) = &transport {
            let deadline = until.map_or(crate::Deadline::Never, crate::Deadline::At);
            if let Err(error) = transport.close(deadline) {
                log::warn!(target: "vmbus::kmcl", "{}: not closed cleanly: {error}", self.settings.name.as_str());
                is_given_up = transport.peer_is_an_owner();
            }
        }
        self.collect_placed();
        match transport {
            Some(transport) => self.end_requests(why, &**transport, is_given_up),
            None => self.fail_requests(why, None),
        }
        self.deliver_routines(channel);
        if !reopens {
            self.set_phase(Phase::Ended);
            self.provider.revoke();
        }
        if was_open && let Some(callback) = &self.callbacks.state.closed {
            callback(channel);
        }
        if reopens {
            self.set_phase(Phase::Closed);
            self.ending.store(0, Ordering::Release);
        } else {
            // The caller has a handle of its own.
            drop(self.is_over());
        }
    }

    /// Disables the channel: see [`Channel::disable`].
    pub(crate) fn disable(this: &Shared<Self>, until: Option<Instant>) -> Result<(), Error> {
        this.may_wait_for_callbacks()?;
        this.end(Gone::Disabled);
        loop {
            let entered = this.enter_by(until)?;
            if this.phase() == Phase::Ended {
                return Ok(());
            }
            let channel = Channel::borrowed(this);
            // A server that the client closed just now is disabled, not closed.
            if this.side == Side::Server {
                this.ending.store(gone_code(Gone::Disabled), Ordering::Release);
            }
            this.run_down_if_ending(&channel);
            if this.is_idle() {
                let why = this.gone().unwrap_or(Gone::Disabled);
                if this.phase() != Phase::Ended {
                    this.finish(&channel, why, until);
                }
                return Ok(());
            }
            drop(entered);
            this.wait(until, |core| {
                (core.is_idle() || core.phase() == Phase::Ended).then_some(())
            })?;
        }
    }
}
