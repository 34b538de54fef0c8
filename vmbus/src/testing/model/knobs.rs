//! How the host misbehaves when told to: [`Reply`], [`When`], and what counts as a step of the guest: [`Action`].

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::Host;

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
