//! A host with two devices, the first of which is in for it; what it can do wrong; and a guest that lives on it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use vmbus::Deadline;
use vmbus::bus::{Bus, Config, ConnectError};
use vmbus::hyperv::Hypervisor;
use vmbus::kmcl::{Channel, Error, GpadlAccess, Instance, Refused, SendFlags};
use vmbus::memory::{DmaBuffer, Mdl};
use vmbus::protocol::Guid;
use vmbus::testing::model::{self, Action, Device, Echo, Host, HostChannel, Offer, Personality, Reply, When};
use vmbus::testing::{FakePlatform, TestHeap};

pub(crate) const SOON: Deadline = Deadline::seconds(5);
const CLASS: &str = "5a17e5a1-0000-4000-8000-00000000fa17";
const INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000001";
const OTHER_INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000002";
/// Requests that have an answer, and the parts of descriptions and the last words, which have none.
const REQUESTS: [u32; 10] = [3, 5, 7, 8, 9, 11, 13, 14, 16, 22];
/// The longest wait in the configuration below.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What the host does at one step of the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Takes the device away before or after it sees the step.
    Rescind(When),
    /// Takes the device away and offers it anew.
    Replace,
    /// Answers the request of this step in this way.
    Answer(fn() -> Reply),
    /// The hypervisor does not take this and so many posts and signals, with this status.
    Hypercalls(u16, u32),
    /// Answers nothing any more, and its devices neither.
    Dead,
}

/// All of them, with what they are called, and how many lives end early by them.
pub(crate) const FAULTS: [(&str, Fault, u32); 16] = [
    ("rescind before", Fault::Rescind(When::Before), 18),
    ("rescind after", Fault::Rescind(When::After), 18),
    ("replace", Fault::Replace, 8),
    ("silence", Fault::Answer(|| Reply::Silent), 5),
    ("ignore", Fault::Answer(|| Reply::Ignore), 7),
    ("twice", Fault::Answer(|| Reply::Twice), 0),
    ("status", Fault::Answer(|| Reply::Status(0xc000_0001)), 3),
    ("other key", Fault::Answer(|| Reply::OtherKey), 4),
    ("no body", Fault::Answer(|| Reply::Truncated(8)), 5),
    ("late", Fault::Answer(|| Reply::Late(Duration::from_secs(3))), 0),
    ("too late", Fault::Answer(|| Reply::Late(Duration::from_secs(30))), 5),
    ("other answer", Fault::Answer(|| Reply::Instead(UNLOADED.to_vec())), 5),
    ("busy", Fault::Hypercalls(0x13, 3), 0),
    ("no connection", Fault::Hypercalls(0x12, 1), 0),
    ("refused", Fault::Hypercalls(0x06, 1), 7),
    ("dead", Fault::Dead, 19),
];

/// The answer to the end of the connection, which nobody has asked for yet.
const UNLOADED: [u8; 8] = [17, 0, 0, 0, 0, 0, 0, 0];

/// How the device answers one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Silent,
    Twice,
    OtherTransaction,
    TooLong,
    WrongType,
    /// More bytes in the ring than there can be.
    BrokenIndex,
    Rescind,
}

/// All of them, and how many lives end early by them.
pub(crate) const MOODS: [(Mood, u32); 7] = [
    (Mood::Silent, 2),
    (Mood::Twice, 0),
    (Mood::OtherTransaction, 2),
    (Mood::TooLong, 2),
    (Mood::WrongType, 4),
    (Mood::BrokenIndex, 3),
    (Mood::Rescind, 4),
];

/// When a device misbehaves, and how.
pub(crate) struct Temper {
    /// Packets to go until then; negative: it is past, or never comes.
    pub(crate) packets_left: AtomicI64,
    pub(crate) mood: Mutex<Mood>,
    /// Looks at nothing.
    pub(crate) is_dead: Mutex<bool>,
}

impl Temper {
    pub(crate) fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            packets_left: AtomicI64::new(-1),
            mood: Mutex::new(Mood::Silent),
            is_dead: Mutex::new(false),
        }))
    }
}

/// Echoes, but for one packet.
struct Moody(&'static Temper);

impl Moody {
    fn work(&self, channel: &HostChannel<'_>) -> bool {
        let mut has_worked = false;
        while !*self.0.is_dead.lock().unwrap() {
            let Some(packet) = channel.receive() else { break };
            has_worked = true;
            if self.0.packets_left.fetch_sub(1, Ordering::SeqCst) == 0 {
                let mood = *self.0.mood.lock().unwrap();
                misbehave(channel, mood, packet.transaction);
            } else if packet.flags & 1 != 0 {
                let _ = channel.send_completion(packet.transaction, &packet.payload);
            } else {
                let _ = channel.send_in_band(packet.transaction, 0, &packet.payload);
            }
        }
        has_worked
    }
}

fn misbehave(channel: &HostChannel<'_>, mood: Mood, transaction: u64) {
    let _ = match mood {
        Mood::Silent => Ok(()),
        Mood::Twice => channel
            .send_completion(transaction, b"once")
            .and_then(|()| channel.send_completion(transaction, b"again")),
        Mood::OtherTransaction => channel.send_completion(transaction ^ 0x40, b"to whom?"),
        Mood::TooLong => channel.send_completion(transaction, &[0; 4096]),
        Mood::WrongType => channel.send_packet(0x7777, 1, transaction, &[], b"what?"),
        Mood::BrokenIndex => {
            if let Some((_, to_guest)) = channel.control_pages() {
                let _ = channel
                    .host()
                    .platform()
                    .guest_write(to_guest, &0x7fff_ffff_u32.to_le_bytes());
                channel.signal();
            }
            Ok(())
        }
        Mood::Rescind => {
            channel.rescind();
            Ok(())
        }
    };
}

impl Device for Moody {
    fn signalled(&mut self, channel: &HostChannel<'_>) {
        self.work(channel);
    }

    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        self.work(channel)
    }
}

/// Why a life ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Connect(ConnectError),
    Channel(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Channel(error)
    }
}

impl<T> From<Refused<T>> for Failure {
    fn from(refused: Refused<T>) -> Self {
        Self::Channel(refused.error)
    }
}

/// A host with two devices, the first of which is in for it, and a guest that has not connected.
pub(crate) struct Ground {
    pub(crate) platform: &'static FakePlatform,
    pub(crate) host: &'static Host,
    pub(crate) hypervisor: &'static Hypervisor,
    /// Where interrupt entry and deferred work find the bus: a handle in them would keep it for ever.
    pub(crate) bus: &'static Mutex<Option<Bus>>,
    pub(crate) temper: &'static Temper,
    pub(crate) device: u32,
}

fn with(slot: &Mutex<Option<Bus>>, work: impl FnOnce(&Bus)) {
    let bus = slot.lock().unwrap().clone();
    if let Some(bus) = bus {
        work(&bus);
    }
}

impl Ground {
    pub(crate) fn new() -> Self {
        TestHeap::exempt(|| {
            let platform = FakePlatform::new();
            let host = Host::new(platform, model::Config::new(Personality::HyperV));
            let temper = Temper::new();
            let device = host.offer_with(Offer::new(CLASS, INSTANCE), Moody(temper));
            host.offer_with(Offer::new(CLASS, OTHER_INSTANCE), Echo);
            let bus: &'static Mutex<Option<Bus>> = Box::leak(Box::default());
            host.set_interrupt_handler(|processor, _| with(bus, |bus| bus.acknowledge_interrupt(processor)));
            platform.set_deferred_handler(|processor| {
                with(bus, |bus| {
                    bus.process(processor);
                });
            });
            Self {
                platform,
                host,
                hypervisor: Box::leak(Box::new(Hypervisor::detect_on(host).unwrap())),
                bus,
                temper,
                device,
            }
        })
    }

    pub(crate) fn connect(&self) -> Result<Bus, Failure> {
        let config = Config {
            offers_timeout: LONGEST_WAIT,
            post_timeout: LONGEST_WAIT,
            unload_timeout: LONGEST_WAIT,
            ..Config::default()
        };
        let bus = Bus::connect(self.hypervisor, self.platform, config).map_err(Failure::Connect)?;
        *self.bus.lock().unwrap() = Some(bus.clone());
        Ok(bus)
    }

    pub(crate) fn settle(&self, bus: &Bus) {
        while TestHeap::exempt(|| self.host.run()) | bus.poll().is_more {}
    }

    fn memory(&self, len: usize) -> Mdl {
        DmaBuffer::allocate(self.platform, len).unwrap().into()
    }

    /// A life, up to the bus's end.
    pub(crate) fn live(&self) -> Result<(), Failure> {
        let bus = self.connect()?;
        let used = self.use_device(&bus);
        self.settle(&bus);
        used
    }

    /// All that there is to do with a device. The memory that is shared takes a header and a body to describe.
    fn use_device(&self, bus: &Bus) -> Result<(), Failure> {
        let channel = open(bus, INSTANCE)?;
        let mut answer = [0; 64];
        let sent = channel.send_synchronous_request(&[7; 16], Some(self.memory(5000)), SOON, &mut answer)?;
        drop(sent);
        let mut packet = channel.packet_initialize()?;
        packet.set_completion_routine(|_, _, _| ());
        packet
            .send(b"own packet", None, SendFlags::WAIT_FOR_COMPLETION)
            .map_err(|refused| refused.error)?;
        channel.send(b"notice")?;
        self.settle(bus);
        let shared = self.memory(40 * 4096);
        let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &shared, 0, 0, SOON)?;
        channel.send_synchronous_request(b"again", None, SOON, &mut answer)?;
        drop(gpadl.delete(SOON)?);
        drop(channel.disable(SOON)?);
        Ok(())
    }

    /// What works without trouble, on the second device.
    pub(crate) fn use_other(&self, bus: &Bus, what: &str) {
        let channel = open(bus, OTHER_INSTANCE).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let mut answer = [0; 64];
        let sent = channel
            .send_synchronous_request(&[9; 24], Some(self.memory(5000)), SOON, &mut answer)
            .unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert_eq!((sent.len, &answer[..24]), (24, &[9; 24][..]), "{what}");
        drop(sent);
        drop(
            channel
                .disable(SOON)
                .unwrap_or_else(|error| panic!("{what}: {error:?}")),
        );
    }

    /// From now on the host behaves.
    pub(crate) fn come_to_reason(&self) {
        TestHeap::exempt(|| {
            for request in REQUESTS {
                self.host.set_reply(request, Reply::Normal);
            }
            self.temper.packets_left.store(-1, Ordering::SeqCst);
            *self.temper.is_dead.lock().unwrap() = false;
        });
    }

    pub(crate) fn plan(&self, step: usize, fault: Fault) {
        let (device, temper) = (self.device, self.temper);
        TestHeap::exempt(|| match fault {
            Fault::Rescind(when) => self.host.at_step(step, when, move |host, _| host.rescind(device)),
            Fault::Replace => self.host.at_step(step, When::After, move |host, _| {
                host.rescind(device);
                host.offer_with(Offer::new(CLASS, INSTANCE), Moody(temper));
            }),
            Fault::Answer(reply) => self.host.at_step(step, When::Before, move |host, action| {
                if let Action::Post { message_type, .. } = action {
                    host.set_next_replies(message_type, reply(), 1);
                }
            }),
            Fault::Hypercalls(status, times) => {
                self.host.at_step(step, When::Before, move |host, action| match action {
                    Action::Post { .. } => host.fail_posts(status, times),
                    Action::Signal { .. } => host.fail_signals(status, times),
                    _ => {}
                })
            }
            Fault::Dead => self.host.at_step(step, When::Before, move |host, _| {
                *temper.is_dead.lock().unwrap() = true;
                for request in REQUESTS {
                    host.set_reply(request, Reply::Ignore);
                }
            }),
        });
    }
}

pub(crate) fn open(bus: &Bus, instance: &str) -> Result<Channel, Failure> {
    let channel = Channel::allocate_client(bus)?
        .init_set_target(
            Guid::parse(CLASS).unwrap(),
            Instance::Only(Guid::parse(instance).unwrap()),
        )
        .init_set_maximum_packet_count(8)
        .init_set_maximum_packet_size(256)?
        .init_set_process_packet_callback(|_, packet| {
            let _ = packet.complete(&[]);
        })
        .enable(SOON)?;
    Ok(channel)
}
