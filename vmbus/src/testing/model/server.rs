//! The VMBus server: what the host does with a guest's messages.

mod gpadl;
mod opening;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::bytes::{is_zero, join, low8, put, u8_at, u32_at, u64_at};
use super::config::{Echo, Offer, Personality};
use super::device::Device;
use super::knobs::Reply;
use super::processor::SlotMessage;
use super::ring::Rings;
use super::{Event, State};

use self::gpadl::Gpadl;
pub use self::gpadl::GuestRange;

/// The status that a refusal carries where no better one is known.
const UNSUCCESSFUL: u32 = 0xc000_0001;
/// A contact that was accepted.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) version: u32,
    pub(super) target_vp: u32,
    pub(super) sint: usize,
    pub(super) message_connection: u32,
    pub(super) features: u32,
    /// Where the bits of channels that share an interrupt are, before version 5.0. 0: nowhere.
    pub(super) interrupt_page: u64,
    pub(super) monitor_pages: Vec<u64>,
    pub(super) offers_requested: bool,
}

impl Connection {
    /// The pages that the contact named.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> {
        self.monitor_pages
            .iter()
            .chain([&self.interrupt_page])
            .copied()
            .filter(|page| *page != 0)
    }
}

/// An opening of a channel.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) gpadl: u32,
    pub(super) target_vp: u32,
    pub(super) event_flag: u16,
    pub(super) user_data: [u8; 120],
}

pub(super) struct Channel {
    pub(super) offer: Offer,
    pub(super) connection: u32,
    /// The guest has been told of it.
    pub(super) is_offered: bool,
    pub(super) is_rescinded: bool,
    pub(super) opening: Option<Opening>,
    pub(super) rings: Option<Rings>,
    pub(super) device: Option<Box<dyn Device>>,
    /// The device is running; what it has to be told meanwhile waits here.
    pub(super) is_device_out: bool,
    pub(super) missed: Vec<Event>,
    pub(super) has_failed_open: bool,
    pub(super) counters: super::ChannelCounters,
}

#[derive(Default)]
pub(super) struct Server {
    pub(super) contact: Option<Connection>,
    pub(super) channels: BTreeMap<u32, Channel>,
    pub(super) gpadls: BTreeMap<u32, Gpadl>,
    /// Ids that were released; a second release of one is a mistake.
    pub(super) released: BTreeSet<u32>,
    pub(super) next_channel: u32,
    /// An UNLOAD has come and its answer is not out yet.
    pub(super) is_unloading: bool,
}

/// The name of a channel message, for reports.
pub(super) const fn message_name(kind: u32) -> &'static str {
    match kind {
        1 => "OFFERCHANNEL",
        2 => "RESCIND",
        3 => "REQUESTOFFERS",
        4 => "ALLOFFERS_DELIVERED",
        5 => "OPENCHANNEL",
        6 => "OPENCHANNEL_RESULT",
        7 => "CLOSECHANNEL",
        8 => "GPADL_HEADER",
        9 => "GPADL_BODY",
        10 => "GPADL_CREATED",
        11 => "GPADL_TEARDOWN",
        12 => "GPADL_TORNDOWN",
        13 => "RELID_RELEASED",
        14 => "INITIATE_CONTACT",
        15 => "VERSION_RESPONSE",
        16 => "UNLOAD",
        17 => "UNLOAD_RESPONSE",
        21 => "TL_CONNECT_REQUEST",
        22 => "MODIFYCHANNEL",
        23 => "TL_CONNECT_RESULT",
        24 => "MODIFYCHANNEL_RESPONSE",
        _ => "unknown",
    }
}

impl State {
    /// Takes a message that the guest posted to a connection that exists.
    pub(super) fn serve(&mut self, connection: u32, message: &[u8]) {
        let kind = u32_at(message, 0);
        let name = message_name(kind);
        // The shortest form that the protocol has had.
        let least = match kind {
            3 | 16 => 8,
            5 => 148,
            7 | 13 => 12,
            8 => 28,
            9 | 11 | 22 => 16,
            14 => 40,
            21 => 40,
            _ => {
                self.violation(format!("a message of type {kind} ({name}) is not for a host"));
                return;
            }
        };
        if message.len() < least {
            self.violation(format!(
                "{name} of {} bytes, at least {least} are needed",
                message.len()
            ));
            return;
        }
        if !is_zero(&message[4..8]) {
            self.violation(format!("{name}: the padding of the header is not zero (M13)"));
        }
        self.check_order(connection, kind);
        if self.take_ignore(kind) {
            return;
        }
        match kind {
            14 => self.initiate_contact(connection, message),
            _ if self.server.contact.is_none() => {
                self.violation(format!("{name} before a contact was accepted"));
            }
            3 => self.request_offers(),
            5 => self.open_channel(message),
            7 => self.close_channel(message),
            8 => self.gpadl_header(message),
            9 => self.gpadl_body(message),
            11 => self.gpadl_teardown(message),
            13 => self.release_id(message),
            16 => self.unload(),
            22 => self.modify_channel(message),
            _ => {}
        }
    }

    fn check_order(&mut self, connection: u32, kind: u32) {
        let name = message_name(kind);
        if self.server.is_unloading && kind != 14 {
            self.violation(format!("{name} is posted between UNLOAD and its answer"));
        }
        let Some(contact) = &self.server.contact else { return };
        let expected = contact.message_connection;
        if kind != 14 && connection != expected {
            self.violation(format!(
                "{name} is posted to connection {connection}, the version response named {expected}"
            ));
        }
    }

    /// Sends a channel message to the guest, as the answer to a request of type `request`.
    fn reply(&mut self, request: u32, mut message: Vec<u8>) {
        let rule = self.take_reply_rule(request);
        let status_at = match u32_at(&message, 0) {
            6 | 10 => Some(16),
            24 => Some(12),
            15 => Some(8),
            _ => None,
        };
        let key_at = match u32_at(&message, 0) {
            6 | 10 => Some(12),
            12 | 24 => Some(8),
            _ => None,
        };
        match rule {
            Reply::Normal => self.send_message(message),
            Reply::Silent | Reply::Ignore => {}
            Reply::Twice => {
                self.send_message(message.clone());
                self.send_message(message);
            }
            Reply::Late(delay) => {
                let units = u64::try_from(delay.as_nanos().div_ceil(100)).unwrap_or(u64::MAX / 2);
                let at = self.platform.time().saturating_add(units);
                self.later.push((at, message));
            }
            Reply::Status(status) => {
                match status_at {
                    // A version response only has one byte: supported or not.
                    Some(8) => put(&mut message, 8, &[u8::from(status == 0)]),
                    Some(at) => put(&mut message, at, &status.to_le_bytes()),
                    None => {}
                }
                self.send_message(message);
            }
            Reply::OtherKey => {
                if let Some(at) = key_at {
                    let key = u32_at(&message, at) ^ 0x40;
                    put(&mut message, at, &key.to_le_bytes());
                }
                self.send_message(message);
            }
            Reply::Truncated(len) => {
                message.truncate(len);
                self.send_message(message);
            }
            Reply::Instead(other) => self.send_message(other),
            Reply::After(first) => {
                self.send_message(first);
                self.send_message(message);
            }
        }
    }

    /// Sends a channel message to where the contact wanted them.
    pub(super) fn send_message(&mut self, payload: Vec<u8>) {
        let claimed_len = low8(payload.len() as u64);
        self.send_slot_message(SlotMessage {
            kind: 1,
            payload,
            claimed_len,
        });
    }

    pub(super) fn send_slot_message(&mut self, message: SlotMessage) {
        let (vp, sint) = match (&self.server.contact, self.last_target) {
            (Some(contact), _) => (contact.target_vp, contact.sint),
            (None, Some(target)) => target,
            // Nobody has ever told where messages go.
            (None, None) => return,
        };
        let processor = self.message_processor.or_else(|| self.processor_of_vp(vp));
        if let Some(processor) = processor {
            self.queue_message(processor, sint, message);
        }
    }

    // ----- contact and unload

    fn initiate_contact(&mut self, connection: u32, message: &[u8]) {
        let version = u32_at(message, 8);
        let target_vp = u32_at(message, 12);
        let is_new = version >= 0x0005_0000;
        let sint = if is_new { usize::from(u8_at(message, 16)) } else { 2 };
        if is_new {
            if u8_at(message, 17) != 0 || sint >= 16 || sint == 0 {
                // Another trust level or an impossible SINT: no answer at all.
                self.violation(format!(
                    "contact with SINT {sint} and trust level {}",
                    u8_at(message, 17)
                ));
                return;
            }
            if !is_zero(&message[18..20]) {
                self.violation(String::from(
                    "contact: the padding after the trust level is not zero (M13)",
                ));
            }
            if connection != 4 && self.config.personality == Personality::HyperV {
                self.violation(format!(
                    "contact for version {version:#x} on connection {connection}, not 4"
                ));
            }
        } else if connection != 1 && self.config.personality == Personality::HyperV {
            self.violation(format!(
                "contact for version {version:#x} on connection {connection}, not 1"
            ));
        }
        if self.processor_of_vp(target_vp).is_none() {
            self.violation(format!(
                "contact with virtual processor {target_vp}, which does not exist"
            ));
            return;
        }
        // A new contact begins from nothing, also on a live bus.
        self.reset_server();
        self.last_target = Some((target_vp, sint));
        let monitor_pages: Vec<u64> = [u64_at(message, 24), u64_at(message, 32)].into();
        let has_one = monitor_pages.iter().filter(|page| **page != 0).count() == 1;
        let interrupt_page = if is_new { 0 } else { u64_at(message, 16) };
        for page in monitor_pages.iter().chain([&interrupt_page]).filter(|page| **page != 0) {
            if page % 4096 != 0 || !self.has_guest_page(*page) {
                self.violation(format!("page {page:#x} of the contact is not a page of guest memory"));
            }
        }
        let is_known = matches!(
            version,
            0x0d | 0x1_0001 | 0x2_0004 | 0x3_0000 | 0x4_0000 | 0x4_0001 | 0x5_0000..=0x5_0003 | 0x6_0000
        );
        let is_supported = is_known
            && !has_one
            && version >= self.config.min_version
            && version <= self.config.max_version
            && !self.reply_is_failure(14);
        let asked_features = if version >= 0x6_0000 { u32_at(message, 20) } else { 0 };
        if is_new && version < 0x6_0000 && u32_at(message, 20) != 0 {
            self.violation(format!("contact for version {version:#x} with feature flags"));
        }
        // The client's id (bit 3) stands behind everything else.
        let has_client_id = message.get(40..56).is_some_and(|id| !is_zero(id));
        if has_client_id != (asked_features & 8 != 0) {
            self.violation(format!(
                "contact for version {version:#x} with features {asked_features:#x}, with a client's id: {has_client_id}"
            ));
        }
        let features = asked_features & self.config.features;
        let message_connection = if is_new { self.config.message_connection } else { 1 };
        self.server.contact = is_supported.then_some(Connection {
            version,
            target_vp,
            sint,
            message_connection,
            features,
            interrupt_page,
            monitor_pages,
            offers_requested: false,
        });
        if is_supported && !self.ports.contains(&message_connection) {
            self.ports.push(message_connection);
        }
        let echo = match (self.config.echo, is_supported) {
            (Echo::Absent, _) | (_, false) => 0,
            (Echo::Present, true) if is_new => message_connection,
            (Echo::Present, true) => version,
        };
        let mut answer = join(&[
            &[15, 0, 0, 0, 0, 0, 0, 0],
            &[u8::from(is_supported), 0, 0, 0],
            &echo.to_le_bytes(),
        ]);
        if version >= 0x6_0000 && is_supported {
            answer.extend_from_slice(&(features | self.config.extra_features).to_le_bytes());
        }
        self.reply(14, answer);
    }

    /// Forgets the guest: all GPADLs and openings, and channels that the guest was told are gone.
    pub(super) fn reset_server(&mut self) {
        for id in self.open_channels() {
            self.end_opening(id);
        }
        self.server.gpadls.clear();
        self.server.channels.retain(|_, channel| !channel.is_rescinded);
        for channel in self.server.channels.values_mut() {
            channel.is_offered = false;
            channel.has_failed_open = false;
        }
        self.server.released.clear();
        self.server.is_unloading = false;
        self.server.contact = None;
        self.later.clear();
        self.ports = self.config.contact_connections.clone();
    }

    fn unload(&mut self) {
        let version = self.server.contact.as_ref().map_or(0, |contact| contact.version);
        if version < 0x3_0000 {
            self.violation(format!("UNLOAD on version {version:#x}, which has none"));
        }
        if !self.inbox.is_empty() {
            let count = self.inbox.len();
            self.violation(format!("{count} messages are posted between UNLOAD and its answer"));
            self.inbox.clear();
        }
        let open = self.open_channels();
        if !open.is_empty() && !self.is_crashing {
            self.violation(format!("UNLOAD with channels {open:?} open"));
        }
        if self.reply_is_withheld(16) {
            self.server.is_unloading = true;
            self.reply(16, join(&[&[17, 0, 0, 0, 0, 0, 0, 0]]));
            return;
        }
        self.reset_server();
        self.reply(16, join(&[&[17, 0, 0, 0, 0, 0, 0, 0]]));
    }

    fn open_channels(&self) -> Vec<u32> {
        let channels = self.server.channels.iter();
        channels
            .filter(|(_, channel)| channel.opening.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    // ----- offers

    fn request_offers(&mut self) {
        let Some(contact) = &mut self.server.contact else {
            return;
        };
        if contact.offers_requested {
            self.violation(String::from("a second REQUESTOFFERS"));
            if self.config.personality == Personality::OpenVmm {
                return;
            }
        } else {
            contact.offers_requested = true;
        }
        let ids: Vec<u32> = self.server.channels.keys().copied().collect();
        for id in ids {
            self.send_offer(id);
        }
        self.reply(3, [4, 0, 0, 0, 0, 0, 0, 0].into());
    }

    pub(super) fn send_offer(&mut self, id: u32) {
        let wants_offers = self
            .server
            .contact
            .as_ref()
            .is_some_and(|contact| contact.offers_requested);
        let Some(channel) = self.server.channels.get_mut(&id) else {
            return;
        };
        if !wants_offers || channel.is_rescinded {
            return;
        }
        channel.is_offered = true;
        let message = channel.offer.message(id, channel.connection);
        self.send_message(message);
    }

    /// Takes a channel away from the guest.
    pub(super) fn rescind(&mut self, id: u32) {
        let Some(channel) = self.server.channels.get_mut(&id) else {
            return;
        };
        if channel.is_rescinded {
            return;
        }
        channel.is_rescinded = true;
        let is_offered = channel.is_offered;
        self.end_opening(id);
        if is_offered {
            self.send_message(join(&[&[2, 0, 0, 0, 0, 0, 0, 0], &id.to_le_bytes()]));
        } else {
            self.server.channels.remove(&id);
        }
    }

    fn release_id(&mut self, message: &[u8]) {
        let id = u32_at(message, 8);
        let Some(channel) = self.server.channels.get(&id) else {
            let is_again = self.server.released.contains(&id);
            let how = if is_again {
                "a second time"
            } else {
                "though it was never offered"
            };
            self.violation(format!("channel {id} is released {how}"));
            return;
        };
        if !channel.is_rescinded {
            self.violation(format!("channel {id} is released, but was not rescinded"));
            return;
        }
        self.server.channels.remove(&id);
        self.server.released.insert(id);
        // What the guest has not torn down is gone with the channel.
        self.server.gpadls.retain(|_, gpadl| gpadl.channel != id);
    }

    /// What of the host's claims to memory lies in these pages.
    pub(super) fn claims_on(&self, page_numbers: &[u64]) -> Option<String> {
        let is_in = |gpa: u64| gpa & 1 != 0 && page_numbers.contains(&(gpa / 4096));
        for processor in &self.processors {
            if is_in(processor.message_page) || is_in(processor.event_page) {
                return Some(format!("a SynIC page of virtual processor {}", processor.vp_index));
            }
        }
        if is_in(self.hypercall_page) || is_in(self.reference_tsc) {
            return Some(String::from("the hypercall page or the reference TSC page"));
        }
        if let Some(contact) = &self.server.contact
            && contact.pages().any(|page| is_in(page | 1))
        {
            return Some(String::from("a page of the contact"));
        }
        for (id, gpadl) in &self.server.gpadls {
            // With the rescind, the host is done with a channel's memory.
            if self
                .server
                .channels
                .get(&gpadl.channel)
                .is_some_and(|channel| channel.is_rescinded)
            {
                continue;
            }
            if gpadl.page_numbers().any(|number| page_numbers.contains(&number)) {
                return Some(format!("GPADL {id} of channel {}", gpadl.channel));
            }
        }
        None
    }
}
