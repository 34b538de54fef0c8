//! What a controller consists of, shared between its handle and its channel's callbacks: [`Inner`].

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::fault::Fault;
use super::wire::{Answer, Srb};
use super::{Address, Config, Disk, Outcome, Version};
use crate::Platform;
use crate::fallible::Shared;
use crate::kmcl::IncomingPacket;
use crate::sync::Lock;

/// What the channel knows of its driver, which is this controller.
pub(super) type Context = Shared<Inner>;
pub(super) type Packet = IncomingPacket<Context>;

/// How far a client has come with its initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Begin = 0,
    Version = 1,
    Properties = 2,
    End = 3,
    Ready = 4,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) phase: Phase,
    pub(super) version: Version,
}

impl Session {
    pub(super) const NEW: Self = Self {
        phase: Phase::Begin,
        version: Version::V4_2,
    };

    pub(super) const fn pack(self) -> u32 {
        (self.phase as u32) << 16 | (self.version.major as u32) << 8 | self.version.minor as u32
    }

    pub(super) const fn unpack(packed: u32) -> Self {
        let [minor, major, phase, _] = packed.to_le_bytes();
        Self {
            phase: match phase {
                0 => Phase::Begin,
                1 => Phase::Version,
                2 => Phase::Properties,
                3 => Phase::End,
                _ => Phase::Ready,
            },
            version: Version { major, minor },
        }
    }

    /// Requests are of the longer kind.
    pub(super) fn has_long_requests(&self) -> bool {
        self.version >= Version::V5_1
    }
}

/// What remains to be done for a request that is held.
pub(super) enum Work {
    /// Execute it.
    Execute(Srb),
    /// Send this.
    Send(Answer),
}

pub(super) struct Held {
    pub(super) number: u64,
    pub(super) packet: Packet,
    pub(super) address: Address,
    pub(super) opcode: u8,
    pub(super) work: Work,
}

/// A client's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A packet came without the flag that asks for a completion.
    NoCompletionRequested,
    /// A packet is too short for its operation.
    ShortPacket {
        /// The operation.
        operation: u32,
        /// Bytes that came.
        len: usize,
    },
    /// There is no such operation for clients.
    UnknownOperation(u32),
    /// The operation came at a time when another was due.
    OutOfOrder(u32),
    /// The request block's length is not that of the version.
    SrbLength(u16),
    /// The command's length is 0 or more than 16.
    CdbLength(u8),
    /// The request describes memory in more than one range.
    TooManyRanges(usize),
    /// The memory is shorter than the transfer.
    MemoryTooShort {
        /// Bytes to move.
        transfer: u32,
        /// Bytes described.
        memory: usize,
    },
    /// More is to be moved than the channel's properties allow.
    TransferTooLong(u64),
    /// The memory is not the client's to lend.
    MemoryNotLent,
    /// The request's direction is not that of its command, or is none.
    Direction(u8),
}

pub(super) struct Inner {
    pub(super) platform: &'static dyn Platform,
    pub(super) config: Config,
    /// A [`Session`] as a number, which only the channel's callbacks change.
    session: AtomicU32,
    /// In the order of their addresses.
    pub(super) disks: Lock<Vec<(Address, Disk)>>,
    pub(super) faults: Lock<Vec<Fault>>,
    /// Whether there are any, so that requests need not ask for the lock.
    pub(super) has_faults: AtomicBool,
    pub(super) held: Lock<Vec<Held>>,
    pub(super) holds_all: AtomicBool,
    pub(super) next_number: AtomicU64,
    pub(super) violations: Lock<Vec<Violation>>,
    /// How often each command came.
    pub(super) commands: [AtomicU32; 256],
    pub(super) resets: AtomicU32,
}

/// As many violations are kept, the first ones.
const VIOLATIONS: usize = 32;

impl Inner {
    pub(super) fn new(platform: &'static dyn Platform, config: Config) -> Self {
        Self {
            platform,
            config,
            session: AtomicU32::new(Session::NEW.pack()),
            disks: Lock::new_on(platform, Vec::new()),
            faults: Lock::new_on(platform, Vec::new()),
            has_faults: AtomicBool::new(false),
            held: Lock::new_on(platform, Vec::new()),
            holds_all: AtomicBool::new(false),
            next_number: AtomicU64::new(0),
            violations: Lock::new_on(platform, Vec::new()),
            commands: [const { AtomicU32::new(0) }; 256],
            resets: AtomicU32::new(0),
        }
    }

    pub(super) fn session(&self) -> Session {
        Session::unpack(self.session.load(Ordering::Relaxed))
    }

    pub(super) fn set_session(&self, session: Session) {
        self.session.store(session.pack(), Ordering::Relaxed);
    }

    pub(super) fn disk(&self, address: Address) -> Option<Disk> {
        let disks = self.disks.lock(self.platform);
        let index = disks.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        disks.get(index).map(|(_, disk)| disk.clone())
    }

    /// Notes a mistake of the client's.
    pub(super) fn note(&self, violation: Violation) {
        use crate::fallible::TryPush;
        log::warn!(target: "vmbus::host::storage", "the client is wrong: {violation:?}");
        let mut violations = self.violations.lock(self.platform);
        if violations.len() < VIOLATIONS {
            // Without memory it is only in the log.
            let _ = violations.try_push(violation);
        }
    }

    /// A client has opened the channel.
    pub(super) fn opened(&self) {
        self.set_session(Session::NEW);
    }

    /// The channel ends: requests that are held are not answered any more.
    pub(super) fn let_go(&self) {
        let held = core::mem::take(&mut *self.held.lock(self.platform));
        for held in held {
            held.packet.abandon();
        }
    }
}

impl Held {
    pub(super) fn answer_with(self, inner: &Inner, outcome: Outcome) {
        inner.send(self.packet, outcome);
    }
}
