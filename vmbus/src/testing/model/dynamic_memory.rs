//! The host's side of dynamic memory: [`DynamicMemory`], steered by a [`Control`].
//!
//! ```text
//! every message: type @0 (2)   size @2 (2)   transaction @4 (4)
//!  1 version request        version @8 (4)   bit 0 of @12: last attempt
//!  2 version response       bit 0 of @8 (8): accepted
//!  3 capabilities           @8 (8): bit 0 balloon, bit 1 hot add, bits 2-5 alignment   minimum @16 (8)   last page @24 (8)
//!  4 capabilities response  bit 0 of @8 (8): accepted
//!  5 status                 available @8   committed @16   page file @24   zero @32 (8 each)   writes @40   difference @44
//!  6 balloon request        pages @8 (4)   zero @12 (4)
//!  7 balloon response       zero @8 (4)   bit 0 of @12 (4): more follow, the rest: ranges   ranges @16 (8 each)
//!  8 unballoon request      bit 0 of @8 (4): more follow   ranges @12 (4)   ranges @16 (8 each)
//!  9 unballoon response     only the header
//! 10 hot add request        range @8 (8)   optionally the region @16 (8)
//! 11 hot add response       pages @8 (4)   result @12 (4): 1 is success
//! 12 information            zero @8 (4)   size @12 (4)   type @16 (4)   length @20 (4)   last page @24 (8)
//! range: first page in bits 0-39, number of pages in bits 40-63
//! ```

mod control;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;
use std::sync::Mutex;

use super::bytes::{is_zero, join, len32, low16, low32, u16_at, u32_at, u64_at};
use super::{Device, HostChannel, Offer, RingError, locked};

/// Pages in the first part of a request, at most, as QEMU does it.
const CHUNK: u64 = 585_728;

/// What the device is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The newest version that is accepted: 0x2_0000 (version 3), 0x1_0000 (2) or 3 (1).
    pub max_version: u32,
    /// Whether the capabilities are accepted.
    pub capabilities: Verdict,
    /// How long the device does nothing after the capabilities, as QEMU does it.
    pub start_delay: Duration,
    /// How many ranges an unballoon request carries at most.
    pub ranges_per_message: usize,
}

/// An answer to the guest's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Accept,
    /// No.
    Refuse,
    /// Silence.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_version: 0x2_0000,
            capabilities: Verdict::Accept,
            start_delay: Duration::from_secs(50),
            ranges_per_message: 200,
        }
    }
}

/// A status report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// When it came, in units of 100 ns.
    pub time: u64,
    /// Free pages.
    pub available: u64,
    /// Pages that the guest has committed.
    pub committed: u64,
}

/// Where the conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The channel is closed.
    Closed,
    /// The guest asks for versions.
    Version,
    /// A version is agreed on; the capabilities are to come.
    Capabilities,
    /// The capabilities were accepted; the device rests.
    Resting,
    /// Ready for the next request.
    Idle,
    /// A balloon request is out.
    Ballooning,
    /// An unballoon request is out.
    Unballooning,
    /// A hot-add request is out.
    HotAdding,
    /// The guest was refused, or broke the protocol.
    Dead,
}

#[derive(Clone, Debug)]
enum Command {
    Balloon(u64),
    Unballoon(Vec<(u64, u64)>),
    UnballoonPages(u64),
    HotAdd {
        range: (u64, u64),
        region: Option<(u64, u64)>,
    },
    Raw(Vec<u8>),
}

#[derive(Debug)]
struct Shared {
    config: Config,
    phase: Phase,
    version: Option<u32>,
    asked_versions: Vec<u32>,
    capabilities: Option<[u64; 3]>,
    rest_until: u64,
    statuses: Vec<Status>,
    /// First page and number of the ranges that the guest gave up.
    ballooned: BTreeMap<u64, u64>,
    wanted: u64,
    got_in_transaction: u64,
    commands: VecDeque<Command>,
    outbox: VecDeque<Vec<u8>>,
    hot_adds: Vec<(u32, u32)>,
    hot_add_asked: u64,
    balloon_responses: u32,
    unballoon_responses: u32,
    transaction: u32,
}

impl Shared {
    fn message(&mut self, kind: u16, body: &[u8]) -> Vec<u8> {
        self.transaction += 1;
        join(&[
            &kind.to_le_bytes(),
            &low16(body.len() as u64 + 8).to_le_bytes(),
            &self.transaction.to_le_bytes(),
            body,
        ])
    }

    fn say(&mut self, kind: u16, body: &[u8]) {
        let message = self.message(kind, body);
        self.outbox.push_back(message);
    }

    fn ballooned_pages(&self) -> u64 {
        self.ballooned.values().sum()
    }

    /// Adds a range that the guest gave up, and tells what is wrong with it.
    fn add_range(&mut self, first: u64, count: u64) -> Result<(), String> {
        if count == 0 {
            return Err(format!("an empty range at page {first:#x}"));
        }
        let before = self.ballooned.range(..first + count).next_back();
        if let Some((other, len)) = before
            && other + len > first
        {
            return Err(format!(
                "pages {first:#x}+{count:#x} are given twice: {other:#x}+{len:#x} are held already"
            ));
        }
        self.ballooned.insert(first, count);
        Ok(())
    }

    /// Takes `count` pages off what is held, from the front.
    fn take_pages(&mut self, mut count: u64) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        while count > 0 {
            let Some((first, len)) = self.ballooned.pop_first() else {
                break;
            };
            let part = len.min(count);
            ranges.push((first, part));
            if part < len {
                self.ballooned.insert(first + part, len - part);
            }
            count -= part;
        }
        ranges
    }

    fn ask_for_balloon(&mut self) {
        let pages = self.wanted.min(CHUNK);
        self.got_in_transaction = 0;
        self.phase = Phase::Ballooning;
        self.say(6, &join(&[&low32(pages).to_le_bytes(), &[0; 4]]));
    }

    fn ask_for_unballoon(&mut self, ranges: &[(u64, u64)]) {
        self.phase = Phase::Unballooning;
        let parts: Vec<&[(u64, u64)]> = ranges.chunks(self.config.ranges_per_message.max(1)).collect();
        let last = parts.len().saturating_sub(1);
        for (index, part) in parts.iter().enumerate() {
            let mut body = join(&[
                &u32::from(index != last).to_le_bytes(),
                &len32(part.len()).to_le_bytes(),
            ]);
            for (first, count) in *part {
                body.extend_from_slice(&(first | count << 40).to_le_bytes());
            }
            self.say(8, &body);
        }
        if parts.is_empty() {
            self.say(8, &[0; 8]);
        }
    }

    fn start(&mut self, command: Command) {
        match command {
            Command::Balloon(pages) => {
                self.wanted = pages;
                self.ask_for_balloon();
            }
            Command::Unballoon(ranges) => self.ask_for_unballoon(&ranges),
            Command::UnballoonPages(pages) => {
                let ranges = self.take_pages(pages);
                self.ask_for_unballoon(&ranges);
            }
            Command::HotAdd { range, region } => {
                self.phase = Phase::HotAdding;
                self.hot_add_asked = range.1;
                let mut body = (range.0 | range.1 << 40).to_le_bytes().to_vec();
                if let Some((first, count)) = region {
                    body.extend_from_slice(&(first | count << 40).to_le_bytes());
                }
                self.say(10, &body);
            }
            Command::Raw(message) => self.outbox.push_back(message),
        }
    }

    fn receive(&mut self, payload: &[u8], now: u64) -> Result<(), String> {
        let (kind, size) = (u16_at(payload, 0), usize::from(u16_at(payload, 2)));
        if payload.len() < 8 || size < 8 || size > payload.len() {
            return Err(format!(
                "a message of type {kind} says {size} bytes in a payload of {}",
                payload.len()
            ));
        }
        let (message, padding) = payload.split_at(size);
        if padding.len() >= 8 || !is_zero(padding) {
            return Err(format!(
                "a message of type {kind} has {} bytes behind its end, or they are not zero",
                padding.len()
            ));
        }
        let expected = match kind {
            1 | 11 => Some(16),
            3 => Some(32),
            5 => Some(48),
            9 => Some(8),
            _ => None,
        };
        if expected.is_some_and(|expected| expected != size) {
            return Err(format!("a message of type {kind} with {size} bytes"));
        }
        match (kind, self.phase) {
            (1, Phase::Version) => self.version_request(message),
            (3, Phase::Capabilities) => self.capabilities_report(message, now),
            (5, Phase::Resting | Phase::Idle | Phase::Ballooning | Phase::Unballooning | Phase::HotAdding) => {
                self.statuses.push(Status {
                    time: now,
                    available: u64_at(message, 8),
                    committed: u64_at(message, 16),
                });
                Ok(())
            }
            (7, Phase::Ballooning) => self.balloon_response(message),
            (9, Phase::Unballooning) => {
                self.unballoon_responses += 1;
                self.phase = Phase::Idle;
                Ok(())
            }
            (11, Phase::HotAdding) => {
                let (pages, result) = (u32_at(message, 8), u32_at(message, 12));
                self.hot_adds.push((pages, result));
                self.phase = Phase::Idle;
                if u64::from(pages) > self.hot_add_asked || result > 1 {
                    return Err(format!(
                        "a hot add of {} pages gave {pages}, result {result}",
                        self.hot_add_asked
                    ));
                }
                Ok(())
            }
            (kind, phase) => Err(format!("a message of type {kind} while {phase:?}")),
        }
    }

    fn version_request(&mut self, message: &[u8]) -> Result<(), String> {
        let (version, last) = (u32_at(message, 8), u32_at(message, 12));
        if last > 1 {
            return Err(format!(
                "the reserved bits of a version request are not zero ({last:#x})"
            ));
        }
        if self.asked_versions.last().is_some_and(|before| *before <= version) {
            return Err(format!(
                "version {version:#x} is asked for after {:#x?}",
                self.asked_versions
            ));
        }
        self.asked_versions.push(version);
        let is_accepted = matches!(version, 3 | 0x1_0000 | 0x2_0000) && version <= self.config.max_version;
        self.say(2, &u64::from(is_accepted).to_le_bytes());
        if is_accepted {
            self.version = Some(version);
            self.phase = Phase::Capabilities;
        } else if last == 1 {
            self.phase = Phase::Dead;
        }
        Ok(())
    }

    fn capabilities_report(&mut self, message: &[u8], now: u64) -> Result<(), String> {
        let report = [8, 16, 24].map(|offset| u64_at(message, offset));
        self.capabilities = Some(report);
        if report[0] >> 6 != 0 {
            return Err(format!("reserved capabilities {:#x}", report[0]));
        }
        match self.config.capabilities {
            Verdict::None => {}
            Verdict::Refuse => {
                self.say(4, &[0; 8]);
                self.phase = Phase::Dead;
            }
            Verdict::Accept => {
                self.say(4, &1_u64.to_le_bytes());
                self.phase = Phase::Resting;
                let delay = self.config.start_delay.as_nanos() / 100;
                self.rest_until = now + u64::try_from(delay).unwrap_or(u64::MAX / 2);
            }
        }
        Ok(())
    }

    fn balloon_response(&mut self, message: &[u8]) -> Result<(), String> {
        let head = u32_at(message, 12);
        let (has_more, count) = (head & 1 != 0, super::bytes::to_usize(u64::from(head >> 1)));
        self.balloon_responses += 1;
        if message.len() != 16 + count * 8 || !is_zero(&message[8..12]) {
            return Err(format!(
                "a balloon response of {} bytes with {count} ranges",
                message.len()
            ));
        }
        for index in 0..count {
            let range = u64_at(message, 16 + index * 8);
            let (first, pages) = (range & 0xff_ffff_ffff, range >> 40);
            self.add_range(first, pages)?;
            self.got_in_transaction += pages;
            self.wanted = self.wanted.saturating_sub(pages);
        }
        if has_more {
            return Ok(());
        }
        if self.got_in_transaction == 0 || self.wanted == 0 {
            // Nothing at all means: at the minimum already.
            self.phase = Phase::Idle;
        } else {
            self.ask_for_balloon();
        }
        Ok(())
    }
}

/// The device. Offer it with [`Host::offer_with`](super::Host::offer_with).
#[derive(Debug)]
pub struct DynamicMemory {
    shared: Arc<Mutex<Shared>>,
}

/// Steers a [`DynamicMemory`] and tells what the guest said. Orders are carried out, one after the other, when the device
/// is idle: call [`Host::run`](super::Host::run), or let the guest wait.
#[derive(Clone, Debug)]
pub struct Control {
    shared: Arc<Mutex<Shared>>,
}

impl DynamicMemory {
    /// Makes a device and what steers it.
    #[must_use]
    pub fn new(config: Config) -> (Self, Control) {
        let shared = Arc::new(Mutex::new(Shared {
            config,
            phase: Phase::Closed,
            version: None,
            asked_versions: Vec::new(),
            capabilities: None,
            rest_until: 0,
            statuses: Vec::new(),
            ballooned: BTreeMap::new(),
            wanted: 0,
            got_in_transaction: 0,
            commands: VecDeque::new(),
            outbox: VecDeque::new(),
            hot_adds: Vec::new(),
            hot_add_asked: 0,
            balloon_responses: 0,
            unballoon_responses: 0,
            transaction: 0,
        }));
        let control = Control {
            shared: Arc::clone(&shared),
        };
        (Self { shared }, control)
    }

    /// The offer of such a device, as QEMU makes it.
    #[must_use]
    pub fn offer() -> Offer {
        Offer::new(
            "525074dc-8985-46e2-8057-a307dc18a502",
            "1eccfd72-4b41-45ef-b73a-4a6e44c12924",
        )
    }

    fn work(&self, channel: &HostChannel<'_>) -> bool {
        let mut has_worked = false;
        loop {
            // The lock is never held while the guest may run, which a send can make it do.
            let next = locked(&self.shared).outbox.front().cloned();
            if let Some(message) = next {
                match channel.send_in_band(0, 0, &message) {
                    Ok(()) => {
                        locked(&self.shared).outbox.pop_front();
                        has_worked = true;
                        continue;
                    }
                    Err(RingError::Full) => return has_worked,
                    Err(_) => {
                        locked(&self.shared).outbox.clear();
                        return has_worked;
                    }
                }
            }
            if let Some(packet) = channel.receive() {
                has_worked = true;
                let result = if packet.kind == 6 {
                    locked(&self.shared).receive(&packet.payload, channel.host().platform().time())
                } else {
                    Err(format!("a packet of type {}", packet.kind))
                };
                if let Err(problem) = result {
                    channel.violation(format!("dynamic memory: {problem}"));
                }
                continue;
            }
            let mut shared = locked(&self.shared);
            if shared.phase == Phase::Resting && channel.host().platform().time() >= shared.rest_until {
                shared.phase = Phase::Idle;
                has_worked = true;
            }
            let is_raw = matches!(shared.commands.front(), Some(Command::Raw(_)));
            if shared.phase != Phase::Idle && !is_raw {
                return has_worked;
            }
            let Some(command) = shared.commands.pop_front() else {
                return has_worked;
            };
            shared.start(command);
            has_worked = true;
        }
    }
}

impl Device for DynamicMemory {
    fn opened(&mut self, channel: &HostChannel<'_>) {
        {
            let mut shared = locked(&self.shared);
            shared.phase = Phase::Version;
            shared.version = None;
            shared.asked_versions.clear();
            shared.capabilities = None;
        }
        self.work(channel);
    }

    fn signalled(&mut self, channel: &HostChannel<'_>) {
        self.work(channel);
    }

    fn closed(&mut self) {
        let mut shared = locked(&self.shared);
        shared.phase = Phase::Closed;
        shared.outbox.clear();
        // Closing resets the device: what was ballooned is forgotten.
        shared.ballooned.clear();
    }

    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        self.work(channel)
    }

    fn next_event(&self) -> Option<u64> {
        let shared = locked(&self.shared);
        (shared.phase == Phase::Resting).then_some(shared.rest_until)
    }
}
