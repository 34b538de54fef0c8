//! [`Channel`]: the handle of an open channel's owner.

use core::ops::Deref;

use super::channel::ChannelCore;
use super::error::Error;
use crate::Deadline;
use crate::fallible::Shared;

/// The owner of an open channel. Dropped without [`Channel::close`], it closes as far as that goes without waiting.
#[derive(Debug)]
pub struct Channel {
    core: Shared<ChannelCore>,
}

impl Channel {
    pub(super) const fn new(core: Shared<ChannelCore>) -> Self {
        Self { core }
    }

    /// Closes the channel: no further callback, wait for those that run, tell the other end, take the rings' memory back.
    /// Afterwards it can be opened anew. Context: task.
    ///
    /// # Errors
    ///
    /// [`Error::WouldDeadlock`] from the channel's own callback, with nothing changed; [`Error::NotOpen`] if it is closed
    /// already. Any other error is told after everything was done that could be: the channel is closed; memory that the
    /// other end has not given up in time is kept from use until it has. A host that was too busy to be told is told later, and the
    /// channel is in use until then.
    pub fn close(&self, deadline: Deadline) -> Result<(), Error> {
        self.core.close(deadline)
    }
}

impl Deref for Channel {
    type Target = ChannelCore;
    fn deref(&self) -> &ChannelCore {
        &self.core
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        match self.core.close(Deadline::IMMEDIATE) {
            Ok(()) | Err(Error::NotOpen(_)) => {}
            Err(Error::WouldDeadlock) => {
                self.core.orphan();
            }
            Err(error) => log::debug!("{} was dropped and closed without waiting: {error}", self.core.id()),
        }
    }
}
