//! The bus under a host that sends any message at any time: offers and rescinds, openings, shared memory, their ends. Each call
//! ends in its time, and what the host may still write to is not used for anything else.

use arbitrary::Arbitrary;
use vmbus::bus::{Channel, ChannelCore, ChannelSink, Error, Gpadl, Offer, OfferCursor, OpenParameters};
use vmbus::memory::SharedPages;
use vmbus::platform::ProcessorIndex;
use vmbus::protocol::ChannelId;
use vmbus::ring::{Header, ReadError};

use crate::host_steps::{HostStep, offer};
use crate::input::input;
use crate::observe::note;
use crate::world::{Nature, PATIENCE, SOON, Session};

#[derive(Arbitrary, Debug)]
struct Input {
    nature: Nature,
    /// Before the guest connects.
    before: Vec<HostStep>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Host(HostStep),
    Open { which: u8, pages: u8 },
    OpenAny(u8),
    Close(u8),
    Drop(u8),
    Share { channel: u8, pages: u8 },
    TakeBack(u8),
    DropShared(u8),
    Retarget(u8),
    Send { channel: u8, len: u8 },
    Receive(u8),
    Poll,
    Look,
    Settle,
    Reconnect,
}

struct Sink;

impl ChannelSink for Sink {
    fn signalled(&self, channel: &ChannelCore) {
        let mut incoming = channel.incoming();
        for _ in 0..4 {
            match incoming.next() {
                Ok(packet) => assert!(packet.payload().len() <= 4096),
                Err(ReadError::Empty) => break,
                Err(ReadError::Corrupt(corruption)) => {
                    note("Corruption", &corruption);
                    break;
                }
                Err(error) => panic!("what is {error}?"),
            }
        }
        let signal = incoming.commit();
        drop(incoming);
        if signal.is_needed() {
            let _ = channel.signal();
        }
    }

    fn rescinded(&self, _: &ChannelCore) {}
}

struct Guest {
    session: Session,
    channels: Vec<Channel>,
    shared: Vec<Gpadl<SharedPages>>,
    cursor: OfferCursor,
}

/// Offers, openings and shared memory.
pub fn offers(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    let mut guest = Guest {
        session: Session::begin(input.nature),
        channels: Vec::new(),
        shared: Vec::new(),
        cursor: OfferCursor::default(),
    };
    // Something to begin with.
    guest.session.world.host.offer(offer(0, 0));
    for step in input.before.iter().take(8) {
        step.act(guest.session.world);
    }
    guest.session.connect();
    for step in input.steps.iter().take(48) {
        guest.act(step);
    }
    guest.end();
}

/// Notes an error of the bus.
fn met<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|error| note("Error", error)).ok()
}

fn pick<T>(items: &mut Vec<T>, which: u8) -> Option<T> {
    let index = usize::from(which).checked_rem(items.len())?;
    Some(items.swap_remove(index))
}

impl Guest {
    fn channel(&self, which: u8) -> Option<&Channel> {
        self.channels.get(usize::from(which).checked_rem(self.channels.len())?)
    }

    fn open(&mut self, channel: ChannelId, pages: u8) {
        let Some(bus) = self.session.bus() else { return };
        if self.channels.len() >= 6 {
            return;
        }
        let parameters = OpenParameters {
            outgoing_pages: u32::from(pages % 3) + u32::from(pages < 250),
            incoming_pages: 1 + u32::from(pages / 3 % 2),
            ..OpenParameters::default()
        };
        // Undoing takes its own time.
        let limit = PATIENCE * 3;
        let opened = self
            .session
            .world
            .within(limit, || bus.open(channel, &parameters, Sink, SOON));
        self.channels.extend(met(opened));
    }

    fn act(&mut self, step: &Step) {
        let world = self.session.world;
        match step {
            Step::Host(step) => step.act(world),
            Step::Open { which, pages } => {
                let offers: Vec<Offer> = self.session.bus().map_or_else(Vec::new, |bus| bus.offers().collect());
                assert!(offers.len() <= 8, "no more offers than there is room for");
                if let Some(index) = usize::from(*which).checked_rem(offers.len()) {
                    self.open(offers[index].channel, *pages);
                }
            }
            Step::OpenAny(channel) => self.open(ChannelId(u32::from(*channel)), 1),
            Step::Close(which) => {
                if let Some(channel) = pick(&mut self.channels, *which) {
                    met(world.within(PATIENCE, || channel.close(SOON)));
                }
            }
            Step::Drop(which) => drop(pick(&mut self.channels, *which)),
            Step::Share { channel, pages } => self.share(*channel, *pages),
            Step::TakeBack(which) => {
                if let Some(gpadl) = pick(&mut self.shared, *which) {
                    drop(met(world.within(PATIENCE, || gpadl.teardown(SOON))));
                }
            }
            Step::DropShared(which) => drop(pick(&mut self.shared, *which)),
            Step::Retarget(which) => {
                if let Some(channel) = self.channel(*which) {
                    met(world.within(PATIENCE, || channel.retarget(ProcessorIndex(0), SOON)));
                }
            }
            Step::Send { channel, len } => {
                if let Some(channel) = self.channel(*channel) {
                    #[expect(unsafe_code, reason = "a channel without the interface that keeps what is lent")]
                    // SAFETY: no packet lends anything.
                    let mut outgoing = unsafe { channel.outgoing() };
                    if let Err(error) = outgoing.send(Header::in_band(1), &[7; 256][..usize::from(*len)]) {
                        note("WriteError", &error);
                    }
                    let signal = outgoing.commit();
                    drop(outgoing);
                    if signal.is_needed() {
                        met(channel.signal());
                    }
                }
            }
            Step::Receive(which) => {
                if let Some(channel) = self.channel(*which) {
                    Sink.signalled(channel);
                }
            }
            Step::Poll => {
                if let Some(bus) = self.session.bus() {
                    let _ = bus.poll();
                }
            }
            Step::Look => self.look(),
            Step::Settle => self.session.settle(),
            Step::Reconnect => {
                self.shared.clear();
                self.channels.clear();
                self.session.disconnect();
                self.cursor = OfferCursor::default();
                self.session.connect();
            }
        }
    }

    fn share(&mut self, which: u8, pages: u8) {
        let world = self.session.world;
        if self.shared.len() >= 8 {
            return;
        }
        let Some(channel) = self.channel(which) else { return };
        let Ok(memory) = SharedPages::allocate(world.platform, usize::from(pages % 64) + 1) else {
            panic!("pages enough");
        };
        let shared = world.within(PATIENCE * 2, || channel.create_gpadl(memory, SOON));
        self.shared.extend(met(shared));
    }

    fn look(&mut self) {
        let Some(bus) = self.session.bus() else { return };
        let mut last = 0;
        while let Some(offer) = bus.next_offer(&mut self.cursor) {
            assert!(offer.sequence > last, "each offer once");
            last = offer.sequence;
            let _ = (format!("{offer}"), bus.subchannels(&offer).count());
        }
        let _ = (
            bus.offer_generation(),
            bus.has_all_offers(),
            bus.shared_bytes(),
            bus.version(),
        );
    }

    fn end(mut self) {
        self.session.settle();
        for channel in self.channels.drain(..) {
            met(self.session.world.within(PATIENCE, || channel.close(SOON)));
        }
        let Self {
            session,
            channels,
            shared,
            ..
        } = self;
        drop((channels, shared));
        session.end();
    }
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
