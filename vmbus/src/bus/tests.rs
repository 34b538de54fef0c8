//! The bus against the independent model of a host. Tests that show a row of the requirements begin with its number.

mod channels;
mod connection;
mod debts;
mod end;
mod gpadls;
#[cfg(feature = "host")]
mod local;
mod looks;
mod meanwhile;
mod messages;
mod offers;
mod processors;
mod replies;
mod reviewed;

use std::boxed::Box;
use std::sync::Arc;
use std::sync::Mutex;
use std::vec::Vec;

use super::*;
use crate::testing::model::{self, Action, Host, Personality};
use crate::testing::{FakePlatform, wait_until};

const CLASS: &str = "525074dc-8985-46e2-8057-a307dc18a502";
const INSTANCE: &str = "1eccfd72-4b41-45ef-b73a-4a6e44c12924";
const OTHER_INSTANCE: &str = "1eccfd72-4b41-45ef-b73a-4a6e44c12925";

/// A host and a guest that has detected it.
#[derive(Clone, Copy)]
struct Ground {
    platform: &'static FakePlatform,
    host: &'static Host,
    hypervisor: &'static Hypervisor,
}

impl Ground {
    fn new(config: model::Config) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, config);
        let hypervisor = Hypervisor::detect_on(host).unwrap();
        Self {
            platform,
            host,
            hypervisor: Box::leak(Box::new(hypervisor)),
        }
    }

    fn hyper_v() -> Self {
        Self::new(model::Config::new(Personality::HyperV))
    }

    /// A host with one channel.
    fn with_channel() -> (Self, ChannelId) {
        let ground = Self::hyper_v();
        let channel = ground.host.offer(model::Offer::new(CLASS, INSTANCE));
        (ground, ChannelId(channel))
    }

    fn try_connect(&self, config: Config) -> Result<Bus, ConnectError> {
        let bus = Bus::connect(self.hypervisor, self.platform, config)?;
        self.host.drive(&bus);
        Ok(bus)
    }

    fn connect(&self) -> Bus {
        self.connect_with(Config::default())
    }

    fn connect_with(&self, config: Config) -> Bus {
        self.try_connect(config).unwrap()
    }

    /// Lets host and guest work until nothing is left to do.
    fn settle(&self, bus: &Bus) {
        self.host.settle_with(bus);
    }

    /// The types of the channel messages that the guest posted, and their connections.
    fn posts(&self) -> Vec<(u32, u32)> {
        let steps = self.host.steps().into_iter();
        steps
            .filter_map(|step| match step {
                Action::Post {
                    connection,
                    message_type,
                } => Some((message_type, connection)),
                _ => None,
            })
            .collect()
    }

    fn posts_of(&self, message_type: u32) -> usize {
        self.posts().iter().filter(|(kind, _)| *kind == message_type).count()
    }

    /// Everybody behaved.
    fn check(&self) {
        self.host.assert_no_violations();
        self.platform.assert_no_faults();
    }

    /// Ends the connection; everything is given back.
    fn finish(self, bus: Bus) {
        bus.disconnect(Deadline::seconds(100)).unwrap();
        self.hypervisor.disable_hypercalls().unwrap();
        assert!(self.host.is_at_rest());
        self.check();
    }
}

/// The half of a channel that sends, for packets that lend nothing.
#[expect(unsafe_code, reason = "a channel without the interface that keeps what is lent")]
fn outgoing(channel: &ChannelCore) -> crate::sync::LockGuard<'_, Outgoing> {
    // SAFETY: no test sends a page list here.
    unsafe { channel.outgoing() }
}

/// What a sink was told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Signalled,
    Rescinded,
}

#[derive(Clone, Default)]
struct Recorder {
    told: Arc<Mutex<Vec<Told>>>,
}

impl Recorder {
    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    fn count(&self, what: &Told) -> usize {
        self.told().iter().filter(|told| *told == what).count()
    }
}

impl ChannelSink for Recorder {
    fn signalled(&self, _: &ChannelCore) {
        self.told.lock().unwrap().push(Told::Signalled);
    }

    fn rescinded(&self, _: &ChannelCore) {
        self.told.lock().unwrap().push(Told::Rescinded);
    }
}

const SECOND: Deadline = Deadline::seconds(1);

fn open(bus: &Bus, channel: ChannelId) -> (Channel, Recorder) {
    let recorder = Recorder::default();
    let opened = bus
        .open(channel, &OpenParameters::default(), recorder.clone(), SECOND)
        .unwrap();
    (opened, recorder)
}
