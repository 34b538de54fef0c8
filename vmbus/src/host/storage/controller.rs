//! The controller's handle: [`Controller`].

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

use super::fault::Fault;
use super::state::{Context, Held, Inner, Phase, Violation};
use super::wire::{LONGEST_ANSWER, operation, unasked};
use super::{Address, Config, Disk, Outcome};
use crate::Deadline;
use crate::fallible::{OutOfMemory, ReservedVec, Shared, TryPush};
use crate::host::Host;
use crate::kmcl::{Channel, Counters, Error, Instance, StateChangeCallbacks};
use crate::memory::PAGE_SIZE;
use crate::protocol::ChannelId;
use crate::sync::Lock;

/// A disk could not be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is a disk at that address.
    #[error("there is a disk at that address")]
    InUse,
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A request that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRequest {
    /// What the controller calls it; requests are counted up in the order in which they were held.
    pub number: u64,
    /// The disk that it is for.
    pub address: Address,
    /// The command; 0 if it is none.
    pub opcode: u8,
}

/// A storage controller in this kernel: what it offers, and what a test has it do.
///
/// Made with [`Controller::new`], given disks, and then offered; see [the module](super). Everything but
/// [`revoke`](Self::revoke) may be called at any time and from anywhere.
pub struct Controller {
    inner: Shared<Inner>,
    host: Host,
    channel: Lock<Option<Channel<Context>>>,
}

impl Controller {
    /// Makes a controller without disks, which is not offered yet.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(host: &Host, config: Config) -> Result<Self, OutOfMemory> {
        Ok(Self {
            inner: Shared::try_new(Inner::new(host.platform(), config))?,
            host: host.clone(),
            channel: Lock::new(None),
        })
    }

    /// Offers the controller: from now on a client finds it.
    ///
    /// # Errors
    ///
    /// [`Error::WrongState`] if it is offered already; others as for
    /// [`enable`](crate::kmcl::DisabledChannel::enable).
    pub fn offer(&self) -> Result<(), Error> {
        let platform = self.inner.platform;
        if self.channel.lock(platform).is_some() {
            return Err(Error::WrongState);
        }
        let config = &self.inner.config;
        let memory = (config.max_transfer_bytes as usize).next_multiple_of(PAGE_SIZE);
        let callbacks = StateChangeCallbacks::new()
            .opened(|channel: &Channel<Context>| {
                channel.context().opened();
                Ok(())
            })
            .suspend(|channel| channel.context().let_go());
        let channel = Channel::allocate_server_with(&self.host, self.inner.clone())?
            .init_set_target(config.class(), config.instance().map_or(Instance::Any, Instance::Only))
            .init_set_friendly_name("storage controller")
            .init_set_offer_data(config.offer_data())
            .init_set_maximum_packet_size(LONGEST_ANSWER)?
            .init_set_maximum_external_data(memory, 1)?
            .init_set_transaction_quota(config.queue_depth)
            .init_set_state_change_callbacks(callbacks)
            .init_set_process_packet_callback(|channel, packet| channel.context().receive(packet))
            .enable(Deadline::Never)?;
        let raced = self.channel.lock(platform).replace(channel);
        drop(raced);
        Ok(())
    }

    /// Takes the offer back, as a host does that removes the controller: requests that are held or in the ring are never answered,
    /// and the client's end with "gone". The disks stay, and it may be offered again.
    ///
    /// # Errors
    ///
    /// As for [`disable`](Channel::disable); the controller is offered still.
    pub fn revoke(&self, deadline: Deadline) -> Result<(), Error> {
        let platform = self.inner.platform;
        let Some(channel) = self.channel.lock(platform).take() else {
            return Ok(());
        };
        match channel.disable(deadline) {
            Ok(disabled) => {
                drop(disabled);
                Ok(())
            }
            Err(refused) => {
                *self.channel.lock(platform) = Some(refused.given);
                Err(refused.error)
            }
        }
    }

    fn channel(&self) -> Option<Channel<Context>> {
        self.channel.lock(self.inner.platform).clone()
    }

    /// Returns the number of the channel, by which a client can ask for exactly this controller.
    #[must_use]
    pub fn channel_id(&self) -> Option<ChannelId> {
        self.channel().map(|channel| channel.id())
    }

    /// Returns what the channel has done.
    #[must_use]
    pub fn counters(&self) -> Option<Counters> {
        self.channel().map(|channel| channel.counters())
    }

    /// Returns true if a client has initialised the controller to the end.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.inner.session().phase == Phase::Ready
    }

    /// Puts a disk at an address. A client that uses the controller is told to look.
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub fn attach(&self, address: Address, disk: Disk) -> Result<(), AttachError> {
        {
            let mut disks = self.inner.disks.lock(self.inner.platform);
            let Err(index) = disks.binary_search_by_key(&address, |(address, _)| *address) else {
                return Err(AttachError::InUse);
            };
            disks.try_reserve(1).map_err(|_| OutOfMemory)?;
            disks.insert_within(index, (address, disk)).map_err(|_| OutOfMemory)?;
        }
        self.announce();
        Ok(())
    }

    /// Takes a disk away; `None` if there was none. Requests for it that come later find nothing there; those that are held do so when
    /// they are released.
    pub fn detach(&self, address: Address) -> Option<Disk> {
        let disk = {
            let mut disks = self.inner.disks.lock(self.inner.platform);
            let index = disks.binary_search_by_key(&address, |(address, _)| *address).ok()?;
            disks.take_at(index)?.1
        };
        self.announce();
        Some(disk)
    }

    /// Returns the disk at an address.
    #[must_use]
    pub fn disk(&self, address: Address) -> Option<Disk> {
        self.inner.disk(address)
    }

    /// Tells the client, if there is one, to look what disks there are.
    pub fn announce(&self) {
        if self.is_ready() {
            self.send_unasked(operation::ENUMERATE_BUS);
        }
    }

    /// Sends a packet of this operation that nobody asked for.
    pub fn send_unasked(&self, operation: u32) {
        let (bytes, len) = unasked(operation, self.inner.session().has_long_requests());
        self.send_unasked_bytes(bytes.get(..len).unwrap_or_default());
    }

    /// Sends any bytes that nobody asked for.
    pub fn send_unasked_bytes(&self, bytes: &[u8]) {
        if let Some(channel) = self.channel()
            && let Err(error) = channel.send(bytes)
        {
            log::warn!(target: "vmbus::host::storage", "the client was not told: {error}");
        }
    }

    /// Sends a completion for a request with this id, whether there is one or not. Returns false if the ring has no room.
    pub fn send_stray_answer(&self, transaction_id: u64, bytes: &[u8]) -> bool {
        self.channel()
            .is_some_and(|channel| channel.send_stray_completion(transaction_id, bytes) == Ok(true))
    }

    /// Adds a fault, behind those that there are: the first one that meets a request decides.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn inject(&self, fault: Fault) -> Result<(), OutOfMemory> {
        let mut faults = self.inner.faults.lock(self.inner.platform);
        faults.try_push(fault)?;
        self.inner.has_faults.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Removes all faults. What is held stays so.
    pub fn clear_faults(&self) {
        let faults = core::mem::take(&mut *self.inner.faults.lock(self.inner.platform));
        self.inner.has_faults.store(false, Ordering::Relaxed);
        drop(faults);
    }

    /// Holds every command from now on that meets no fault, until the test releases it.
    pub fn hold(&self) {
        self.inner.holds_all.store(true, Ordering::Relaxed);
    }

    /// Holds no more commands, and releases those that are held, in their order.
    pub fn resume(&self) {
        self.inner.holds_all.store(false, Ordering::Relaxed);
        while let Some(held) = self.take_held(|_| true) {
            self.inner.go_on(held);
        }
    }

    /// Returns the requests that are held, in their order, after `number`, or all: one at a time.
    #[must_use]
    pub fn next_held(&self, after: Option<u64>) -> Option<HeldRequest> {
        let held = self.inner.held.lock(self.inner.platform);
        let next = held.iter().find(|held| after.is_none_or(|after| held.number > after))?;
        Some(HeldRequest {
            number: next.number,
            address: next.address,
            opcode: next.opcode,
        })
    }

    /// Returns how many requests are held.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.inner.held.lock(self.inner.platform).len()
    }

    fn take_held(&self, wanted: impl Fn(&Held) -> bool) -> Option<Held> {
        let mut held = self.inner.held.lock(self.inner.platform);
        let index = held.iter().position(wanted)?;
        held.take_at(index)
    }

    /// Executes a request that is held, and answers it. Returns false if there is none of that number.
    pub fn release(&self, number: u64) -> bool {
        let held = self.take_held(|held| held.number == number);
        held.map(|held| self.inner.go_on(held)).is_some()
    }

    /// Answers a request that is held with this outcome, and does not execute it. Returns false if there is none of that number.
    pub fn release_with(&self, number: u64, outcome: Outcome) -> bool {
        let held = self.take_held(|held| held.number == number);
        held.map(|held| held.answer_with(&self.inner, outcome)).is_some()
    }

    /// Returns how many commands with this [`opcode`](super::opcode) have come.
    #[must_use]
    pub fn commands(&self, opcode: u8) -> u32 {
        let count = self.inner.commands.get(usize::from(opcode));
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Returns how many resets have come.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.inner.resets.load(Ordering::Relaxed)
    }

    /// Returns the client's first mistake.
    #[must_use]
    pub fn first_violation(&self) -> Option<Violation> {
        self.inner.violations.lock(self.inner.platform).first().copied()
    }

    /// Takes the client's mistakes since the last call; of many, the first ones.
    #[must_use]
    pub fn take_violations(&self) -> Vec<Violation> {
        core::mem::take(&mut *self.inner.violations.lock(self.inner.platform))
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Controller")
            .field("config", &self.inner.config)
            .field("is_ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}
