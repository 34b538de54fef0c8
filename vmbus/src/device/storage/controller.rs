//! A controller: its channel, initialised ([`attach`], [`attach_with`]), and the disks on it ([`Controller`]).

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::disk::Disk;
use super::link::{Counters, Inner, Link};
use super::probe;
use super::protocol::{Answer, MAX_PACKET_LEN, Operation, Packet, ParseError, Version};
use super::scsi::DeviceKind;
use super::{Config, Error};
use crate::fallible::{OutOfMemory, ReservedVec, Shared, TryPush, try_box, try_vec_with_capacity};
use crate::kmcl::{Channel, Gone, Instance, OfferSource, StateChangeCallbacks};
use crate::memory::PAGE_SIZE;
use crate::protocol::{Guid, class};
use crate::sync::Lock;
use crate::{Deadline, Instant};

/// The longest transfer that is ever asked for in one command.
const MAX_TRANSFER: u32 = 1024 * 1024;
/// The unit of transfers: hosts think in pages.
const PAGE: u32 = 4096;
/// What is assumed where the host names no limit.
const TRANSFER_WITHOUT_LIMIT: u32 = 64 * 1024;
/// Packets of the host's own accord that may be held: none is.
const QUOTA: u32 = 4;
/// How often a controller without a disk is looked at again, even if the host tells nothing.
const LOOK_AGAIN: core::time::Duration = core::time::Duration::from_secs(1);

/// Opens the channel of a storage controller of this class, [`SCSI`](super::SCSI) or [`IDE`](super::IDE), and initialises it.
/// Waits until there is one. Context: task.
///
/// # Errors
///
/// As for [`attach_with`].
pub fn attach(bus: &impl OfferSource, class: Guid, deadline: Deadline) -> Result<Controller, Error> {
    let config = Config {
        class,
        ..Config::default()
    };
    attach_with(bus, &config, || (), deadline)
}

/// Opens the channel of a storage controller and initialises it. `wake` is called in deferred work when the host tells that
/// the devices have changed, so that a task calls [`Controller::rescan`].
///
/// # Errors
///
/// [`Error::TimedOut`] and those of opening a channel ([`Error::Channel`], [`Error::ControllerGone`], [`Error::OutOfMemory`]);
/// [`Error::Protocol`] if the host does not initialise it in a way that we know.
pub fn attach_with(
    bus: &impl OfferSource,
    config: &Config,
    wake: impl Fn() + Send + Sync + 'static,
    deadline: Deadline,
) -> Result<Controller, Error> {
    let platform = bus.platform();
    let channel = Channel::allocate_client_with(bus, Link::new(platform, try_box(wake)?))?
        .init_set_target(config.class, config.instance)
        .init_set_friendly_name("storage")
        .init_set_ring_buffer_page_count(config.ring_pages, config.ring_pages)
        .init_set_maximum_packet_count(config.commands)
        .init_set_transaction_quota(QUOTA)
        .init_set_bounce_buffer_sizes(config.copy_buffers.max(1), config.copy_buffer_len.max(PAGE_SIZE))
        .init_set_maximum_packet_size(MAX_PACKET_LEN)
        .map_err(|refused| refused.error)?
        // One range for each request: hosts take no more.
        .init_set_maximum_external_data(MAX_TRANSFER as usize, 1)
        .map_err(|refused| refused.error)?
        // Those who wait for news are told that there will be none.
        .init_set_state_change_callbacks(
            StateChangeCallbacks::new()
                .suspend(|channel: &Channel<Link>| {
                    // One whose ring is broken is not closed before somebody does that.
                    if channel.gone() == Some(Gone::Corrupt) {
                        channel.context().note_news();
                    }
                })
                .closed(|channel: &Channel<Link>| {
                    if channel.gone() != Some(Gone::Corrupt) {
                        channel.context().note_news();
                    }
                }),
        )
        .init_set_process_packet_callback(|channel, packet| channel.context().on_packet(packet));
    initialise(channel, config, deadline)
}

/// Opens the channel, and talks to the host until it is ready.
fn initialise(
    channel: crate::kmcl::DisabledChannel<Link>,
    config: &Config,
    deadline: Deadline,
) -> Result<Controller, Error> {
    let channel = channel.enable(deadline).map_err(|refused| refused.error)?;
    // The clock is the channel's, so a relative deadline begins again here.
    let until = deadline.resolve(channel.now());
    let ask = |packet: &Packet, body: &mut [u8; MAX_PACKET_LEN]| -> Result<u32, Error> {
        let deadline = until.map_or(Deadline::Never, Deadline::At);
        channel
            .send_synchronous_request(packet.bytes(), None, deadline, body)
            .map_err(|refused| refused.error)?;
        Ok(Answer::parse(body)?.status)
    };
    let mut body = [0; MAX_PACKET_LEN];
    let must = |status: u32| if status == 0 { Ok(()) } else { Err(refused(status)) };
    must(ask(&Packet::control(Operation::BEGIN_INITIALIZATION, None), &mut body)?)?;
    let mut agreed = None;
    for version in Version::LADDER {
        body = [0; MAX_PACKET_LEN];
        if ask(&Packet::query_version(version), &mut body)? == 0 {
            agreed = Some(version);
            break;
        }
    }
    let version = agreed.ok_or(Error::Protocol)?;
    body = [0; MAX_PACKET_LEN];
    must(ask(
        &Packet::control(Operation::QUERY_PROPERTIES, Some(version)),
        &mut body,
    )?)?;
    let properties = Answer::parse(&body)?.properties()?;
    body = [0; MAX_PACKET_LEN];
    must(ask(
        &Packet::control(Operation::END_INITIALIZATION, Some(version)),
        &mut body,
    )?)?;
    let limit = match properties.max_transfer_bytes {
        0 => TRANSFER_WITHOUT_LIMIT,
        limit => limit,
    };
    let wanted = config.max_transfer.clamp(PAGE, MAX_TRANSFER);
    if limit < PAGE {
        return Err(Error::Protocol);
    }
    let max_transfer = limit.min(wanted).saturating_div(PAGE).saturating_mul(PAGE);
    log::info!(
        target: "vmbus::storage",
        "{}: storage protocol {version}, transfers of up to {max_transfer} bytes",
        channel.interface_instance()
    );
    let is_ide = config.class == class::IDE;
    Ok(Controller(Shared::try_new(State {
        inner: Shared::try_new(Inner {
            channel,
            version,
            max_transfer,
            copy_len: config.copy_buffer_len.max(PAGE_SIZE),
        })?,
        is_ide,
        disks: Lock::new(Vec::new()),
        untold: Lock::new(Vec::new()),
        is_scanning: AtomicBool::new(false),
    })?))
}

#[cold]
fn refused(status: u32) -> Error {
    log::warn!(target: "vmbus::storage", "the host refuses to initialise the controller: {status:#x}");
    Error::Protocol
}

impl From<ParseError> for Error {
    fn from(_: ParseError) -> Self {
        Self::Protocol
    }
}

struct State {
    inner: Shared<Inner>,
    is_ide: bool,
    disks: Lock<Vec<Disk>>,
    /// What was found and not told, because the look at the controller failed further on.
    untold: Lock<Vec<Change>>,
    is_scanning: AtomicBool,
}

/// A storage controller of the machine. Clones are handles of the same one; the channel is closed when the last of them and
/// the last of its disks is dropped.
#[derive(Clone)]
pub struct Controller(Shared<State>);

/// What [`Controller::rescan`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Change {
    /// A disk has come.
    Added(Disk),
    /// A disk has gone; what is left of the object says so.
    Removed(Disk),
    /// A disk has another number of blocks.
    Resized(Disk),
}

impl Change {
    /// Whether it is news of a disk that is there, from which its size is learned.
    fn tells_size_of(&self, known: &Disk) -> bool {
        matches!(self, Self::Added(disk) | Self::Resized(disk) if disk.is(known))
    }
}

impl Controller {
    /// Returns which offer this is, so that it can be found again.
    #[must_use]
    pub fn instance(&self) -> Guid {
        self.0.inner.channel.interface_instance()
    }

    /// Returns the version of the protocol that is spoken.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.inner.version
    }

    /// Returns the longest transfer of one command, in bytes; longer ones are split.
    #[must_use]
    pub fn max_transfer(&self) -> u32 {
        self.0.inner.max_transfer
    }

    /// Returns false once the controller was taken away or its channel has ended.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.gone().is_none()
    }

    /// Returns why there is no channel any more: taken away, or ended because the host broke its ring; `None` while there is one.
    #[must_use]
    pub fn gone(&self) -> Option<Gone> {
        self.0.inner.channel.gone()
    }

    /// Returns what happened so far, in numbers.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.inner.link().counting.snapshot()
    }

    /// Returns what the channel has done: how many commands were sent, above all.
    #[must_use]
    pub fn channel_counters(&self) -> crate::kmcl::Counters {
        self.0.inner.channel.counters()
    }

    /// Returns true if the devices may have changed since [`rescan`](Self::rescan) was called, or if it never was.
    #[must_use]
    pub fn needs_rescan(&self) -> bool {
        self.0.inner.link().has_news()
    }

    /// Returns the disks that the last [`rescan`](Self::rescan) has seen, in the order of their numbers.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn disks(&self) -> Result<Vec<Disk>, OutOfMemory> {
        let disks = self.0.disks.lock(self.0.inner.channel.platform());
        let mut copy = try_vec_with_capacity(disks.len())?;
        for disk in disks.iter() {
            copy.try_push(disk.clone())?;
        }
        Ok(copy)
    }

    /// Asks the controller for its disks, and each disk what it is. Disks that stay are the same objects as before. Context: task.
    ///
    /// # Errors
    ///
    /// [`Error::ControllerGone`], [`Error::TimedOut`], [`Error::WouldDeadlock`], [`Error::OutOfMemory`]. What was found until
    /// then is kept, and told by the next call that succeeds. Disks that cannot be asked are left as they are.
    pub fn rescan(&self, deadline: Deadline) -> Result<Vec<Change>, Error> {
        let state = &*self.0;
        let channel = &state.inner.channel;
        let until = deadline.resolve(channel.now());
        let rest = until.map_or(Deadline::Never, Deadline::At);
        channel.wait_until(rest, || {
            (!state.is_scanning.swap(true, Ordering::Acquire)).then_some(())
        })?;
        // Cleared first: what happens from now on is news again.
        state.inner.link().take_news();
        let platform = channel.platform();
        let mut changes = core::mem::take(&mut *state.untold.lock(platform));
        let result = self.scan(&mut changes, rest);
        if result.as_ref().is_err_and(|error| *error != Error::ControllerGone) {
            state.inner.link().note_news();
        }
        let result = match result {
            Ok(()) => Ok(changes),
            Err(error) => {
                *state.untold.lock(platform) = changes;
                Err(error)
            }
        };
        state.is_scanning.store(false, Ordering::Release);
        result
    }

    /// Looks at all units. What has changed is added to `changes`, which is never longer than all disks that went and came.
    fn scan(&self, changes: &mut Vec<Change>, deadline: Deadline) -> Result<(), Error> {
        let state = &*self.0;
        let platform = state.inner.channel.platform();
        let mut probe = probe::Probe::new(&state.inner, state.is_ide, deadline)?;
        let units = probe.units()?;
        for lun in 0..=u8::MAX {
            let known = {
                let disks = state.disks.lock(platform);
                disks.iter().find(|disk| disk.address().lun == lun).cloned()
            };
            let is_listed = units.contains(lun);
            if !is_listed && known.is_none() {
                continue;
            }
            let found = if is_listed { probe.identify(lun) } else { Ok(None) };
            let found = match found {
                Ok(found) => found,
                Err(error) if error.ends_scan() => return Err(error),
                // It may be well again later: known disks stay, unknown ones stay unknown.
                Err(error) => {
                    log::info!(target: "vmbus::storage", "LUN {lun} cannot be asked: {error}");
                    continue;
                }
            };
            if let (Some(known), Some(found)) = (&known, &found)
                && known.is_same(found)
            {
                // Reserved first: the new size is seen once.
                changes.try_reserve(1).map_err(|_| OutOfMemory)?;
                if known.update(found) && !changes.iter().any(|change| change.tells_size_of(known)) {
                    changes.try_push(Change::Resized(known.clone()))?;
                }
                continue;
            }
            // Reserved first, so that nothing is half done.
            changes.try_reserve(2).map_err(|_| OutOfMemory)?;
            let added = found.map(|found| Disk::new(&state.inner, found)).transpose()?;
            let mut disks = state.disks.lock(platform);
            disks.try_reserve(1).map_err(|_| OutOfMemory)?;
            disks.retain(|disk| disk.address().lun != lun);
            if let Some(disk) = &added {
                let place = disks.partition_point(|other| other.address().lun < lun);
                disks.insert_within(place, disk.clone()).map_err(|_| OutOfMemory)?;
            }
            drop(disks);
            if let Some(known) = known {
                known.note_gone();
                // Nobody need know that it was there.
                let is_untold = changes
                    .iter()
                    .any(|change| matches!(change, Change::Added(disk) if disk.is(&known)));
                changes.retain(|change| !change.tells_size_of(&known));
                if !is_untold {
                    changes.try_push(Change::Removed(known))?;
                }
            }
            if let Some(disk) = added {
                log::info!(target: "vmbus::storage", "{disk}");
                changes.try_push(Change::Added(disk))?;
            }
        }
        Ok(())
    }

    /// Waits until there is a disk, and returns the first one. Context: task, not a callback of the channel.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`], and those of [`rescan`](Self::rescan).
    pub fn wait_for_disk(&self, deadline: Deadline) -> Result<Disk, Error> {
        let channel = &self.0.inner.channel;
        let until = deadline.resolve(channel.now());
        let rest = until.map_or(Deadline::Never, Deadline::At);
        let is_wanted = |disk: &Disk| disk.info().kind == DeviceKind::Disk && disk.is_present() && disk.blocks() > 0;
        loop {
            let found = {
                let disks = self.0.disks.lock(channel.platform());
                disks.iter().find(|disk| is_wanted(disk)).cloned()
            };
            if let Some(disk) = found {
                return Ok(disk);
            }
            if self.needs_rescan() {
                self.rescan(rest)?;
                if self.0.disks.lock(channel.platform()).iter().any(is_wanted) {
                    continue;
                }
            }
            let look_again = channel.now().saturating_add(LOOK_AGAIN);
            match self.wait_for_news(Deadline::At(until.map_or(look_again, |until| until.min(look_again)))) {
                Err(Error::TimedOut) if !is_over(until, channel.now()) => self.0.inner.link().note_news(),
                result => result?,
            }
        }
    }

    /// Waits until [`needs_rescan`](Self::needs_rescan). Context: task, not a callback of the channel.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`], [`Error::ControllerGone`], [`Error::WouldDeadlock`].
    pub fn wait_for_news(&self, deadline: Deadline) -> Result<(), Error> {
        let channel = &self.0.inner.channel;
        channel.wait_until(deadline, || {
            // News are packets, which a wait alone does not deliver: with interrupts off nobody else would.
            channel.process();
            match channel.gone() {
                Some(_) => Some(Err(Error::ControllerGone)),
                None => self.needs_rescan().then_some(Ok(())),
            }
        })?
    }

    /// Has the host reset the bus: commands in flight end, and are sent again by those who wait for them.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the host does not want to; [`Error::TimedOut`], [`Error::ControllerGone`].
    pub fn reset(&self, deadline: Deadline) -> Result<(), Error> {
        let inner = &self.0.inner;
        let packet = Packet::control(Operation::RESET_BUS, Some(inner.version));
        let mut body = [0; MAX_PACKET_LEN];
        inner
            .channel
            .send_synchronous_request(packet.bytes(), None, deadline, &mut body)
            .map_err(|refused| refused.error)?;
        if Answer::parse(&body)?.status == 0 {
            Ok(())
        } else {
            Err(Error::Unsupported)
        }
    }
}

fn is_over(until: Option<Instant>, now: Instant) -> bool {
    until.is_some_and(|until| now >= until)
}

impl fmt::Debug for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Controller")
            .field("channel", &self.0.inner.channel)
            .field("version", &self.0.inner.version)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The default with another class and instance.
    #[must_use]
    pub fn of(class: Guid, instance: Instance) -> Self {
        Self {
            class,
            instance,
            ..Self::default()
        }
    }
}
