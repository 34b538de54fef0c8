//! A server in this kernel instead of the host, with the same channel code.

use super::*;
use crate::protocol::channel::{CloseChannel, OpenChannel, OpenChannelResult, RelIdReleased};
use crate::protocol::gpadl::{GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown};
use crate::protocol::offer::{OfferChannel, RescindChannelOffer};
use crate::protocol::{ChannelMessage, GpadlId, Guid, MessageType};
use crate::ring::{Consumer, Header, Producer};

const LOCAL: ChannelId = ChannelId(LOCAL_CHANNEL_IDS);

/// A server with one channel, which sends back the payload of each packet.
#[derive(Clone, Default)]
struct Server {
    bus: Arc<Mutex<Option<Bus>>>,
    lent: Arc<Mutex<Option<(GpadlId, RingPages)>>>,
    ends: Arc<Mutex<Option<Ends>>>,
    seen: Arc<Mutex<Vec<u32>>>,
}

struct Ends {
    from_guest: Consumer<ChannelRing, Vec<u64>>,
    to_guest: Producer<ChannelRing>,
}

impl Server {
    fn send(&self, message: &impl ChannelMessage) {
        let bus = self.bus.lock().unwrap().clone().unwrap();
        bus.deliver_local_message(message.encode().as_slice());
    }

    fn seen(&self) -> Vec<u32> {
        self.seen.lock().unwrap().clone()
    }
}

impl LocalPort for Server {
    fn post(&self, message: &[u8]) -> Result<(), Error> {
        let kind = MessageType::of(message).map_err(|_| Error::LocalRefused)?;
        self.seen.lock().unwrap().push(kind.0);
        match kind {
            MessageType::GPADL_HEADER => {
                let header = GpadlHeader::decode(message).map_err(|_| Error::LocalRefused)?;
                self.send(&GpadlCreated::new(header.channel(), header.gpadl(), 0));
            }
            MessageType::OPEN_CHANNEL => {
                let open = OpenChannel::decode(message).map_err(|_| Error::LocalRefused)?;
                let lent = self.lent.lock().unwrap().clone();
                let (id, pages) = lent.unwrap();
                assert_eq!(
                    (open.ring_gpadl(), open.downstream_offset_pages() as usize),
                    (id, pages.second_ring_page())
                );
                *self.ends.lock().unwrap() = Some(Ends {
                    from_guest: Consumer::attach(pages.first()?, vec![0; 512])?,
                    to_guest: Producer::attach(pages.second()?)?,
                });
                self.send(&OpenChannelResult::new(open.channel(), open.open_id(), 0));
            }
            MessageType::CLOSE_CHANNEL => {
                CloseChannel::decode(message).map_err(|_| Error::LocalRefused)?;
                *self.ends.lock().unwrap() = None;
            }
            MessageType::GPADL_TEARDOWN => {
                let teardown = GpadlTeardown::decode(message).map_err(|_| Error::LocalRefused)?;
                *self.ends.lock().unwrap() = None;
                *self.lent.lock().unwrap() = None;
                self.send(&GpadlTorndown::new(teardown.gpadl()));
            }
            MessageType::REL_ID_RELEASED => {
                RelIdReleased::decode(message).map_err(|_| Error::LocalRefused)?;
            }
            _ => return Err(Error::LocalRefused),
        }
        Ok(())
    }

    fn signal(&self, channel: ChannelId) {
        let mut ends = self.ends.lock().unwrap();
        let Some(ends) = ends.as_mut() else { return };
        while let Ok(packet) = ends.from_guest.next() {
            ends.to_guest.send(Header::in_band(0), packet.payload()).unwrap();
        }
        let _ = ends.from_guest.commit();
        let _ = ends.to_guest.commit();
        self.bus.lock().unwrap().clone().unwrap().deliver_local_signal(channel);
    }

    fn lend(&self, _: ChannelId, gpadl: GpadlId, memory: &dyn GpadlMemory) -> Result<(), Error> {
        let rings = memory.as_any().downcast_ref::<RingPages>().ok_or(Error::LocalRefused)?;
        *self.lent.lock().unwrap() = Some((gpadl, rings.clone()));
        Ok(())
    }
}

fn offer() -> OfferChannel {
    OfferChannel::new(
        Guid::from_wire([1; 16]),
        Guid::from_wire([2; 16]),
        LOCAL,
        ConnectionId(0),
    )
}

fn with_server() -> (Ground, Bus, Server) {
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    let server = Server::default();
    *server.bus.lock().unwrap() = Some(bus.clone());
    assert_eq!(bus.attach_local(server.clone()), Ok(true));
    assert_eq!(bus.attach_local(Server::default()), Ok(false), "one server");
    server.send(&offer());
    (ground, bus, server)
}

#[test]
fn a_channel_of_this_kernel_is_opened_used_and_closed_like_the_hosts() {
    let (ground, bus, server) = with_server();
    assert_eq!(bus.offer(LOCAL).unwrap().origin, Origin::Local);
    let pages = ground.platform.live_pages();
    for _ in 0..3 {
        let (opened, recorder) = open(&bus, LOCAL);
        opened.outgoing().send(Header::in_band(1), b"to ourselves").unwrap();
        let _ = opened.outgoing().commit();
        opened.signal().unwrap();
        bus.poll();
        assert!(recorder.count(&Told::Signalled) >= 1);
        assert_eq!(
            opened.incoming().next().unwrap().payload().get(..12),
            Some(&b"to ourselves"[..])
        );
        assert_eq!(bus.shared_bytes(), 0, "the host has no part in it");
        opened.close(SECOND).unwrap();
    }
    assert_eq!(server.seen(), [8, 5, 7, 11, 8, 5, 7, 11, 8, 5, 7, 11]);
    assert_eq!(ground.platform.live_pages(), pages);
    ground.finish(bus);
}

#[test]
fn c1_a_withdrawal_by_the_server_in_this_kernel_is_like_the_hosts() {
    let (ground, bus, server) = with_server();
    let (opened, recorder) = open(&bus, LOCAL);
    server.send(&RescindChannelOffer::new(LOCAL));
    bus.poll();
    assert_eq!(recorder.count(&Told::Rescinded), 1);
    opened.close(SECOND).unwrap();
    assert_eq!(server.seen(), [8, 5, 11, 13]);
    // Offered anew.
    server.send(&offer());
    let (again, _) = open(&bus, LOCAL);
    again.close(SECOND).unwrap();
    ground.finish(bus);
}

#[test]
fn neither_end_speaks_for_the_others_channels() {
    let (ground, bus, server) = with_server();
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    ground.settle(&bus);
    server.send(&RescindChannelOffer::new(channel));
    server.send(&OfferChannel::new(
        Guid::ZERO,
        Guid::ZERO,
        ChannelId(77),
        ConnectionId(0),
    ));
    ground
        .host
        .send_raw(RescindChannelOffer::new(LOCAL).encode().as_slice());
    ground.settle(&bus);
    assert_eq!(bus.offers().count(), 2);
    assert_eq!((bus.counters().stray_rescinds, bus.counters().refused_offers), (2, 1));
    ground.finish(bus);
}

#[test]
fn without_a_server_nothing_is_offered_by_this_kernel() {
    let ground = Ground::hyper_v();
    let bus = ground.connect();
    bus.deliver_local_message(offer().encode().as_slice());
    let error = bus
        .open(LOCAL, &OpenParameters::default(), Recorder::default(), SECOND)
        .unwrap_err();
    assert_eq!(error, Error::LocalRefused);
    ground.finish(bus);
}
