//! A model of a host: hypervisor and VMBus server, for tests.
//!
//! It was written from the specifications (TLFS, the public descriptions of the channel protocol and of the rings, what
//! `hosts` are known to do), with offsets as literals. It uses none of this crate's wire structures, on purpose.
//!
//! A [`Host`] is a [`Machine`]: the guest's CPUID, registers and hypercalls end here. Everything that the host does happens
//! inside these accesses, while the guest waits on its [`FakePlatform`](super::FakePlatform), or in [`Host::run`]: a test
//! with one thread is deterministic. With several threads it works too; no lock is held while the guest's code is called.
//!
//! What the guest does wrong is recorded as text, for [`Host::assert_no_violations`]. Whether it is answered depends on
//! the [`Personality`]. What the host does wrong is up to the test: [`Host::set_reply`], [`Host::fail_posts`],
//! [`Host::at_step`], [`Host::send_raw`], [`Host::send_slot`], [`HostChannel::send_bytes`], and plain writes into the
//! guest's memory by [`FakePlatform::guest_write`](super::FakePlatform::guest_write).
//!
//! ```
//! use vmbus::testing::{FakePlatform, model::{Config, Echo, Host, Offer, Personality}};
//!
//! let platform = FakePlatform::new();
//! let host = Host::new(platform, Config::new(Personality::HyperV));
//! let channel = host.offer_with(
//!     Offer::new("525074dc-8985-46e2-8057-a307dc18a502", "1eccfd72-4b41-45ef-b73a-4a6e44c12924"),
//!     Echo,
//! );
//! // ... detect the hypervisor on `host`, connect, open `channel`, send ...
//! host.run();
//! host.assert_no_violations();
//! platform.assert_no_faults();
//! # let _ = channel;
//! ```
#![expect(unsafe_code, reason = "the trait `Machine` is unsafe to implement")]
#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_macros,
        reason = "runs on a development machine"
    )
)]

mod bytes;
mod config;
mod device;
pub mod dynamic_memory;
mod knobs;
mod processor;
mod ring;
mod scramble;
mod server;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::bytes::{is_zero, low16, low32, to_usize, u32_at};
use self::knobs::{ReplyRule, StepRule};
use self::processor::{Processor, SlotMessage};
use self::server::{Channel, Server};
use super::{FakePlatform, HostSide};
use crate::Platform;
use crate::hyperv::machine::{Cpuid, Machine};
use crate::platform::ProcessorIndex;

pub use self::config::{Config, Echo as VersionEcho, Offer, Pace, Personality};
pub use self::device::{Device, Echo};
pub use self::knobs::{Action, Reply, When};
pub use self::ring::{Packet, RingError};
pub use self::scramble::Scrambler;
pub use self::server::GuestRange;

/// What the host counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Messages that reached a slot.
    pub messages_delivered: u64,
    /// Event flags that were set and had not been.
    pub events_delivered: u64,
    /// Event flags for a processor whose SynIC was off.
    pub events_lost: u64,
    /// Writes of "end of message".
    pub ends_of_message: u64,
    /// Messages that were posted and accepted.
    pub posts: u64,
    /// Posts that were refused.
    pub refused_posts: u64,
    /// Signals to a channel that was not open, or to no channel.
    pub stray_signals: u64,
}

/// What the host counted of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounters {
    /// How often it was opened.
    pub openings: u64,
    /// Signals from the guest.
    pub signals: u64,
    /// Signals from the guest with nothing new in the ring and nobody waiting for room.
    pub useless_signals: u64,
    /// Signals to the guest.
    pub signals_sent: u64,
    /// Packets from the guest.
    pub received: u64,
    /// Packets to the guest.
    pub sent: u64,
    /// Packets that a device could not send.
    pub dropped: u64,
}

/// What a device has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Opened(u32),
    Signalled(u32),
    Closed(u32),
}

struct State {
    platform: &'static FakePlatform,
    config: Config,
    violations: Vec<String>,
    processors: Vec<Processor>,
    guest_os_id: u64,
    hypercall_page: u64,
    reference_tsc: u64,
    tsc_sequence: u32,
    crash_parameters: [u64; 5],
    crash_control: Option<u64>,
    /// The guest has begun to crash: what it leaves behind is no mistake.
    is_crashing: bool,
    has_reset: bool,
    server: Server,
    /// The connections that take messages now.
    ports: Vec<u32>,
    /// Where messages went last: an answer to UNLOAD comes after the contact has ended.
    last_target: Option<(u32, usize)>,
    /// The processor to whose slot all messages go, instead of the contact's.
    message_processor: Option<usize>,
    inbox: VecDeque<(u32, Vec<u8>)>,
    /// Answers that come at a time.
    later: Vec<(u64, Vec<u8>)>,
    events: VecDeque<Event>,
    interrupts: VecDeque<(usize, u8)>,
    interrupts_enabled: bool,
    is_in_interrupt: Vec<bool>,
    steps: Vec<Action>,
    step_rules: Vec<StepRule>,
    reply_rules: Vec<ReplyRule>,
    /// Status and how often.
    failing_posts: Vec<(u64, u32)>,
    failing_signals: Vec<(u64, u32)>,
    counters: Counters,
    last_look: u64,
}

impl State {
    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

type InterruptHandler = Box<dyn Fn(ProcessorIndex, u8) + Send + Sync>;

/// A model of a host. See the module's documentation.
pub struct Host {
    platform: &'static FakePlatform,
    state: Mutex<State>,
    interrupt_handler: Mutex<Option<&'static InterruptHandler>>,
}

/// Hold every host and handler, so that a leak checker sees that they are reachable.
static HOSTS: Mutex<Vec<&'static Host>> = Mutex::new(Vec::new());
static HANDLERS: Mutex<Vec<&'static InterruptHandler>> = Mutex::new(Vec::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Makes a host for the rest of the process's life, at the other side of `platform`.
    #[must_use]
    pub fn new(platform: &'static FakePlatform, config: Config) -> &'static Self {
        let processors: Vec<Processor> = config.vp_indices.iter().map(|index| Processor::new(*index)).collect();
        platform.set_processor_count(bytes::len32(processors.len()));
        let host: &'static Self = Box::leak(Box::new(Self {
            platform,
            state: Mutex::new(State {
                platform,
                violations: Vec::new(),
                is_in_interrupt: processors.iter().map(|_| false).collect(),
                processors,
                guest_os_id: 0,
                hypercall_page: 0,
                reference_tsc: 0,
                tsc_sequence: 1,
                crash_parameters: [0; 5],
                crash_control: None,
                is_crashing: false,
                has_reset: false,
                server: Server {
                    next_channel: 1,
                    ..Server::default()
                },
                ports: config.contact_connections.clone(),
                config,
                last_target: None,
                message_processor: None,
                inbox: VecDeque::new(),
                later: Vec::new(),
                events: VecDeque::new(),
                interrupts: VecDeque::new(),
                interrupts_enabled: true,
                steps: Vec::new(),
                step_rules: Vec::new(),
                reply_rules: Vec::new(),
                failing_posts: Vec::new(),
                failing_signals: Vec::new(),
                counters: Counters::default(),
                last_look: 0,
            }),
            interrupt_handler: Mutex::new(None),
        }));
        locked(&HOSTS).push(host);
        platform.attach_host(host);
        host
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    // ----- what the guest did

    /// Returns the platform whose memory the host uses.
    #[must_use]
    pub const fn platform(&self) -> &'static FakePlatform {
        self.platform
    }

    /// Returns what the guest did wrong so far.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Returns what the guest did wrong so far, and forgets it: for tests of wrong-doing.
    pub fn take_violations(&self) -> Vec<String> {
        core::mem::take(&mut self.lock().violations)
    }

    /// Checks that the guest did nothing wrong.
    ///
    /// # Panics
    ///
    /// If it did.
    #[track_caller]
    pub fn assert_no_violations(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "the guest broke the protocol: {violations:#?}");
    }

    /// Returns what the host counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Returns the guest's steps so far, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Action> {
        self.lock().steps.clone()
    }

    /// Returns the number of the next step.
    #[must_use]
    pub fn step_count(&self) -> usize {
        self.lock().steps.len()
    }

    /// Returns the version of the contact that was accepted, if there is one.
    #[must_use]
    pub fn version(&self) -> Option<u32> {
        self.lock().server.contact.as_ref().map(|contact| contact.version)
    }

    /// Returns the feature flags that were agreed on.
    #[must_use]
    pub fn features(&self) -> u32 {
        self.lock()
            .server
            .contact
            .as_ref()
            .map_or(0, |contact| contact.features)
    }

    /// Returns how many GPADLs there are.
    #[must_use]
    pub fn gpadl_count(&self) -> usize {
        self.lock().server.gpadls.len()
    }

    /// Returns the ranges of a GPADL, or `None` if it is not there or not complete.
    #[must_use]
    pub fn gpadl(&self, id: u32) -> Option<Vec<GuestRange>> {
        let state = self.lock();
        let gpadl = state.server.gpadls.get(&id)?;
        (!gpadl.ranges.is_empty()).then(|| gpadl.ranges.clone())
    }

    /// Returns the five crash parameters and the control word, if the guest has reported a crash.
    #[must_use]
    pub fn crash(&self) -> Option<([u64; 5], u64)> {
        let state = self.lock();
        state.crash_control.map(|control| (state.crash_parameters, control))
    }

    /// Returns whether the guest asked for a reset.
    #[must_use]
    pub fn has_reset(&self) -> bool {
        self.lock().has_reset
    }

    /// Returns whether nothing of the guest is left with the host: no SynIC page, hypercall page, GPADL or contact.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let state = self.lock();
        let has_pages = state.processors.iter().any(|processor| {
            let timers = processor.timers.iter().any(|timer| timer.0 & 1 != 0);
            let sints = processor.sints.iter().any(|sint| sint & 0x1_0000 == 0);
            (processor.message_page | processor.event_page | processor.control) & 1 != 0 || timers || sints
        });
        !has_pages
            && (state.hypercall_page | state.reference_tsc) & 1 == 0
            && state.server.gpadls.is_empty()
            && state.server.contact.is_none()
    }

    /// Returns how many messages wait for a free slot of a processor.
    #[must_use]
    pub fn waiting_messages(&self, processor: u32) -> usize {
        let state = self.lock();
        state
            .processors
            .get(processor as usize)
            .map_or(0, Processor::waiting_messages)
    }

    // ----- the guest's side

    /// Makes `handler` the guest's interrupt handler: called with the processor and the vector, on that processor.
    pub fn set_interrupt_handler(&self, handler: impl Fn(ProcessorIndex, u8) + Send + Sync + 'static) {
        let handler: InterruptHandler = Box::new(handler);
        let handler: &'static InterruptHandler = Box::leak(Box::new(handler));
        locked(&HANDLERS).push(handler);
        *locked(&self.interrupt_handler) = Some(handler);
    }

    /// Turns the guest's interrupts off: what is raised stays pending.
    pub fn disable_interrupts(&self) {
        self.lock().interrupts_enabled = false;
    }

    /// Turns the guest's interrupts on, and delivers what is pending.
    pub fn enable_interrupts(&self) {
        self.lock().interrupts_enabled = true;
        self.settle();
    }

    /// Takes the interrupts that no handler took: processor and vector.
    pub fn take_interrupts(&self) -> Vec<(u32, u8)> {
        let pending: Vec<_> = self.lock().interrupts.drain(..).collect();
        pending
            .into_iter()
            .map(|(processor, vector)| (bytes::len32(processor), vector))
            .collect()
    }

    // ----- what the host does

    /// Lets the host work until nothing is left to do now. Returns true if it did anything.
    pub fn run(&self) -> bool {
        let mut has_worked = false;
        for _ in 0..10_000 {
            if !self.run_once() {
                return has_worked;
            }
            has_worked = true;
        }
        has_worked
    }

    fn run_once(&self) -> bool {
        let now = self.platform.time();
        let mut has_worked = false;
        {
            let mut state = self.lock();
            if let Some((connection, message)) = state.inbox.pop_front() {
                state.serve(connection, &message);
                has_worked = true;
            }
            while let Some(index) = state.later.iter().position(|(at, _)| *at <= now) {
                let (_, message) = state.later.remove(index);
                state.send_late(message);
                has_worked = true;
            }
            has_worked |= state.run_timers(now);
            if state.config.personality == Personality::OpenVmm {
                // It looks at the slots by itself.
                for index in 0..state.processors.len() {
                    has_worked |= state.deliver_messages(index);
                }
            }
        }
        has_worked |= self.settle();
        let open: Vec<u32> = {
            let state = self.lock();
            let channels = state.server.channels.iter();
            channels
                .filter(|(_, channel)| channel.opening.is_some())
                .map(|(id, _)| *id)
                .collect()
        };
        for id in open {
            has_worked |= self
                .with_device(id, |device, channel| device.run(channel))
                .unwrap_or(false);
        }
        has_worked |= self.settle();
        has_worked
    }

    /// Offers a channel without a device: the test itself is the device, by [`Host::channel`]. Returns its number.
    pub fn offer(&self, offer: Offer) -> u32 {
        self.add_channel(None, offer, None)
    }

    /// Offers a channel with a device. Returns its number.
    pub fn offer_with(&self, offer: Offer, device: impl Device + 'static) -> u32 {
        self.add_channel(None, offer, Some(Box::new(device)))
    }

    /// Offers a channel with a number that the test chooses: also one that is in use, or impossible.
    pub fn offer_as(&self, channel: u32, offer: Offer) {
        self.add_channel(Some(channel), offer, None);
    }

    fn add_channel(&self, id: Option<u32>, offer: Offer, device: Option<Box<dyn Device>>) -> u32 {
        let id = {
            let mut state = self.lock();
            let id = id.unwrap_or_else(|| {
                while state.server.channels.contains_key(&state.server.next_channel) {
                    state.server.next_channel += 1;
                }
                state.server.next_channel += 1;
                state.server.next_channel - 1
            });
            let base = if state.config.personality == Personality::Qemu {
                16
            } else {
                0x1_1000
            };
            let connection = offer.connection.unwrap_or(base + id);
            if state.server.channels.contains_key(&id) {
                // Only told, not kept: the channel that is there stays.
                let message = offer.message(id, connection);
                state.send_message(message);
            } else {
                state.server.released.remove(&id);
                let channel = Channel {
                    offer,
                    connection,
                    is_offered: false,
                    is_rescinded: false,
                    opening: None,
                    rings: None,
                    device,
                    is_device_out: false,
                    missed: Vec::new(),
                    has_failed_open: false,
                    counters: ChannelCounters::default(),
                };
                state.server.channels.insert(id, channel);
                state.send_offer(id);
            }
            id
        };
        self.settle();
        id
    }

    /// Takes a channel away from the guest.
    pub fn rescind(&self, channel: u32) {
        self.lock().rescind(channel);
        self.settle();
    }

    /// Returns the host's end of a channel.
    #[must_use]
    pub const fn channel(&self, id: u32) -> HostChannel<'_> {
        HostChannel { host: self, id }
    }

    /// Returns the numbers of the channels that are there.
    #[must_use]
    pub fn channels(&self) -> Vec<u32> {
        self.lock().server.channels.keys().copied().collect()
    }

    /// Sends the guest a channel message as it is, up to 240 bytes.
    pub fn send_raw(&self, message: &[u8]) {
        self.lock().send_message(message.to_vec());
        self.settle();
    }

    /// Sends the guest a slot with any type and any length, whatever the payload's.
    pub fn send_slot(&self, kind: u32, claimed_len: u8, payload: &[u8]) {
        self.lock().send_slot_message(SlotMessage {
            kind,
            payload: payload.to_vec(),
            claimed_len,
        });
        self.settle();
    }

    /// Sets an event flag of a SINT on a processor, whoever it belongs to.
    pub fn set_event_flag(&self, processor: u32, sint: usize, flag: u16) {
        self.lock().set_event_flag(processor as usize, sint, flag);
        self.settle();
    }

    /// Returns the guest-physical address of a message slot, or `None` while the page is off.
    #[must_use]
    pub fn slot_address(&self, processor: u32, sint: usize) -> Option<u64> {
        let state = self.lock();
        let page = state.processors.get(processor as usize)?.message_page;
        (page & 1 != 0).then_some((page & !0xfff) + sint as u64 * 256)
    }

    // ----- knobs

    /// Changes the configuration while the host runs.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        let mut state = self.lock();
        change(&mut state.config);
        state.ports = state.config.contact_connections.clone();
        if let Some(contact) = &state.server.contact {
            let connection = contact.message_connection;
            state.ports.push(connection);
        }
    }

    /// Sets how requests of a type are answered from now on (3 REQUESTOFFERS, 5 OPENCHANNEL, 8 GPADL_HEADER, 11 TEARDOWN,
    /// 14 INITIATE_CONTACT, 16 UNLOAD, 22 MODIFYCHANNEL).
    pub fn set_reply(&self, request: u32, reply: Reply) {
        let mut state = self.lock();
        state.reply_rules.retain(|rule| rule.request != request);
        if reply != Reply::Normal {
            let times = None;
            state.reply_rules.push(ReplyRule { request, reply, times });
        }
    }

    /// Sets how the next `times` requests of a type are answered.
    pub fn set_next_replies(&self, request: u32, reply: Reply, times: u32) {
        if times > 0 {
            let times = Some(times);
            self.lock().reply_rules.push(ReplyRule { request, reply, times });
        }
    }

    /// Makes the next `times` posts fail with a hypercall status (0x13: insufficient buffers, 0x12: no such connection).
    pub fn fail_posts(&self, status: u16, times: u32) {
        self.lock().failing_posts.push((u64::from(status), times));
    }

    /// Makes the next `times` signals fail with a hypercall status.
    pub fn fail_signals(&self, status: u16, times: u32) {
        self.lock().failing_signals.push((u64::from(status), times));
    }

    /// Does `work` at step `step` of the guest (see [`Action`]; counted from 0, from the host's making).
    pub fn at_step(&self, step: usize, when: When, work: impl FnOnce(&Self, Action) + Send + 'static) {
        let work = Box::new(work);
        self.lock().step_rules.push(StepRule { step, when, work });
    }

    /// Sends all messages to the slot of one processor, whatever the contact says; `None`: as the contact says.
    pub fn set_message_processor(&self, processor: Option<u32>) {
        self.lock().message_processor = processor.map(|processor| processor as usize);
    }

    /// Tells the host that the guest crashes from here on: what it leaves open is no violation.
    pub fn expect_crash(&self) {
        self.lock().is_crashing = true;
    }

    /// Sets the sequence number of the reference TSC page (0: not valid now), and writes it if the page is enabled.
    pub fn set_tsc_sequence(&self, sequence: u32) {
        let mut state = self.lock();
        state.tsc_sequence = sequence;
        let page = state.reference_tsc;
        if page & 1 != 0 {
            // A page that is gone is recorded by the platform.
            let _ = self.platform.guest_write(page & !0xfff, &sequence.to_le_bytes());
        }
    }

    // ----- inside

    fn processor(&self) -> usize {
        self.platform.current_processor().0 as usize
    }

    /// Does what steps and messages left to do, with no lock held. Returns true if there was anything.
    fn settle(&self) -> bool {
        let mut has_worked = false;
        loop {
            let event = self.lock().events.pop_front();
            if let Some(event) = event {
                has_worked = true;
                self.handle(event);
                continue;
            }
            if !self.deliver_interrupt() {
                return has_worked;
            }
            has_worked = true;
        }
    }

    fn handle(&self, event: Event) {
        let (Event::Opened(id) | Event::Signalled(id) | Event::Closed(id)) = event;
        {
            let mut state = self.lock();
            if let Some(channel) = state.server.channels.get_mut(&id)
                && channel.is_device_out
            {
                channel.missed.push(event);
                return;
            }
        }
        self.with_device(id, |device, channel| match event {
            Event::Opened(_) => device.opened(channel),
            Event::Signalled(_) => device.signalled(channel),
            Event::Closed(_) => device.closed(),
        });
    }

    /// Runs a device without the lock. `None` if there is none, or if it is running already (further down this stack, or
    /// on another thread).
    fn with_device<R>(&self, id: u32, work: impl FnOnce(&mut dyn Device, &HostChannel<'_>) -> R) -> Option<R> {
        let mut device = {
            let mut state = self.lock();
            let channel = state.server.channels.get_mut(&id)?;
            let device = channel.device.take()?;
            channel.is_device_out = true;
            device
        };
        let result = work(&mut *device, &self.channel(id));
        let mut state = self.lock();
        if let Some(channel) = state.server.channels.get_mut(&id) {
            channel.device = Some(device);
            channel.is_device_out = false;
            let missed = core::mem::take(&mut channel.missed);
            state.events.extend(missed);
        }
        Some(result)
    }

    fn deliver_interrupt(&self) -> bool {
        let Some(handler) = *locked(&self.interrupt_handler) else {
            return false;
        };
        let (processor, vector) = {
            let mut state = self.lock();
            if !state.interrupts_enabled {
                return false;
            }
            // An interrupt waits while its processor is in one.
            let ready = state
                .interrupts
                .iter()
                .position(|(processor, _)| !state.is_in_interrupt[*processor]);
            let Some((processor, vector)) = ready.and_then(|index| state.interrupts.remove(index)) else {
                return false;
            };
            state.is_in_interrupt[processor] = true;
            (processor, vector)
        };
        let index = bytes::len32(processor);
        {
            let _here = self.platform.on_processor(index);
            handler(ProcessorIndex(index), vector);
        }
        self.lock().is_in_interrupt[processor] = false;
        true
    }

    /// Counts a step and does what was planned for this side of it.
    fn step(&self, action: Action) -> usize {
        self.platform.note_activity();
        let step = {
            let mut state = self.lock();
            state.steps.push(action);
            state.steps.len() - 1
        };
        self.do_planned(step, When::Before, action);
        step
    }

    fn end_step(&self, step: usize, action: Action) {
        self.do_planned(step, When::After, action);
        self.settle();
    }

    fn do_planned(&self, step: usize, when: When, action: Action) {
        loop {
            let work = {
                let mut state = self.lock();
                let is_due = |rule: &StepRule| rule.step == step && rule.when == when;
                let Some(index) = state.step_rules.iter().position(is_due) else {
                    return;
                };
                state.step_rules.remove(index).work
            };
            work(self, action);
        }
    }

    fn look_at_time(&self) -> u64 {
        let now = self.platform.look_at_clock();
        let is_due = {
            let mut state = self.lock();
            // Time is for everybody: the host gets on while the guest looks at the clock.
            let is_due = !state.inbox.is_empty()
                || state.later.iter().any(|(at, _)| *at <= now)
                || state.next_timer().is_some_and(|at| at <= now)
                || now - state.last_look.min(now) >= 10_000;
            if is_due {
                state.last_look = now;
            }
            is_due
        };
        if is_due {
            self.run();
        }
        now
    }

    fn post_message(&self, control: u64, input: u64) -> u64 {
        const SUCCESS: u64 = 0;
        let bytes = if control & 0x1_0000 == 0 {
            self.read_input(input, 256)
        } else {
            None
        };
        let connection = bytes.as_ref().map_or(0, |bytes| u32_at(bytes, 0));
        let message_type = bytes.as_ref().map_or(0, |bytes| u32_at(bytes, 16));
        let action = Action::Post {
            connection,
            message_type,
        };
        let step = self.step(action);
        let status = match bytes {
            None => {
                let mut state = self.lock();
                state.violation(format!(
                    "HvPostMessage ({control:#x}) with input at {input:#x}: it takes memory, 8-byte aligned, within a page"
                ));
                if control & 0x1_0000 != 0 { 3 } else { 4 }
            }
            Some(bytes) => self.accept_post(&bytes),
        };
        {
            let mut state = self.lock();
            if status == SUCCESS {
                state.counters.posts += 1;
            } else {
                state.counters.refused_posts += 1;
            }
        }
        self.end_step(step, action);
        status
    }

    fn accept_post(&self, input: &[u8]) -> u64 {
        let (connection, kind) = (u32_at(input, 0), u32_at(input, 8));
        let len = to_usize(u64::from(u32_at(input, 12)));
        let mut state = self.lock();
        if let Some(status) = take_failure(&mut state.failing_posts) {
            return status;
        }
        if !is_zero(&input[4..8]) {
            state.violation(String::from("HvPostMessage: the reserved bytes are not zero"));
            return 5;
        }
        if len > 240 {
            state.violation(format!("HvPostMessage: {len} bytes of payload, 240 at most"));
            return 5;
        }
        if !state.ports.contains(&connection) {
            return 0x12;
        }
        if kind != 1 {
            state.violation(format!("HvPostMessage: message type {kind}, the VMBus takes 1"));
            return SUCCESS_BUT_IGNORED;
        }
        let message = input[16..16 + len].to_vec();
        match state.config.pace {
            Pace::AtOnce => {
                state.serve(connection, &message);
                0
            }
            Pace::Later if state.inbox.len() >= state.config.queue_limit => 0x13,
            Pace::Later => {
                state.inbox.push_back((connection, message));
                0
            }
        }
    }

    fn signal_event(&self, control: u64, input: u64) -> u64 {
        let parameters = if control & 0x1_0000 == 0 {
            self.read_input(input, 8).map(|bytes| bytes::u64_at(&bytes, 0))
        } else {
            Some(input)
        };
        let connection = low32(parameters.unwrap_or(0));
        let action = Action::Signal { connection };
        let step = self.step(action);
        let status = match parameters {
            None => {
                let mut state = self.lock();
                state.violation(format!(
                    "HvSignalEvent with input at {input:#x}: 8-byte aligned, within a page"
                ));
                4
            }
            Some(parameters) => self.accept_signal(parameters),
        };
        self.end_step(step, action);
        status
    }

    fn accept_signal(&self, parameters: u64) -> u64 {
        let (connection, flag, reserved) = (low32(parameters), low16(parameters >> 32), parameters >> 48);
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(status) = take_failure(&mut state.failing_signals) {
            return status;
        }
        if reserved != 0 || flag != 0 {
            state.violation(format!(
                "HvSignalEvent with flag {flag} and reserved bits {reserved:#x}"
            ));
            return 5;
        }
        let found = state
            .server
            .channels
            .iter_mut()
            .find(|(_, channel)| channel.connection == connection);
        let Some((id, channel)) = found.filter(|(_, channel)| channel.opening.is_some()) else {
            state.counters.stray_signals += 1;
            return 0x12;
        };
        channel.counters.signals += 1;
        if let Some(rings) = &channel.rings {
            let is_useless = rings.is_signal_useless(state.platform);
            channel.counters.useless_signals += u64::from(is_useless);
        }
        state.events.push_back(Event::Signalled(*id));
        0
    }

    /// Reads a hypercall's input as strictly as a host does.
    fn read_input(&self, input: u64, len: u64) -> Option<Vec<u8>> {
        if !input.is_multiple_of(8) || input / 4096 != (input + len - 1) / 4096 {
            return None;
        }
        let mut bytes: Vec<u8> = (0..len).map(|_| 0).collect();
        self.platform.guest_read(input, &mut bytes).ok()?;
        Some(bytes)
    }
}

/// Taken, but nobody listens.
const SUCCESS_BUT_IGNORED: u64 = 0;

fn take_failure(failures: &mut Vec<(u64, u32)>) -> Option<u64> {
    failures.retain(|(_, times)| *times > 0);
    let (status, times) = failures.first_mut()?;
    *times -= 1;
    Some(*status)
}

impl State {
    /// Sends an answer that was held back, and does what was held back with it.
    fn send_late(&mut self, message: Vec<u8>) {
        match u32_at(&message, 0) {
            12 => {
                self.server.gpadls.remove(&u32_at(&message, 8));
            }
            17 => self.reset_server(),
            _ => {}
        }
        self.send_message(message);
    }
}

// SAFETY: the methods do to the caller's memory only what a host does, through atomics.
unsafe impl Machine for Host {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> Cpuid {
        let state = self.lock();
        let values = match leaf {
            // Bit 31 of ECX: a hypervisor is present.
            1 => [0, 0, 0x8000_0000, 0],
            0x4000_0000.. => {
                let index = to_usize(u64::from(leaf - 0x4000_0000));
                state.config.cpuid.get(index).copied().unwrap_or([0; 4])
            }
            _ => [0; 4],
        };
        let [eax, ebx, ecx, edx] = values;
        Cpuid { eax, ebx, ecx, edx }
    }

    fn timestamp(&self) -> u64 {
        let units = self.look_at_time();
        units.wrapping_mul(self.lock().config.tsc_per_unit)
    }

    unsafe fn read_msr(&self, register: u32) -> u64 {
        let now = if register == 0x4000_0020 {
            self.look_at_time()
        } else {
            0
        };
        let mut state = self.lock();
        state.read_register(self.processor(), register, now).unwrap_or_else(|| {
            state.violation(format!("a read of register {register:#x} faults"));
            0
        })
    }

    unsafe fn write_msr(&self, register: u32, value: u64) {
        let action = if register == 0x4000_0084 {
            Action::EndOfMessage
        } else {
            Action::WriteRegister { register, value }
        };
        let step = self.step(action);
        let processor = self.processor();
        self.lock().write_register(processor, register, value);
        self.end_step(step, action);
    }

    unsafe fn hypercall(&self, page: NonNull<u8>, control: u64, input: u64, _output: u64) -> u64 {
        {
            let mut state = self.lock();
            let here = self.platform.translate(page).map_or(0, |gpa| gpa.get());
            if state.guest_os_id == 0 || state.hypercall_page & 1 == 0 || here != state.hypercall_page & !0xfff {
                let registers = (state.guest_os_id, state.hypercall_page);
                state.violation(format!(
                    "a hypercall through {here:#x}, with guest id and hypercall page {registers:#x?}"
                ));
                return 2;
            }
            // Bits 17 to 26: the size of a variable header; 27 to 31, 32 to 63: repetitions and reserved.
            if control >> 17 != 0 {
                state.violation(format!("a hypercall with control word {control:#x}"));
                return 3;
            }
        }
        match control & 0xffff {
            0x5c => self.post_message(control, input),
            0x5d => self.signal_event(control, input),
            code => {
                self.lock().violation(format!("hypercall {code:#x} is unknown here"));
                2
            }
        }
    }
}

impl HostSide for Host {
    fn run(&self) -> bool {
        Self::run(self)
    }

    fn next_event(&self) -> Option<u64> {
        let state = self.lock();
        let later = state.later.iter().map(|(at, _)| *at).min();
        let devices = state
            .server
            .channels
            .values()
            .filter_map(|channel| channel.device.as_ref()?.next_event());
        [later, state.next_timer(), devices.min()].into_iter().flatten().min()
    }

    fn releasing(&self, page_numbers: &[u64]) {
        let mut state = self.lock();
        if let Some(claim) = state.claims_on(page_numbers) {
            state.violation(format!("memory is released while the host has it as {claim} (G3)"));
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        formatter
            .debug_struct("Host")
            .field("personality", &state.config.personality)
            .field("counters", &state.counters)
            .field("violations", &state.violations)
            .finish_non_exhaustive()
    }
}

/// The host's end of a channel.
#[derive(Clone, Copy, Debug)]
pub struct HostChannel<'a> {
    host: &'a Host,
    id: u32,
}

impl HostChannel<'_> {
    /// Returns the host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        self.host
    }

    /// Returns the channel's number.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    fn with<R>(&self, work: impl FnOnce(&mut State, u32) -> R) -> R {
        work(&mut self.host.lock(), self.id)
    }

    /// Returns whether the guest has it open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.with(|state, id| {
            state
                .server
                .channels
                .get(&id)
                .is_some_and(|channel| channel.opening.is_some())
        })
    }

    /// Returns whether the channel was rescinded and the guest still has its number.
    #[must_use]
    pub fn is_rescinded(&self) -> bool {
        self.with(|state, id| {
            state
                .server
                .channels
                .get(&id)
                .is_some_and(|channel| channel.is_rescinded)
        })
    }

    /// Returns what the guest gave with the open.
    #[must_use]
    pub fn user_data(&self) -> Option<[u8; 120]> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.opening.as_ref()?.user_data))
    }

    /// Returns the virtual processor to which signals go.
    #[must_use]
    pub fn target_vp(&self) -> Option<u32> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.opening.as_ref()?.target_vp))
    }

    /// Returns what the host counted of the channel.
    #[must_use]
    pub fn counters(&self) -> ChannelCounters {
        self.with(|state, id| {
            state
                .server
                .channels
                .get(&id)
                .map_or_else(ChannelCounters::default, |it| it.counters)
        })
    }

    /// Counts a packet that the device could not send.
    pub fn count_dropped(&self) {
        self.with(|state, id| {
            if let Some(channel) = state.server.channels.get_mut(&id) {
                channel.counters.dropped += 1;
            }
        });
    }

    /// Takes the next packet from the guest. A broken ring is a violation, and nothing is received.
    #[must_use]
    pub fn receive(&self) -> Option<Packet> {
        let (packet, is_signal_due) = self.with(|state, id| {
            let channel = state.server.channels.get_mut(&id)?;
            match channel.rings.as_mut()?.receive(state.platform) {
                Ok(outcome) => {
                    channel.counters.received += u64::from(outcome.value.is_some());
                    outcome.value.map(|packet| (packet, outcome.is_signal_due))
                }
                Err(problem) => {
                    // As hosts do: the worker of the device stops.
                    channel.rings = None;
                    state.violation(format!("channel {id}: {problem}"));
                    None
                }
            }
        })?;
        if is_signal_due {
            self.signal();
        }
        Some(packet)
    }

    fn send(
        &self,
        send: impl FnOnce(&mut ring::Rings, &FakePlatform) -> Result<ring::Outcome<()>, RingError>,
    ) -> Result<(), RingError> {
        let is_signal_due = self.with(|state, id| {
            let channel = state.server.channels.get_mut(&id).ok_or(RingError::Closed)?;
            let rings = channel.rings.as_mut().ok_or(RingError::Closed)?;
            let outcome = send(rings, state.platform);
            if outcome.is_ok() {
                channel.counters.sent += 1;
            }
            if let Err(RingError::Broken) = outcome {
                state.violation(format!(
                    "channel {id}: the guest's read index is outside the ring or not aligned"
                ));
            }
            outcome.map(|outcome| outcome.is_signal_due)
        })?;
        if is_signal_due {
            self.signal();
        }
        Ok(())
    }

    /// Sends an in-band packet; bit 0 of `flags` asks for a completion.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_in_band(&self, transaction: u64, flags: u16, payload: &[u8]) -> Result<(), RingError> {
        self.send_packet(6, flags, transaction, &[], payload)
    }

    /// Sends a completion.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_completion(&self, transaction: u64, payload: &[u8]) -> Result<(), RingError> {
        self.send_packet(11, 0, transaction, &[], payload)
    }

    /// Sends a GPA-direct packet.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_gpa_direct(
        &self,
        transaction: u64,
        flags: u16,
        ranges: &[GuestRange],
        payload: &[u8],
    ) -> Result<(), RingError> {
        self.send_packet(9, flags, transaction, &ring::gpa_direct_descriptor(ranges), payload)
    }

    /// Sends a transfer-page packet: the number of the page set, and length and offset of each range in it.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_transfer_pages(
        &self,
        transaction: u64,
        flags: u16,
        set: u16,
        ranges: &[(u32, u32)],
        payload: &[u8],
    ) -> Result<(), RingError> {
        self.send_packet(
            7,
            flags,
            transaction,
            &ring::transfer_page_descriptor(set, ranges),
            payload,
        )
    }

    /// Sends a packet of any type, with any descriptor between its first 16 bytes and the payload.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_packet(
        &self,
        kind: u16,
        flags: u16,
        transaction: u64,
        descriptor: &[u8],
        payload: &[u8],
    ) -> Result<(), RingError> {
        let bytes = ring::packet_bytes(kind, flags, transaction, descriptor, payload);
        self.send(|rings, platform| rings.send(platform, &bytes))
    }

    /// Sends bytes as they are, with a right index but without a trailer: a broken packet, say.
    ///
    /// # Errors
    ///
    /// [`RingError`]
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), RingError> {
        self.send(|rings, platform| rings.send_exactly(platform, bytes))
    }

    /// Signals the guest, whether there is a reason or not.
    pub fn signal(&self) {
        self.with(|state, id| {
            let Some(channel) = state.server.channels.get_mut(&id) else {
                return;
            };
            let Some(opening) = &channel.opening else { return };
            let (vp, flag) = (opening.target_vp, opening.event_flag);
            channel.counters.signals_sent += 1;
            let sint = state.server.contact.as_ref().map_or(2, |contact| contact.sint);
            if let Some(processor) = state.processor_of_vp(vp) {
                state.set_event_flag(processor, sint, flag);
            }
        });
        self.host.settle();
    }

    /// Masks or unmasks the guest's signals, as a device does while it polls: 1 masks.
    pub fn set_mask(&self, value: u32) {
        self.with(|state, id| {
            if let Some(rings) = state
                .server
                .channels
                .get_mut(&id)
                .and_then(|channel| channel.rings.as_mut())
            {
                rings.set_mask(value);
                rings.publish_mask(state.platform);
            }
        });
    }

    /// Sets what the host asks to wait for when the ring to the guest is full: `None` for what it needs, the ring's size
    /// minus one as some hosts do, or any other number.
    pub fn set_pending_send_size(&self, value: Option<u32>) {
        self.with(|state, id| {
            if let Some(rings) = state
                .server
                .channels
                .get_mut(&id)
                .and_then(|channel| channel.rings.as_mut())
            {
                rings.pending_override = value;
            }
        });
    }

    /// Records that the guest did something wrong: for devices.
    pub fn violation(&self, what: String) {
        self.with(|state, id| state.violation(format!("channel {id}: {what}")));
    }

    /// Returns the guest-physical addresses of the two control pages, of the ring from the guest and of that to it: for
    /// bad indices and the like.
    #[must_use]
    pub fn control_pages(&self) -> Option<(u64, u64)> {
        self.with(|state, id| Some(state.server.channels.get(&id)?.rings.as_ref()?.controls()))
    }

    /// Returns the guest-physical address of a byte in the ring to the guest, counted from where the next packet begins:
    /// for bytes that change under its feet.
    #[must_use]
    pub fn address_of_next(&self, offset: u32) -> Option<u64> {
        self.with(|state, id| {
            let rings = state.server.channels.get(&id)?.rings.as_ref()?;
            Some(rings.address_to_guest(rings.write_index().wrapping_add(offset)))
        })
    }

    /// Returns the pages of a GPADL of this channel.
    #[must_use]
    pub fn gpadl(&self, id: u32) -> Option<Vec<GuestRange>> {
        self.with(|state, channel| {
            let gpadl = state.server.gpadls.get(&id).filter(|gpadl| gpadl.channel == channel)?;
            Some(gpadl.ranges.clone())
        })
    }

    /// Copies guest memory that a range describes.
    #[must_use]
    pub fn read_range(&self, range: &GuestRange) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..range.len_bytes).map(|_| 0).collect();
        for (index, byte) in bytes.iter_mut().enumerate() {
            if let Some(gpa) = byte_of(range, index) {
                let _ = self.host.platform.guest_read(gpa, core::slice::from_mut(byte));
            }
        }
        bytes
    }

    /// Writes guest memory that a range describes, from its beginning on.
    pub fn write_range(&self, range: &GuestRange, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate().take(to_usize(u64::from(range.len_bytes))) {
            if let Some(gpa) = byte_of(range, index) {
                let _ = self.host.platform.guest_write(gpa, core::slice::from_ref(byte));
            }
        }
    }

    /// Takes the channel away from the guest.
    pub fn rescind(&self) {
        self.host.rescind(self.id);
    }
}

fn byte_of(range: &GuestRange, index: usize) -> Option<u64> {
    let offset = to_usize(u64::from(range.offset)) + index;
    Some(range.page_numbers.get(offset / 4096)? * 4096 + u64::from(low16(offset as u64 % 4096)))
}
