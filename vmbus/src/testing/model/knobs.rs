//! How the host misbehaves when told to: [`Reply`], [`When`], and what counts as a step of the guest: [`Action`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Config, Host};

/// What the guest did: one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Posted a message (one attempt of it).
    Post {
        /// The connection.
        connection: u32,
        /// The type of the channel message.
        message_type: u32,
    },
    /// Signalled an event.
    Signal {
        /// The connection.
        connection: u32,
    },
    /// Wrote a register, except "end of message".
    WriteRegister {
        /// The register.
        register: u32,
        /// The value.
        value: u64,
    },
    /// Wrote "end of message".
    EndOfMessage,
}

/// On which side of a step something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the host sees the step.
    Before,
    /// After the host has done what the step asks for.
    After,
}

/// How a request is answered. Set with `Host::set_reply`, by the type of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// As it should be.
    Normal,
    /// Done, but never answered.
    Silent,
    /// Neither done nor answered.
    Ignore,
    /// Answered twice.
    Twice,
    /// Answered after a time (and done only then, as far as memory is concerned).
    Late(Duration),
    /// Answered with this status; other than 0, it is not done.
    Status(u32),
    /// Answered with another opening's, GPADL's or channel's number.
    OtherKey,
    /// The answer is cut to so many bytes.
    Truncated(usize),
    /// Another message comes instead.
    Instead(Vec<u8>),
    /// Another message comes first.
    After(Vec<u8>),
}

pub(super) struct ReplyRule {
    pub(super) request: u32,
    pub(super) reply: Reply,
    /// How often it still applies; `None`: always.
    pub(super) times: Option<u32>,
}

pub(super) type StepWork = Box<dyn FnOnce(&Host, Action) + Send>;

pub(super) struct StepRule {
    pub(super) step: usize,
    pub(super) when: When,
    pub(super) work: StepWork,
}

impl Host {
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
}

impl super::State {
    fn reply_rule(&self, request: u32) -> Option<&ReplyRule> {
        self.reply_rules.iter().find(|rule| rule.request == request)
    }

    pub(super) fn take_reply_rule(&mut self, request: u32) -> Reply {
        let Some(index) = self.reply_rules.iter().position(|rule| rule.request == request) else {
            return Reply::Normal;
        };
        let rule = &mut self.reply_rules[index];
        let reply = rule.reply.clone();
        if let Some(times) = &mut rule.times {
            *times -= 1;
            if *times == 0 {
                self.reply_rules.remove(index);
            }
        }
        reply
    }

    pub(super) fn take_ignore(&mut self, request: u32) -> bool {
        let is_ignored = matches!(self.reply_rule(request), Some(rule) if rule.reply == Reply::Ignore);
        if is_ignored {
            self.take_reply_rule(request);
        }
        is_ignored
    }

    /// Whether the next answer is not sent now.
    pub(super) fn reply_is_withheld(&self, request: u32) -> bool {
        matches!(self.reply_rule(request), Some(rule) if matches!(rule.reply, Reply::Silent | Reply::Late(_)))
    }

    /// Whether the next answer will be a failure.
    pub(super) fn reply_is_failure(&self, request: u32) -> bool {
        matches!(self.reply_rule(request), Some(rule) if matches!(rule.reply, Reply::Status(status) if status != 0))
    }
}
