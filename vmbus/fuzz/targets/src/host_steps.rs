//! What the host does, one step at a time: rightly, roughly, and by lying. Its messages are written with literal offsets.

use core::time::Duration;

use arbitrary::Arbitrary;
use vmbus::testing::model::{Device, Echo, HostChannel, Offer, Reply, When};

use crate::wire::{Deed, Peer, Wire};
use crate::world::{Conduct, World};

/// A channel message of the host, whether it is true or not. Numbers are mostly small, since those that are in use are.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Message {
    Offer {
        channel: u8,
        high: Option<u32>,
        instance: u8,
        subchannel: u8,
        dedicated: bool,
        connection: u8,
    },
    Rescind {
        channel: u8,
        high: Option<u32>,
    },
    AllOffers,
    OpenResult {
        channel: u8,
        open_id: u8,
        status: u32,
    },
    GpadlCreated {
        channel: u8,
        gpadl: u8,
        status: u32,
    },
    GpadlTorndown {
        gpadl: u8,
    },
    VersionResponse {
        supported: u8,
        state: u8,
        value: u32,
        features: u32,
    },
    UnloadResponse,
    ModifyResponse {
        channel: u8,
        status: u32,
    },
    /// One that only a guest sends, or that nobody knows.
    Other {
        kind: u8,
        fields: [u32; 4],
        len: u8,
    },
}

const CLASS: [u8; 16] = [
    0xdc, 0x74, 0x50, 0x52, 0x85, 0x89, 0xe2, 0x46, 0x80, 0x57, 0xa3, 0x07, 0xdc, 0x18, 0xa5, 0x02,
];

impl Message {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        match self {
            Self::Offer {
                channel,
                high,
                instance,
                subchannel,
                dedicated,
                connection,
            } => {
                let mut bytes = words(&[1, 0]);
                bytes.extend(CLASS);
                bytes.extend([*instance % 4; 16]);
                bytes.resize(180, 0);
                bytes.extend([*subchannel % 4, 0, 0, 0]);
                bytes.extend(number(*channel, *high).to_le_bytes());
                bytes.extend([0xff, 0, u8::from(*dedicated), 0]);
                bytes.extend(words(&[0x1_1000 + u32::from(*connection)]));
                bytes
            }
            Self::Rescind { channel, high } => words(&[2, 0, number(*channel, *high)]),
            Self::AllOffers => words(&[4, 0]),
            Self::OpenResult {
                channel,
                open_id,
                status,
            } => words(&[6, 0, u32::from(*channel), u32::from(*open_id), *status]),
            Self::GpadlCreated { channel, gpadl, status } => {
                words(&[10, 0, u32::from(*channel), u32::from(*gpadl), *status])
            }
            Self::GpadlTorndown { gpadl } => words(&[12, 0, u32::from(*gpadl)]),
            Self::VersionResponse {
                supported,
                state,
                value,
                features,
            } => {
                let first = u32::from(*supported) | u32::from(*state) << 8;
                words(&[15, 0, first, *value, *features])
            }
            Self::UnloadResponse => words(&[17, 0]),
            Self::ModifyResponse { channel, status } => words(&[24, 0, u32::from(*channel), *status]),
            Self::Other { kind, fields, len } => {
                let mut bytes = words(&[u32::from(*kind), 0]);
                bytes.extend(words(fields));
                bytes.resize(usize::from(*len).min(240), 0);
                bytes
            }
        }
    }
}

fn number(small: u8, high: Option<u32>) -> u32 {
    high.unwrap_or(u32::from(small % 16))
}

/// A request of the guest.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Request {
    Offers,
    Open,
    Gpadl,
    Teardown,
    Contact,
    Unload,
    Modify,
}

impl Request {
    const fn number(self) -> u32 {
        match self {
            Self::Offers => 3,
            Self::Open => 5,
            Self::Gpadl => 8,
            Self::Teardown => 11,
            Self::Contact => 14,
            Self::Unload => 16,
            Self::Modify => 22,
        }
    }
}

/// How a request is answered.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum How {
    Right,
    Silent,
    Ignored,
    Twice,
    Late(u16),
    Refused(u32),
    OtherKey,
    Cut(u8),
    Instead(Message),
    After(Message),
}

impl How {
    fn reply(&self) -> (Reply, Conduct) {
        match self {
            Self::Right => (Reply::Normal, Conduct::Fair),
            Self::Silent => (Reply::Silent, Conduct::Rough),
            Self::Ignored => (Reply::Ignore, Conduct::Rough),
            Self::Twice => (Reply::Twice, Conduct::Rough),
            Self::Late(milliseconds) => {
                let delay = Duration::from_millis(u64::from(*milliseconds) % 2000);
                (Reply::Late(delay), Conduct::Rough)
            }
            Self::Refused(status) => (Reply::Status(*status), Conduct::Rough),
            Self::OtherKey => (Reply::OtherKey, Conduct::Lying),
            Self::Cut(len) => (Reply::Truncated(usize::from(*len)), Conduct::Rough),
            Self::Instead(message) => (Reply::Instead(message.bytes()), Conduct::Lying),
            Self::After(message) => (Reply::After(message.bytes()), Conduct::Lying),
        }
    }
}

/// A step of the host.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum HostStep {
    Run,
    Advance(u16),
    /// Offers a device of the model's, which sends back what it gets.
    Offer {
        instance: u8,
        subchannel: u8,
    },
    /// Offers a device that does nothing: the steps are the device.
    OfferMute {
        instance: u8,
    },
    Rescind(u8),
    Reply {
        request: Request,
        how: How,
        times: u8,
    },
    FailPosts {
        status: u16,
        times: u8,
    },
    FailSignals {
        status: u16,
        times: u8,
    },
    Say(Message),
    SayBytes(Vec<u8>),
    Slot {
        kind: u32,
        len: u8,
        bytes: Vec<u8>,
    },
    Flag(u16),
    Signal(u8),
    /// Sends a packet as it should be: a completion of a small id, or in-band.
    Packet {
        channel: u8,
        completes: Option<u8>,
        asks: bool,
        len: u8,
    },
    /// Does something to one of the channel's rings, from the guest or to it.
    Ring {
        channel: u8,
        to_guest: bool,
        deed: Deed,
    },
    /// The same, when the guest does its step so many steps from now.
    Later {
        steps: u8,
        before: bool,
        step: Box<Self>,
    },
}

/// A device that does nothing.
#[derive(Clone, Copy, Debug)]
struct Mute;

impl Device for Mute {
    fn signalled(&mut self, _: &HostChannel<'_>) {}
}

pub(crate) const INSTANCES: [&str; 3] = [
    "00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-000000000002",
    "00000000-0000-4000-8000-000000000003",
];
pub(crate) const CLASS_TEXT: &str = "525074dc-8985-46e2-8057-a307dc18a5ff";

pub(crate) fn offer(instance: u8, subchannel: u8) -> Offer {
    let mut offer = Offer::new(CLASS_TEXT, INSTANCES[usize::from(instance) % INSTANCES.len()]);
    offer.subchannel_index = u16::from(subchannel % 3);
    offer
}

impl HostStep {
    pub(crate) fn act(&self, world: &'static World) {
        let host = world.host;
        match self {
            Self::Run => {
                host.run();
            }
            Self::Advance(milliseconds) => world.jump(*milliseconds),
            Self::Offer { instance, subchannel } if host.channels().len() < 24 => {
                host.offer_with(offer(*instance, *subchannel), Echo);
            }
            Self::OfferMute { instance } if host.channels().len() < 24 => {
                host.offer_with(offer(*instance, 0), Mute);
            }
            Self::Offer { .. } | Self::OfferMute { .. } => {}
            Self::Rescind(which) => {
                if let Some(channel) = chosen(world, *which) {
                    host.rescind(channel);
                }
            }
            Self::Reply { request, how, times } => {
                let (reply, conduct) = how.reply();
                world.behaves(conduct);
                host.set_next_replies(request.number(), reply, u32::from(*times % 4) + 1);
            }
            Self::FailPosts { status, times } => {
                world.behaves(Conduct::Rough);
                host.fail_posts(failure(*status), u32::from(*times));
            }
            Self::FailSignals { status, times } => {
                world.behaves(Conduct::Rough);
                host.fail_signals(failure(*status), u32::from(*times));
            }
            Self::Say(message) => {
                world.behaves(Conduct::Lying);
                host.send_raw(&message.bytes());
            }
            Self::SayBytes(bytes) => {
                world.behaves(Conduct::Lying);
                host.send_raw(bytes.get(..240).unwrap_or(bytes));
            }
            Self::Slot { kind, len, bytes } => {
                world.behaves(Conduct::Lying);
                host.send_slot(*kind, *len, bytes.get(..240).unwrap_or(bytes));
            }
            Self::Flag(flag) => host.set_event_flag(0, 2, *flag % 2048),
            Self::Signal(which) => {
                if let Some(channel) = chosen(world, *which) {
                    host.channel(channel).signal();
                }
            }
            Self::Packet {
                channel,
                completes,
                asks,
                len,
            } => {
                world.behaves(Conduct::Lying);
                if let Some(channel) = chosen(world, *channel) {
                    let payload = [0x5a; 255];
                    let payload = &payload[..usize::from(*len)];
                    // Without room it is not sent.
                    let _ = match completes {
                        Some(id) => host.channel(channel).send_completion(u64::from(*id), payload),
                        None => host.channel(channel).send_in_band(7, u16::from(*asks), payload),
                    };
                }
            }
            Self::Ring {
                channel,
                to_guest,
                deed,
            } => {
                if let Some(channel) = chosen(world, *channel) {
                    world.behaves(Conduct::Lying);
                    act_on_ring(world, channel, *to_guest, deed);
                }
            }
            Self::Later { steps, before, step } => {
                let at = host.step_count() + usize::from(*steps % 32);
                let when = if *before { When::Before } else { When::After };
                let step = step.clone();
                host.at_step(at, when, move |_, _| {
                    if matches!(*step, Self::Advance(_)) {
                        // A call of the guest's is late now.
                        world.behaves(Conduct::Rough);
                    }
                    step.act(world);
                });
            }
        }
    }
}

/// The status of a hypercall that fails: mostly "no such connection" and "insufficient buffers", which are met in life.
const fn failure(status: u16) -> u16 {
    match status {
        0 => 0x12,
        1..=0xff => [0x12, 0x13, 0x13, 0x0b, 0x06][status as usize % 5],
        other => other,
    }
}

/// One of the channels that there are.
fn chosen(world: &World, which: u8) -> Option<u32> {
    let channels = world.host.channels();
    let index = usize::from(which).checked_rem(channels.len())?;
    channels.get(index).copied()
}

/// A ring of an open channel in the guest's memory, through the host's end of it.
struct GuestRing {
    world: &'static World,
    control: u64,
    data: Vec<u64>,
}

impl Wire for GuestRing {
    fn size(&self) -> u32 {
        self.data.len() as u64 as u32 * 4096
    }

    fn set(&self, offset: u32, value: u32) {
        let _ = self
            .world
            .platform
            .guest_write(self.control + u64::from(offset), &value.to_le_bytes());
    }

    fn get(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        let _ = self
            .world
            .platform
            .guest_read(self.control + u64::from(offset), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn store(&self, at: u32, word: u64) {
        let at = at % self.size();
        let page = self.data[(at / 4096) as usize];
        let _ = self
            .world
            .platform
            .guest_write(page + u64::from(at % 4096), &word.to_le_bytes());
    }
}

fn act_on_ring(world: &'static World, channel: u32, to_guest: bool, deed: &Deed) {
    let Some((from, to)) = world.host.channel(channel).ring_pages() else {
        return;
    };
    let pages = if to_guest { to } else { from };
    let Some((control, data)) = pages.split_first() else {
        return;
    };
    let ring = GuestRing {
        world,
        control: *control,
        data: data.to_vec(),
    };
    // The model's own place in the ring is where the next packet goes.
    let mut peer = Peer {
        write: if to_guest { (ring.get(0) % ring.size()) & !7 } else { 0 },
        read: (ring.get(4) % ring.size()) & !7,
    };
    peer.act(&ring, deed);
}
