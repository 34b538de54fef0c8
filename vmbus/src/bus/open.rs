//! Opening a channel: [`OpenParameters`] and what [`Bus::open`](super::Bus::open) does.

use alloc::boxed::Box;
use core::sync::atomic::Ordering;

use super::Bus;
use super::channel::{ChannelCore, ChannelSink, Parts};
use super::error::Error;
use super::gpadl::NotCreated;
use super::inner::{NotGranted, Phase};
use super::offer::Offer;
use super::owner::Channel;
use super::replies::Key;
use super::rings::RingPages;
use crate::fallible::{Shared, try_box, try_vec_zeroed};
use crate::platform::ProcessorIndex;
use crate::protocol::channel::OpenChannel;
use crate::protocol::offer::USER_DEFINED_LEN;
use crate::protocol::{ChannelId, ChannelMessage, OpenId};
use crate::ring::{Consumer, Producer};
use crate::{Deadline, Instant};

/// How a channel is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenParameters {
    /// Data pages of the ring that sends; its control page comes on top.
    pub outgoing_pages: u32,
    /// Data pages of the ring that receives; its control page comes on top.
    pub incoming_pages: u32,
    /// The largest packet that is received with [`Consumer::next`], in bytes with its descriptor: the size of its
    /// scratch area. 0 if packets are only ever received into the caller's memory.
    pub max_packet_bytes: u32,
    /// The processor to which the channel's interrupts go, and on which its callbacks run.
    pub target: ProcessorIndex,
    /// Bytes for the other end; their meaning is the device's.
    pub user_data: [u8; USER_DEFINED_LEN],
}

impl Default for OpenParameters {
    /// 16 KiB in each direction, on the processor that booted.
    fn default() -> Self {
        Self {
            outgoing_pages: 4,
            incoming_pages: 4,
            max_packet_bytes: 4096,
            target: ProcessorIndex(0),
            user_data: [0; USER_DEFINED_LEN],
        }
    }
}

impl Bus {
    pub(super) fn open_channel(
        &self,
        channel: ChannelId,
        parameters: &OpenParameters,
        sink: Box<dyn ChannelSink>,
        deadline: Deadline,
    ) -> Result<Channel, Error> {
        let bus = &*self.0;
        let until = deadline.resolve(bus.now());
        if bus.phase() != Phase::Connected {
            return Err(Error::Disconnected);
        }
        let vp = bus
            .online_vp(parameters.target)
            .ok_or_else(|| bus.no_such_processor(parameters.target))?;
        // Nobody may have looked since the host was too busy to be told that it is closed.
        bus.pay_debts();
        let (place, offer) = bus.table.claim(channel)?;
        let core = self
            .make_core(place, &offer, parameters, sink, until)
            .inspect_err(|_| {
                bus.table.closed(place);
                bus.flush_releases();
            })?;
        // From here on the core undoes everything when it is closed.
        let channel_handle = Channel::new(core.core);
        let request = OpenChannel::new(
            channel,
            channel_handle.open_id(),
            core.ring_gpadl,
            core.downstream_offset,
            vp,
            parameters.user_data,
        );
        let key = Key::Open(channel, channel_handle.open_id());
        let remaining = until.map_or(Deadline::Never, Deadline::At);
        if !bus.stays_online(parameters.target) {
            channel_handle.abandon(true, remaining);
            return Err(bus.no_such_processor(parameters.target));
        }
        channel_handle.asking();
        match bus.request(&offer, place, key, &request.encode(), remaining) {
            Ok(()) => {
                channel_handle.opened();
                Ok(channel_handle)
            }
            Err(NotGranted { error, is_asked }) => {
                // A host that refused, or that the request never reached, has nothing to close, but it still has the rings'
                // GPADL, and time to give it up.
                let is_closed = !is_asked || matches!(error, Error::Refused { .. });
                channel_handle.abandon(is_closed, remaining);
                Err(error)
            }
        }
    }

    /// Makes the rings, shares them, and puts the channel where its signals find it.
    fn make_core(
        &self,
        place: usize,
        offer: &Offer,
        parameters: &OpenParameters,
        sink: Box<dyn ChannelSink>,
        until: Option<Instant>,
    ) -> Result<Made, Error> {
        let bus = &*self.0;
        let rings = RingPages::allocate(bus.platform, parameters.outgoing_pages, parameters.incoming_pages)?;
        // Both ends of the memory are made before anybody is told of it: its control pages are zero.
        let scratch_words = usize::try_from(parameters.max_packet_bytes.div_ceil(8)).unwrap_or(usize::MAX);
        let outgoing = Producer::create(rings.first()?);
        let incoming = Consumer::create(rings.second()?, try_vec_zeroed(scratch_words)?);
        let downstream_offset = u32::try_from(rings.second_ring_page()).unwrap_or(u32::MAX);
        let rings = try_box(rings)?;
        let ring_gpadl = match bus.create_gpadl(offer, place, &*rings, until) {
            Ok(id) => id,
            Err(NotCreated { error, maybe_held }) => {
                if let Some(id) = maybe_held {
                    bus.withdraw_memory(offer, place, id, rings);
                }
                return Err(error);
            }
        };
        // Relaxed: a number by itself.
        let open_id = OpenId(bus.next_open_id.fetch_add(1, Ordering::Relaxed));
        let parts = Parts {
            bus: self.0.clone(),
            offer: *offer,
            place,
            open_id,
            target: parameters.target,
            outgoing,
            incoming,
            sink,
        };
        let core = match Shared::try_new(ChannelCore::new(parts)) {
            Ok(core) => core,
            Err(error) => {
                bus.withdraw_memory(offer, place, ring_gpadl, rings);
                return Err(error.into());
            }
        };
        core.lend_rings(ring_gpadl, rings);
        bus.table.set_open(place, core.clone());
        Ok(Made {
            core,
            ring_gpadl,
            downstream_offset,
        })
    }
}

struct Made {
    core: Shared<ChannelCore>,
    ring_gpadl: crate::protocol::GpadlId,
    downstream_offset: u32,
}
