//! A model of a host: hypervisor and VMBus server, for tests.
//!
//! It was written from the specifications (TLFS, the public descriptions of the channel protocol and of the rings, what
//! `hosts` are known to do), with offsets as literals. It uses none of this crate's wire structures, on purpose.
//!
//! A [`Host`] is a [`Machine`](crate::hyperv::machine::Machine): the guest's CPUID, registers and hypercalls end here. Everything
//! that the host does happens inside these accesses, while the guest waits on its [`FakePlatform`], or in [`Host::run`]: a test
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
//! // ... detect the hypervisor on `host`, connect, `host.drive(&bus)`, open `channel`, send ...
//! host.run();
//! host.assert_no_violations();
//! platform.assert_no_faults();
//! # let _ = channel;
//! ```
#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        clippy::disallowed_macros,
        reason = "runs on a development machine"
    )
)]

mod bytes;
mod channel;
mod config;
mod device;
pub mod dynamic_memory;
mod guest;
mod hypercall;
mod knobs;
mod observe;
mod offers;
mod processor;
mod ring;
mod run;
mod scramble;
mod server;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::knobs::{ReplyRule, StepRule};
use self::processor::Processor;
use self::server::Server;
use super::FakePlatform;
use crate::platform::ProcessorIndex;

pub use self::channel::HostChannel;
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
    fn new(platform: &'static FakePlatform, config: Config) -> Self {
        let processors: Vec<Processor> = config.vp_indices.iter().map(|index| Processor::new(*index)).collect();
        Self {
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
        }
    }

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
        platform.set_processor_count(bytes::len32(config.vp_indices.len()));
        let host: &'static Self = Box::leak(Box::new(Self {
            platform,
            state: Mutex::new(State::new(platform, config)),
            interrupt_handler: Mutex::new(None),
        }));
        locked(&HOSTS).push(host);
        platform.attach_host(host);
        host
    }

    /// Begins from nothing with another configuration, as if it were just made; only the interrupt handler stays. For programs
    /// that run very many tests, which would otherwise fill the memory with hosts.
    pub fn start_over(&self, config: Config) {
        self.platform.set_processor_count(bytes::len32(config.vp_indices.len()));
        let before = core::mem::replace(&mut *self.lock(), State::new(self.platform, config));
        // Its devices are dropped without the lock.
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
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
