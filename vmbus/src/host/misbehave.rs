//! What the offering side does against the rules when it is told to: [`Misbehaviour`], for tests of clients and of what stands on
//! them.
//!
//! Neither end's own state is touched: what a client meets is what a host may write into the ring and signal at any time.
//! [`storage`](super::storage) has faults of its own, in what packets say.

use super::Host;
use super::entry::End;
use crate::kmcl::Error;
use crate::protocol::ChannelId;

/// What is done to the client of an open channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehaviour {
    /// A signal without news.
    Signal,
    /// This write index in the ring that the client reads, and a signal.
    WriteIndex(u32),
    /// This read index in the ring that the client writes, and a signal. The client meets it when it needs room; until then it may
    /// take the server for one that is awake and needs no signal.
    ReadIndex(u32),
    /// An in-band packet that says this of itself, in the ring that the client reads, and a signal.
    Packet {
        /// Where the payload starts, in units of 8 bytes.
        data_offset8: u16,
        /// The packet's length, in units of 8 bytes.
        length8: u16,
    },
}

impl Host {
    /// Does something wrong to the client of a channel.
    ///
    /// ```
    /// # use vmbus::{Deadline, host::Misbehaviour, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// both.host().misbehave(channel.id(), Misbehaviour::WriteIndex(7))?;
    /// both.host().process();
    /// assert_eq!(channel.send(b"x"), Err(Error::Gone(Gone::Corrupt)));
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchOffer`], or [`Error::WrongState`] if no client has the channel open.
    pub fn misbehave(&self, channel: ChannelId, how: Misbehaviour) -> Result<(), Error> {
        let entry = self.find(|entry| entry.channel == channel).ok_or(Error::NoSuchOffer)?;
        let rings = entry.rings().ok_or(Error::WrongState)?;
        match how {
            Misbehaviour::Signal => {}
            Misbehaviour::WriteIndex(index) => rings.forge_write_index(index)?,
            Misbehaviour::ReadIndex(index) => rings.forge_read_index(index)?,
            Misbehaviour::Packet { data_offset8, length8 } => rings.forge_packet(data_offset8, length8)?,
        }
        self.signal(&entry, End::Client);
        Ok(())
    }

    /// Takes the marks of a channel's client: as if somebody had come for them and found others at work.
    #[cfg(test)]
    pub(crate) fn forget_signals(&self, channel: ChannelId) {
        let entry = self.find(|entry| entry.channel == channel).unwrap();
        entry.take_mark(End::Client);
    }
}
