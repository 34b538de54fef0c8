//! What goes into the engine and what comes out of it, besides messages.

use core::time::Duration;

use super::super::protocol::{Capabilities, HotAddAlignment, ProtocolVersion};

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The newest version to propose; older ones follow if the host refuses it.
    pub newest_version: ProtocolVersion,
    /// How memory to add should be aligned, or `None` if none can be added.
    pub hot_add_alignment: Option<HotAddAlignment>,
    /// How much one call of [`Engine::poll`](super::Engine::poll) works. A step is a run of pages or 64 pages, whichever is more.
    pub slice_steps: u32,
    /// How often the host is told the figures. It expects each second.
    pub status_period: Duration,
    /// How long the host may take for each answer of the handshake.
    pub answer_timeout: Duration,
    /// How long [`DynamicMemory`](crate::device::dynamic_memory::DynamicMemory) lets a request of the host lie before it begins.
    ///
    /// A workaround for QEMU (`hw/hyperv/hv-balloon.c` up to 10.0): when it has sent a request because of its timer or its
    /// monitor, it looks at the ring once more outside of the bracket that its own code asserts, and ends if an answer is
    /// there already. No host is in such a hurry that these milliseconds matter.
    pub request_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            newest_version: ProtocolVersion::V3,
            hot_add_alignment: Some(HotAddAlignment::MIB_128),
            slice_steps: 1024,
            status_period: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(10),
            request_delay: Duration::from_millis(10),
        }
    }
}

/// How far the conversation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no conversation.
    Closed,
    /// A version was proposed.
    Negotiating {
        /// The version.
        version: ProtocolVersion,
    },
    /// The capabilities were reported.
    Capabilities {
        /// The version in use.
        version: ProtocolVersion,
    },
    /// The host may ask.
    Running {
        /// The version in use.
        version: ProtocolVersion,
    },
    /// The handshake failed. [`Engine::start`](super::Engine::start) on a fresh channel tries again.
    Faulted(Fault),
}

/// Why the handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The host refused every version.
    #[error("the host refused dynamic memory {newest} and everything older")]
    VersionsRefused {
        /// The newest that was proposed.
        newest: ProtocolVersion,
    },
    /// The host refused what we can do.
    #[error("the host refused the capabilities {capabilities:?}, its answer was {answer:#x}")]
    CapabilitiesRefused {
        /// What was reported.
        capabilities: Capabilities,
        /// The raw answer.
        answer: u64,
    },
    /// The host did not answer the proposed version.
    #[error("the host did not answer to version {version} within {} ms", timeout.as_millis())]
    NoAnswerToVersion {
        /// The version that was proposed last.
        version: ProtocolVersion,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The host did not answer the capabilities.
    #[error("the host did not answer to the capabilities within {} ms", timeout.as_millis())]
    NoAnswerToCapabilities {
        /// How long it was waited for.
        timeout: Duration,
    },
}

/// Why a message could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Not now: there is no room. The message is kept, [`Engine::poll`](super::Engine::poll) returns [`Progress::Blocked`].
    #[error("there is no room for the message at the moment")]
    Full,
    /// Never: the channel is closed or gone. As if [`Engine::on_closed`](super::Engine::on_closed) were called.
    #[error("the channel is gone")]
    Gone,
}

/// Where messages to the host go. Any `FnMut(&[u8]) -> Result<(), SendError>` is one.
pub trait Outbox {
    /// Sends `message` as one in-band packet without completion; at most one page long.
    ///
    /// # Errors
    ///
    /// [`SendError`]; nothing was sent then.
    fn send(&mut self, message: &[u8]) -> Result<(), SendError>;
}

impl<F: FnMut(&[u8]) -> Result<(), SendError>> Outbox for F {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        self(message)
    }
}

/// Where packets from the host come from: the channel, or a line of packets that its callback has taken.
pub trait Inbox {
    /// Returns the payload of the next packet, the same one until [`Inbox::pop`]; `None` if there is none now.
    fn front(&mut self) -> Option<&[u8]>;

    /// Lets go of the packet that [`Inbox::front`] has returned.
    fn pop(&mut self);
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a packet that met a busy engine has to be delivered again"]
pub enum Delivery {
    /// It was taken (or refused and counted); poll next.
    Taken,
    /// It was not looked at further, because the request before it is not done. Poll until that is no longer
    /// [`Progress::More`], then deliver it again.
    Busy,
}

/// What there is to do after a call of [`Engine::poll`](super::Engine::poll).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing until a packet comes or [`Engine::next_wakeup`](super::Engine::next_wakeup).
    Idle,
    /// There is more to do at once: poll again when others have had their turn.
    More,
    /// A message does not fit: poll again when the host has made room (it signals then), at the latest at
    /// [`Engine::next_wakeup`](super::Engine::next_wakeup).
    Blocked,
}

/// What has happened since the engine was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Balloon requests answered.
    pub balloon_requests: u64,
    /// Of these, answered with fewer pages than asked for.
    pub balloon_requests_cut: u64,
    /// Unballoon messages done.
    pub unballoon_requests: u64,
    /// Hot add requests answered.
    pub hot_add_requests: u64,
    /// Pages that the host has taken.
    pub ballooned_pages: u64,
    /// Pages that the host has given back.
    pub unballooned_pages: u64,
    /// Pages added.
    pub hot_added_pages: u64,
    /// Status reports sent.
    pub status_reports: u64,
    /// Status reports for which there was no room.
    pub status_reports_left_out: u64,
    /// Packets that are no message.
    pub malformed: u64,
    /// Messages of types that we do not know.
    pub unknown: u64,
    /// Messages that nobody waited for.
    pub unexpected: u64,
    /// Pages that the host wanted to give back and does not have.
    pub unknown_pages: u64,
    /// Unballoon messages that named more pages than the host has and were refused as a whole.
    pub refused_unballoons: u64,
    /// Hot add requests refused because their ranges make no sense.
    pub refused_hot_adds: u64,
    /// Times when there was no memory to keep books, so that no more pages were taken.
    pub bookkeeping_failures: u64,
    /// Times when the operating system's pool broke its contract.
    pub pool_faults: u64,
}
