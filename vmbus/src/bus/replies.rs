//! Requests that wait for the host's answer.
//!
//! A waiter names the whole key of the answer that it waits for; an answer that nobody waits for, or that came already,
//! changes nothing. A rescind answers every waiter of its channel.

use alloc::vec::Vec;

use super::error::Error;
use crate::Platform;
use crate::fallible::{OutOfMemory, try_vec_of};
use crate::protocol::contact::VersionResponse;
use crate::protocol::{ChannelId, GpadlId, OpenId};
use crate::sync::Lock;

/// What an answer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Contact,
    Unload,
    Open(ChannelId, OpenId),
    GpadlCreated(ChannelId, GpadlId),
    /// The answer names no channel; the waiter does, for the sake of rescinds.
    GpadlTorndown(GpadlId),
    Modify(ChannelId),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// The host's status: 0 is success.
    Status(u32),
    Version(VersionResponse),
    Rescinded,
    Disconnected,
}

#[derive(Debug)]
struct Waiter {
    key: Key,
    channel: Option<ChannelId>,
    answer: Option<Answer>,
}

/// The waiters: a table of fixed size.
#[derive(Debug)]
pub(super) struct Replies {
    waiters: Lock<Vec<Option<Waiter>>>,
    platform: ShownPlatform,
}

#[derive(Clone, Copy)]
struct ShownPlatform(&'static dyn Platform);

impl core::fmt::Debug for ShownPlatform {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str("Platform")
    }
}

impl Replies {
    pub(super) fn new(platform: &'static dyn Platform, count: u16) -> Result<Self, OutOfMemory> {
        Ok(Self {
            waiters: Lock::new(try_vec_of(usize::from(count.max(1)).saturating_add(1), |_| None)?),
            platform: ShownPlatform(platform),
        })
    }

    /// Begins to wait for `key`, an answer about `channel`. Done before the request is posted: the answer may be fast.
    pub(super) fn expect(&self, key: Key, channel: Option<ChannelId>) -> Result<Ticket<'_>, Error> {
        let mut waiters = self.waiters.lock(self.platform.0);
        if waiters.iter().flatten().any(|waiter| waiter.key == key) {
            return Err(Error::TooManyRequests);
        }
        // The last place is for the end of the connection.
        let places = waiters.len().saturating_sub(usize::from(key != Key::Unload));
        let (index, free) = waiters
            .iter_mut()
            .take(places)
            .enumerate()
            .find(|(_, waiter)| waiter.is_none())
            .ok_or(Error::TooManyRequests)?;
        *free = Some(Waiter {
            key,
            channel,
            answer: None,
        });
        Ok(Ticket { replies: self, index })
    }

    /// Hands an answer to its waiter. Returns false if nobody waits for it, or it came already.
    pub(super) fn answer(&self, key: Key, answer: Answer) -> bool {
        let mut waiters = self.waiters.lock(self.platform.0);
        match waiters.iter_mut().flatten().find(|waiter| waiter.key == key) {
            Some(waiter) if waiter.answer.is_none() => {
                waiter.answer = Some(answer);
                true
            }
            _ => false,
        }
    }

    /// Ends all waits for answers about `channel`.
    pub(super) fn rescind(&self, channel: ChannelId) {
        self.end(Answer::Rescinded, |waiter| waiter.channel == Some(channel));
    }

    /// Ends all waits but the one for the end of the connection.
    pub(super) fn disconnect(&self) {
        self.end(Answer::Disconnected, |waiter| waiter.key != Key::Unload);
    }

    #[cfg(test)]
    pub(super) fn with_lock_for_test<T>(&self, work: impl FnOnce() -> T) -> T {
        let _waiters = self.waiters.lock(self.platform.0);
        work()
    }

    fn end(&self, answer: Answer, which: impl Fn(&Waiter) -> bool) {
        for waiter in self.waiters.lock(self.platform.0).iter_mut().flatten() {
            if waiter.answer.is_none() && which(waiter) {
                waiter.answer = Some(answer);
            }
        }
    }
}

/// A place among the waiters, free again when dropped.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    replies: &'a Replies,
    index: usize,
}

impl Ticket<'_> {
    pub(super) fn answer(&self) -> Option<Answer> {
        let waiters = self.replies.waiters.lock(self.replies.platform.0);
        waiters.get(self.index)?.as_ref()?.answer
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answer().is_some()
    }

    /// Returns why the wait is hopeless, if it is.
    pub(super) fn failure(&self) -> Option<Error> {
        match self.answer()? {
            Answer::Rescinded => Some(self.channel().map_or(Error::Disconnected, Error::Rescinded)),
            Answer::Disconnected => Some(Error::Disconnected),
            Answer::Status(_) | Answer::Version(_) => None,
        }
    }

    /// Returns the outcome of a request that is answered with a status; `None` if it is not answered.
    pub(super) fn outcome(&self) -> Option<Result<(), Error>> {
        match self.answer()? {
            Answer::Status(0) | Answer::Version(_) => Some(Ok(())),
            Answer::Status(status) => Some(Err(Error::Refused { status })),
            Answer::Rescinded | Answer::Disconnected => self.failure().map(Err),
        }
    }

    fn channel(&self) -> Option<ChannelId> {
        let waiters = self.replies.waiters.lock(self.replies.platform.0);
        waiters.get(self.index)?.as_ref()?.channel
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut waiters = self.replies.waiters.lock(self.replies.platform.0);
        if let Some(waiter) = waiters.get_mut(self.index) {
            *waiter = None;
        }
    }
}
