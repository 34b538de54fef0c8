//! What an initialised channel is to be: [`Settings`], numbers, and [`Callbacks`], the driver's code.

use alloc::boxed::Box;

use super::transport::Target;
#[cfg(feature = "host")]
use super::transport::UserDefined;
use super::{Channel, Context, Error, Gone, IncomingPacket, NtStatus};
use crate::fallible::{OutOfMemory, Shared, try_box};
use crate::memory::{PAGE_SIZE, pages_for};
use crate::platform::ProcessorIndex;

/// The longest friendly name that is kept, in bytes.
const NAME_BYTES: usize = 48;

/// The most ranges of external data that one packet may describe.
pub(crate) const MAX_RANGES: usize = 32;

/// Bytes of a packet that are not payload: descriptor and trailer.
const FRAME: usize = 24;

/// A short text without allocation: the beginning of what was given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    bytes: [u8; NAME_BYTES],
    len: usize,
}

impl Name {
    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; NAME_BYTES];
        let mut len = text.len().min(NAME_BYTES);
        while !text.is_char_boundary(len) {
            len = len.saturating_sub(1);
        }
        for (target, source) in bytes.iter_mut().zip(text.as_bytes().iter().take(len)) {
            *target = *source;
        }
        Self { bytes, len }
    }

    pub(crate) fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or("")
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_str().fmt(formatter)
    }
}

/// The numbers of a channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) name: Name,
    pub(crate) target: Target,
    pub(crate) processor: ProcessorIndex,
    pub(crate) user_data: [u8; 120],
    /// Data pages of each ring; the control page comes on top.
    pub(crate) incoming_pages: usize,
    pub(crate) outgoing_pages: usize,
    pub(crate) maximum_packet_size: usize,
    /// Bytes and parts of the memory that a packet may describe.
    pub(crate) maximum_external_data: usize,
    pub(crate) maximum_chain_length: usize,
    pub(crate) maximum_packet_count: u32,
    pub(crate) client_context_size: usize,
    pub(crate) inline_packet_context_size: usize,
    pub(crate) quota: u32,
    pub(crate) at_passive: bool,
    pub(crate) paused: bool,
    pub(crate) bounce_buffers: usize,
    pub(crate) bounce_buffer_size: usize,
    /// What a server offers.
    #[cfg(feature = "host")]
    pub(crate) mmio_megabytes: u16,
    #[cfg(feature = "host")]
    pub(crate) offer_data: UserDefined,
}

impl Settings {
    pub(crate) fn new() -> Self {
        Self {
            name: Name::new(""),
            target: Target::default(),
            processor: ProcessorIndex(0),
            user_data: [0; 120],
            incoming_pages: 4,
            outgoing_pages: 4,
            maximum_packet_size: 1024,
            maximum_external_data: 64 * 1024,
            maximum_chain_length: 8,
            maximum_packet_count: 16,
            client_context_size: 0,
            inline_packet_context_size: 0,
            quota: 16,
            at_passive: false,
            paused: false,
            bounce_buffers: 0,
            bounce_buffer_size: 0,
            #[cfg(feature = "host")]
            mmio_megabytes: 0,
            #[cfg(feature = "host")]
            offer_data: UserDefined::default(),
        }
    }

    /// Bytes of the longest page list that describes external data within the limits.
    pub(crate) const fn longest_page_list(&self) -> usize {
        // Each part may start and end inside a page.
        let pages = pages_for(self.maximum_external_data);
        let words = self.maximum_chain_length.saturating_mul(3).saturating_add(pages);
        words.saturating_add(1).saturating_mul(8)
    }

    /// Words of the largest packet without its descriptor.
    pub(crate) const fn packet_words(&self) -> usize {
        self.longest_page_list()
            .saturating_add(self.maximum_packet_size)
            .div_ceil(8)
    }

    /// Pages that a ring needs at the least, so that the largest packet fits while another is being read.
    pub(crate) const fn least_ring_pages(&self) -> usize {
        let packet = self.packet_words().saturating_mul(8).saturating_add(FRAME);
        packet.saturating_mul(2).saturating_add(8).div_ceil(PAGE_SIZE)
    }
}

/// What the opened callback answers.
pub type OpenedResult = Result<(), NtStatus>;

type Handler<F> = Option<Shared<Box<F>>>;
pub(crate) type ProcessPacket<C> = dyn Fn(&Channel<C>, IncomingPacket<C>) + Send + Sync;
pub(crate) type ProcessingComplete<C> = dyn Fn(&Channel<C>, u32) + Send + Sync;
type Opened<C> = dyn Fn(&Channel<C>) -> OpenedResult + Send + Sync;
pub(crate) type Notice<C> = dyn Fn(&Channel<C>) + Send + Sync;
pub(crate) type PnpFailure<C> = dyn Fn(&C, Error) + Send + Sync;

/// The driver's code, all of it optional.
pub(crate) struct Callbacks<C: Context> {
    pub(crate) process_packet: Handler<ProcessPacket<C>>,
    pub(crate) processing_complete: Handler<ProcessingComplete<C>>,
    pub(crate) pnp_failure: Handler<PnpFailure<C>>,
    pub(crate) passive_wake: Handler<Notice<C>>,
    #[cfg(feature = "host")]
    pub(crate) save_packet: Handler<super::saving::SavePacket<C>>,
    #[cfg(feature = "host")]
    pub(crate) restore_packet: Handler<super::saving::RestorePacket<C>>,
    pub(crate) state: StateChangeCallbacks<C>,
}

impl<C: Context> Callbacks<C> {
    pub(crate) const fn new() -> Self {
        Self {
            process_packet: None,
            processing_complete: None,
            pnp_failure: None,
            passive_wake: None,
            #[cfg(feature = "host")]
            save_packet: None,
            #[cfg(feature = "host")]
            restore_packet: None,
            state: StateChangeCallbacks::new(),
        }
    }
}

// Not derived: that would ask for `C: Clone`.
impl<C: Context> Clone for Callbacks<C> {
    fn clone(&self) -> Self {
        Self {
            process_packet: self.process_packet.clone(),
            processing_complete: self.processing_complete.clone(),
            pnp_failure: self.pnp_failure.clone(),
            passive_wake: self.passive_wake.clone(),
            #[cfg(feature = "host")]
            save_packet: self.save_packet.clone(),
            #[cfg(feature = "host")]
            restore_packet: self.restore_packet.clone(),
            state: self.state.clone(),
        }
    }
}

/// The callbacks about a channel's state, all of them optional (`VMB_CHANNEL_STATE_CHANGE_CALLBACKS`).
///
/// They run at `PASSIVE`, one at a time and never together with a packet callback of the channel.
///
/// # Examples
///
/// ```
/// use vmbus::kmcl::StateChangeCallbacks;
/// let callbacks = StateChangeCallbacks::<()>::new()
///     .opened(|channel| { log::info!("{} is open", channel.friendly_name()); Ok(()) })
///     .suspend(|_| { /* no packet will come; complete those that are here */ });
/// ```
pub struct StateChangeCallbacks<C: Context> {
    pub(crate) opened: Handler<Opened<C>>,
    pub(crate) started: Handler<Notice<C>>,
    pub(crate) post_started: Handler<Notice<C>>,
    pub(crate) suspend: Handler<Notice<C>>,
    pub(crate) closed: Handler<Notice<C>>,
    pub(crate) out_of_memory: bool,
}

impl<C: Context> StateChangeCallbacks<C> {
    /// No callbacks (`VMB_CHANNEL_STATE_CHANGE_CALLBACKS_INIT`).
    ///
    /// ```
    /// use vmbus::kmcl::StateChangeCallbacks;
    /// let callbacks = StateChangeCallbacks::<()>::new();
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self {
            opened: None,
            started: None,
            post_started: None,
            suspend: None,
            closed: None,
            out_of_memory: false,
        }
    }

    pub(crate) fn keep<F: ?Sized>(&mut self, boxed: Result<Box<F>, OutOfMemory>) -> Handler<F> {
        let kept = share(boxed);
        self.out_of_memory |= kept.is_err();
        kept.ok()
    }

    /// The channel is open, no traffic yet (`EvtVmbChannelOpened`). An error undoes the opening.
    ///
    /// ```
    /// # use vmbus::kmcl::{NtStatus, StateChangeCallbacks};
    /// // Only with what we know how to drive.
    /// let callbacks = StateChangeCallbacks::<()>::new().opened(|channel| match channel.offer_user_defined() {
    ///     [0, ..] => Ok(()),
    ///     _ => Err(NtStatus::INVALID_DEVICE_STATE),
    /// });
    /// ```
    #[must_use]
    pub fn opened(mut self, callback: impl Fn(&Channel<C>) -> OpenedResult + Send + Sync + 'static) -> Self {
        self.opened = self.keep(try_box(callback).map(|boxed| -> Box<Opened<C>> { boxed }));
        self
    }

    /// Packets may be sent, which then wait in line; nothing is received yet (`EvtVmbChannelStarted`). Waiting for a
    /// completion here is refused.
    ///
    /// ```
    /// # use vmbus::kmcl::StateChangeCallbacks;
    /// // The first packet, in front of all others.
    /// let callbacks = StateChangeCallbacks::<()>::new().started(|channel| drop(channel.send(b"hello")));
    /// ```
    #[must_use]
    pub fn started(mut self, callback: impl Fn(&Channel<C>) + Send + Sync + 'static) -> Self {
        self.started = self.keep(try_box(callback).map(|boxed| -> Box<Notice<C>> { boxed }));
        self
    }

    /// Completions are received, and may be waited for (`EvtVmbChannelPostStarted`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::StateChangeCallbacks};
    /// let callbacks = StateChangeCallbacks::<()>::new().post_started(|channel| {
    ///     let mut version = [0; 8];
    ///     let asked = channel.send_synchronous_request(b"version", None, Deadline::seconds(1), &mut version);
    ///     log::info!("{asked:?}: {version:?}");
    /// });
    /// ```
    #[must_use]
    pub fn post_started(mut self, callback: impl Fn(&Channel<C>) + Send + Sync + 'static) -> Self {
        self.post_started = self.keep(try_box(callback).map(|boxed| -> Box<Notice<C>> { boxed }));
        self
    }

    /// No packet is being processed, and none will be (`EvtVmbChannelSuspend`): those that the driver holds must be
    /// completed, now or later.
    ///
    /// ```
    /// # use vmbus::kmcl::{IncomingPacket, StateChangeCallbacks};
    /// # use std::sync::Mutex;
    /// struct Server { held: Mutex<Vec<IncomingPacket<Server>>> }
    /// let callbacks = StateChangeCallbacks::<Server>::new().suspend(|channel| {
    ///     let held = std::mem::take(&mut *channel.context().held.lock().unwrap());
    ///     held.into_iter().for_each(|packet| drop(packet.complete(&[])));
    /// });
    /// ```
    #[must_use]
    pub fn suspend(mut self, callback: impl Fn(&Channel<C>) + Send + Sync + 'static) -> Self {
        self.suspend = self.keep(try_box(callback).map(|boxed| -> Box<Notice<C>> { boxed }));
        self
    }

    /// The channel is closed (`EvtVmbChannelClosed`).
    ///
    /// ```
    /// # use vmbus::kmcl::StateChangeCallbacks;
    /// let callbacks = StateChangeCallbacks::<()>::new().closed(|channel| log::info!("{} is closed", channel.id()));
    /// ```
    #[must_use]
    pub fn closed(mut self, callback: impl Fn(&Channel<C>) + Send + Sync + 'static) -> Self {
        self.closed = self.keep(try_box(callback).map(|boxed| -> Box<Notice<C>> { boxed }));
        self
    }
}

impl<C: Context> Default for StateChangeCallbacks<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Context> Clone for StateChangeCallbacks<C> {
    fn clone(&self) -> Self {
        Self {
            opened: self.opened.clone(),
            started: self.started.clone(),
            post_started: self.post_started.clone(),
            suspend: self.suspend.clone(),
            closed: self.closed.clone(),
            out_of_memory: self.out_of_memory,
        }
    }
}

impl<C: Context> core::fmt::Debug for StateChangeCallbacks<C> {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter
            .debug_struct("StateChangeCallbacks")
            .field("opened", &self.opened.is_some())
            .field("started", &self.started.is_some())
            .field("post_started", &self.post_started.is_some())
            .field("suspend", &self.suspend.is_some())
            .field("closed", &self.closed.is_some())
            .finish()
    }
}

/// Shares a boxed callback among the disabled and the enabled form of its channel.
pub(crate) fn share<F: ?Sized>(boxed: Result<Box<F>, OutOfMemory>) -> Result<Shared<Box<F>>, OutOfMemory> {
    Shared::try_new(boxed?)
}

/// Why a channel ended, as the driver is told.
pub(crate) const fn gone_from(code: u8) -> Option<Gone> {
    match code {
        1 => Some(Gone::Disabled),
        2 => Some(Gone::Rescinded),
        3 => Some(Gone::Closed),
        4 => Some(Gone::Corrupt),
        _ => None,
    }
}

pub(crate) const fn gone_code(gone: Gone) -> u8 {
    match gone {
        Gone::Disabled => 1,
        Gone::Rescinded => 2,
        Gone::Closed => 3,
        Gone::Corrupt => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cut_where_a_character_ends() {
        let long = "e".repeat(NAME_BYTES + 1);
        for (text, kept) in [
            ("", ""),
            ("disk", "disk"),
            (long.as_str(), &long[..NAME_BYTES]),
            (&std::format!("{}é", &long[2..]), &long[2..]),
            (&std::format!("{}€€", &long[3..]), &long[3..]),
        ] {
            let name = Name::new(text);
            assert_eq!(
                (name.as_str(), std::format!("{name:?}")),
                (kept, std::format!("{kept:?}"))
            );
        }
    }

    #[test]
    fn a_slot_has_room_for_the_longest_page_list_and_a_ring_for_two_packets() {
        let mut settings = Settings::new();
        // A count, and for each part a header and two pages that it fills in part, and all whole pages.
        settings.maximum_chain_length = 8;
        settings.maximum_external_data = 16 * PAGE_SIZE;
        assert_eq!(settings.longest_page_list(), 8 * (1 + 8 * 3 + 16));
        settings.maximum_packet_size = 1001;
        assert_eq!(settings.packet_words(), 41 + 126);
        // Two frames of 24 bytes, and the 8 bytes that a ring keeps free.
        for (packet, pages) in [(1688, 1), (1696, 2), (3736, 2), (3744, 3)] {
            settings.maximum_packet_size = packet;
            assert_eq!(settings.least_ring_pages(), pages, "{packet}");
        }
    }

    #[test]
    fn why_a_channel_ended_goes_through_a_number() {
        for gone in [Gone::Disabled, Gone::Rescinded, Gone::Closed, Gone::Corrupt] {
            assert_eq!(gone_from(gone_code(gone)), Some(gone));
        }
        assert_eq!((gone_from(0), gone_from(5)), (None, None));
    }
}
