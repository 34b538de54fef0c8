//! Messages that come: taken one at a time, in order, and turned into what they mean.
//!
//! Everything here happens without allocation and without waiting, under the lock of messages; what is worth a line in
//! the log, and memory that became free, is handed out and dealt with after the lock.

use core::sync::atomic::Ordering;

use super::counters::Suppressed;
use super::gpadls::TornDown;
use super::inner::BusInner;
use super::offer::Offer;
use super::parked::Parked;
use super::processor::SINT;
use super::replies::{Answer, Key};
use super::table::{Admission, Withdrawal};
use crate::hyperv;
use crate::platform::ProcessorIndex;
use crate::protocol::channel::{ModifyChannelResponse, OpenChannelResult};
use crate::protocol::contact::{UnloadResponse, VersionResponse};
use crate::protocol::gpadl::{GpadlCreated, GpadlTorndown};
use crate::protocol::message::Sender;
use crate::protocol::offer::{AllOffersDelivered, OfferChannel, RescindChannelOffer};
use crate::protocol::{ChannelId, ChannelMessage, MessageType, ParseError};

/// How many messages are taken in one go.
const MESSAGES_AT_ONCE: usize = 32;

/// What is left to do after a message, without the lock.
pub(super) enum Note {
    Nothing,
    Shown(Offer),
    Held(Offer),
    Refused(Offer, Admission),
    Withdrawn(ChannelId),
    Freed(Parked),
    Stray(MessageType),
    Unknown(MessageType, usize),
    Bad(ParseError),
    OtherPort(u32),
}

impl BusInner {
    /// Takes the messages that lie in the current processor's slot, up to a bound. Returns how many.
    pub(super) fn pump(&self) -> usize {
        let count = (0..MESSAGES_AT_ONCE).take_while(|_| self.take_message()).count();
        self.pay_debts();
        self.flush_releases();
        self.tell_offer_events();
        count
    }

    /// Takes the message that lies in the current processor's slot, if there is one.
    fn take_message(&self) -> bool {
        let note = {
            let _order = self.messages.lock(self.platform);
            let current = self.platform.current_processor();
            let taken = self.processor(current).and_then(|processor| {
                let synic = processor.synic.read();
                synic.as_ref().and_then(|synic| synic.take_message(SINT))
            });
            match taken {
                Some(message) => self.accept(&message),
                None => return false,
            }
        };
        self.settle(note);
        true
    }

    /// As [`BusInner::pump`], for the slots of all other processors, which may be unable to look themselves.
    pub(super) fn pump_others(&self) {
        for index in 0..self.processors.len() {
            let note = {
                let _order = self.messages.lock(self.platform);
                let current = self.platform.current_processor();
                let Some(processor) = self.processors.get(index) else {
                    break;
                };
                if u32::try_from(index) == Ok(current.0) {
                    continue;
                }
                let synic = processor.synic.read();
                match synic.as_ref().and_then(|synic| synic.take_message_in_emergency(SINT)) {
                    Some(message) => self.accept(&message),
                    None => continue,
                }
            };
            // The hypervisor hears from each processor only about its own queue, and that one finds its slot empty now.
            if let Some(processor) = self.processors.get(index) {
                processor.owes_end_of_message.store(true, Ordering::Release);
            }
            self.mark(ProcessorIndex(u32::try_from(index).unwrap_or(u32::MAX)));
            self.settle(note);
        }
    }

    fn accept(&self, message: &hyperv::Message) -> Note {
        if message.message_type() == hyperv::MessageType::CHANNEL {
            self.dispatch(message.payload())
        } else {
            self.counters.unknown_messages.add_one();
            Note::OtherPort(message.message_type().0)
        }
    }

    /// Gives a message the effect that it has from the host's slot.
    #[cfg(test)]
    pub(super) fn accept_for_test(&self, message: &[u8]) {
        let note = {
            let _order = self.messages.lock(self.platform);
            self.dispatch(message)
        };
        self.settle(note);
    }

    fn dispatch(&self, bytes: &[u8]) -> Note {
        self.counters.messages.add_one();
        let note = MessageType::of(bytes).and_then(|message_type| match message_type {
            MessageType::OFFER_CHANNEL => Ok(self.on_offer(Offer::new(&OfferChannel::decode(bytes)?))),
            MessageType::RESCIND_CHANNEL_OFFER => Ok(self.on_rescind(RescindChannelOffer::decode(bytes)?.channel())),
            MessageType::ALL_OFFERS_DELIVERED => {
                AllOffersDelivered::decode(bytes)?;
                let is_due = self.accepts_offers.load(Ordering::Acquire);
                let is_first = is_due && !self.has_all_offers.swap(true, Ordering::AcqRel);
                Ok(self.note_reply(message_type, is_first))
            }
            MessageType::OPEN_CHANNEL_RESULT => {
                let result = OpenChannelResult::decode(bytes)?;
                let key = Key::Open(result.channel(), result.open_id());
                Ok(self.on_status(message_type, key, result.status()))
            }
            MessageType::GPADL_CREATED => {
                let created = GpadlCreated::decode(bytes)?;
                let key = Key::GpadlCreated(created.channel(), created.gpadl());
                Ok(self.on_status(message_type, key, created.status()))
            }
            MessageType::GPADL_TORNDOWN => {
                let id = GpadlTorndown::decode(bytes)?.gpadl();
                Ok(match self.gpadls.torn_down(id) {
                    TornDown::Stray => self.note_reply(message_type, false),
                    TornDown::Waited => {
                        // Whether somebody still waits or not: the table knows it.
                        self.replies.answer(Key::GpadlTorndown(id), Answer::Status(0));
                        Note::Nothing
                    }
                    TornDown::Parked(memory) => Note::Freed(memory),
                })
            }
            MessageType::MODIFY_CHANNEL_RESPONSE => {
                let modified = ModifyChannelResponse::decode(bytes)?;
                let is_moved = modified.status() == 0;
                self.table.with_channel(modified.channel(), |core| core.moved(is_moved));
                let key = Key::Modify(modified.channel());
                Ok(self.on_status(message_type, key, modified.status()))
            }
            MessageType::VERSION_RESPONSE => {
                let answer = Answer::Version(VersionResponse::decode(bytes)?);
                let is_awaited = self.replies.answer(Key::Contact, answer);
                Ok(self.note_reply(message_type, is_awaited))
            }
            MessageType::UNLOAD_RESPONSE => {
                UnloadResponse::decode(bytes)?;
                let is_awaited = self.replies.answer(Key::Unload, Answer::Status(0));
                Ok(self.note_reply(message_type, is_awaited))
            }
            other => {
                self.counters.unknown_messages.add_one();
                debug_assert!(
                    other.row().is_none_or(|row| row.sender == Sender::Guest),
                    "every message of a host has its line above"
                );
                Ok(Note::Unknown(other, bytes.len()))
            }
        });
        note.unwrap_or_else(|error| {
            self.counters.short_messages.add_one();
            Note::Bad(error)
        })
    }

    fn note_reply(&self, message_type: MessageType, is_awaited: bool) -> Note {
        if is_awaited {
            return Note::Nothing;
        }
        self.counters.stray_replies.add_one();
        Note::Stray(message_type)
    }

    fn on_status(&self, message_type: MessageType, key: Key, status: u32) -> Note {
        let is_awaited = self.replies.answer(key, Answer::Status(status));
        self.note_reply(message_type, is_awaited)
    }

    fn on_offer(&self, offer: Offer) -> Note {
        if !self.accepts_offers.load(Ordering::Acquire) {
            // An earlier owner's, or nobody's.
            self.counters.refused_offers.add_one();
            return Note::Stray(MessageType::OFFER_CHANNEL);
        }
        let (admission, offer) = self.table.admit(offer);
        match admission {
            Admission::Shown => {
                self.counters.offers.add_one();
                self.raise_flag_limit();
                Note::Shown(offer)
            }
            Admission::Held => {
                self.counters.offers.add_one();
                self.raise_flag_limit();
                Note::Held(offer)
            }
            Admission::NoRoom => {
                self.counters.excess_offers.add_one();
                Note::Refused(offer, admission)
            }
            Admission::DuplicateId | Admission::BadId => {
                self.counters.refused_offers.add_one();
                Note::Refused(offer, admission)
            }
        }
    }

    /// Makes all processors look at the event flags of all channels that there are.
    pub(super) fn raise_flag_limit(&self) {
        let limit = self.table.flag_limit();
        for processor in &self.processors {
            if let Some(synic) = processor.synic.read().as_ref() {
                synic.set_flag_limit(limit);
            }
        }
    }

    fn on_rescind(&self, channel: ChannelId) -> Note {
        match self.table.withdraw(channel) {
            Withdrawal::Unknown => {
                self.counters.stray_rescinds.add_one();
                Note::Stray(MessageType::RESCIND_CHANNEL_OFFER)
            }
            Withdrawal::Held => {
                self.counters.rescinds.add_one();
                Note::Withdrawn(channel)
            }
            Withdrawal::Shown(place) => {
                self.counters.rescinds.add_one();
                self.replies.rescind(channel);
                let grace = self.config.rescind_grace;
                let free_at = grace.map(|grace| self.now().saturating_add(grace));
                self.gpadls.channel_withdrawn(channel, free_at);
                self.table.with_open(place, |core| core.rescind());
                Note::Withdrawn(channel)
            }
        }
    }

    /// Does what is left to do after a message.
    fn settle(&self, note: Note) {
        match note {
            Note::Nothing => {}
            Note::Freed(memory) => {
                self.counters.unparked_blocks.add(memory.blocks());
                drop(memory);
            }
            Note::Shown(offer) => self.tell_arrival(format_args!("offered: {offer}")),
            Note::Held(offer) => {
                self.tell_arrival(format_args!(
                    "offered, and held back until the earlier one is gone: {offer}"
                ));
            }
            Note::Withdrawn(channel) => self.tell_arrival(format_args!("the offer of {channel} is withdrawn")),
            Note::Refused(offer, admission) => {
                self.complain(format_args!("refused ({admission:?}): the offer {offer}"));
            }
            Note::Stray(message_type) => self.complain(format_args!("ignored: {message_type} that nobody waits for")),
            Note::Unknown(message_type, len) => self.complain(format_args!("ignored: {message_type} of {len} bytes")),
            Note::Bad(error) => self.complain(format_args!("ignored: {error}")),
            Note::OtherPort(number) => self.complain(format_args!("ignored: a message of type {number:#x}")),
        }
    }

    fn tell_arrival(&self, what: core::fmt::Arguments<'_>) {
        if log::log_enabled!(log::Level::Debug)
            && let Some(suppressed) = self.arrivals.allow(self.now())
        {
            log::debug!("{what}{}", Suppressed(suppressed));
        }
    }

    fn complain(&self, what: core::fmt::Arguments<'_>) {
        if let Some(suppressed) = self.complaints.allow(self.now()) {
            log::warn!("{what}{}", Suppressed(suppressed));
        }
    }

    /// Calls the operating system's hook if offers have come or gone.
    pub(super) fn tell_offer_events(&self) {
        let Some(events) = self.config.offer_events else {
            return;
        };
        let generation = self.table.generation();
        if self.told_generation.swap(generation, Ordering::AcqRel) != generation {
            events.offers_changed();
        }
    }

    /// Returns true if something waits in the slot or in the flags of a processor.
    pub(super) fn has_work(&self, index: ProcessorIndex) -> bool {
        self.processor(index).is_some_and(|processor| {
            processor.with_synic(self.platform, |synic| {
                synic.is_some_and(|synic| synic.has_message(SINT) || synic.has_event_flags(SINT))
            })
        })
    }
}
