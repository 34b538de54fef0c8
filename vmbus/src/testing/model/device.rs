//! What is at the host's end of a channel: [`Device`], and the plain [`Echo`].

use super::HostChannel;
use super::ring::RingError;

/// A device of the host. Its calls come one at a time, without any lock held, inside the guest's own accesses or in `Host::run`.
pub trait Device: Send {
    /// The guest has opened the channel.
    fn opened(&mut self, channel: &HostChannel<'_>) {
        let _ = channel;
    }

    /// The guest has signalled: there may be packets, or there is room again.
    fn signalled(&mut self, channel: &HostChannel<'_>);

    /// The guest has closed the channel, or it was rescinded.
    fn closed(&mut self) {}

    /// Time passes. Returns true if something was done.
    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        let _ = channel;
        false
    }

    /// When the device wants to run, in units of 100 ns.
    fn next_event(&self) -> Option<u64> {
        None
    }
}

/// Sends back each payload: as the completion if one is requested, else as an in-band packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Echo {
    fn work(channel: &HostChannel<'_>) -> bool {
        let mut has_worked = false;
        while let Some(packet) = channel.receive() {
            has_worked = true;
            let sent = if packet.flags & 1 != 0 {
                channel.send_completion(packet.transaction, &packet.payload)
            } else if packet.kind == 11 {
                Ok(())
            } else {
                channel.send_in_band(packet.transaction, 0, &packet.payload)
            };
            if sent == Err(RingError::Full) {
                // The echo has no queue: what does not fit is lost, and that is counted.
                channel.count_dropped();
            }
        }
        has_worked
    }
}

impl Device for Echo {
    fn signalled(&mut self, channel: &HostChannel<'_>) {
        Self::work(channel);
    }

    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        Self::work(channel)
    }
}
