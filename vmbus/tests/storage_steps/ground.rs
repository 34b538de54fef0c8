//! Two controllers on one host, the first of which is in for it; what it can do wrong; and a driver that lives on it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmbus::device::storage::{self, Config, Controller, Disk, Error, Lba};
use vmbus::host::storage::{
    self as server, Address, Controller as Server, Disk as ServerDisk, DiskConfig, Effect, Fault, Filter, MemoryDisk,
    Outcome, Provisioning, Violation, WriteCache, srb_status,
};
use vmbus::host::{Host, Misbehaviour};
use vmbus::kmcl::Instance;
use vmbus::protocol::Guid;
use vmbus::testing::{FakePlatform, TestHeap};
use vmbus::{Deadline, Instant};

pub(crate) const SOON: Deadline = Deadline::seconds(5);
/// No call takes longer than its deadline and a few looks at the clock.
const LONGEST: Duration = Duration::from_millis(5100);
const DOOMED: Guid = Guid::literal("5a17e5a1-0000-4000-8000-0000000000d0");
const OTHER: Guid = Guid::literal("5a17e5a1-0000-4000-8000-0000000000d1");
/// `STATUS_UNSUCCESSFUL`
const FAILED: u32 = 0xC000_0001;

/// What the controller does with one message.
#[derive(Clone, Copy)]
pub(crate) enum Trouble {
    /// What its faults can do.
    Effect(fn() -> Effect),
    /// It answers neither this nor any other.
    Dead,
    /// It changes the answer.
    Rewrite(fn(&mut server::Answer)),
    /// It keeps the message, does this, and answers that much later.
    Later(Duration),
    /// It keeps the message, and does this instead of answering.
    Instead(Act),
    /// It answers, and does this then.
    Behind(Act),
}

/// What a controller does beside its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// It is taken away.
    Withdraw,
    /// It is taken away, and offered anew.
    Replace,
    /// It writes this index, and signals.
    Ring(Misbehaviour),
    /// It tells to look what there is.
    Announce,
}

/// All of them, what they are called, how many lives have an error by them, and how many calls in all these lives.
pub(crate) const TROUBLES: [(&str, Trouble, u32, u32); 24] = [
    ("silence", Trouble::Effect(|| Effect::NeverAnswer), 46, 46),
    ("dead", Trouble::Dead, 46, 166),
    ("twice", Trouble::Effect(|| Effect::AnswerTwice), 0, 0),
    (
        "an answer for the first id",
        Trouble::Effect(|| Effect::StrayAnswer(1 << 32)),
        0,
        0,
    ),
    (
        "an answer for no id",
        Trouble::Effect(|| Effect::StrayAnswer(u64::MAX)),
        0,
        0,
    ),
    ("status", Trouble::Effect(|| Effect::Status(FAILED)), 5, 5),
    (
        "hardware error",
        Trouble::Effect(|| Effect::Answer(Outcome::hardware_error())),
        10,
        10,
    ),
    (
        "no device",
        Trouble::Effect(|| Effect::Answer(Outcome::of(srb_status::NO_DEVICE, 0))),
        16,
        26,
    ),
    ("busy", Trouble::Effect(|| Effect::Answer(Outcome::busy())), 0, 0),
    ("empty", Trouble::Rewrite(|answer| answer.set_len(0)), 5, 5),
    ("half a header", Trouble::Rewrite(|answer| answer.set_len(8)), 10, 10),
    ("a header", Trouble::Rewrite(|answer| answer.set_len(12)), 10, 10),
    ("too long", Trouble::Rewrite(|answer| answer.set_len(128)), 15, 15),
    (
        "a question",
        Trouble::Rewrite(|answer| answer.put(0, &[3, 0, 0, 0])),
        15,
        15,
    ),
    (
        "a notice",
        Trouble::Rewrite(|answer| answer.put(0, &[11, 0, 0, 0])),
        15,
        15,
    ),
    ("ones", Trouble::Rewrite(|answer| answer.put(4, &[0xFF; 60])), 15, 15),
    ("late", Trouble::Later(Duration::from_secs(3)), 0, 0),
    ("too late", Trouble::Later(Duration::from_secs(30)), 46, 46),
    ("withdrawn instead", Trouble::Instead(Act::Withdraw), 46, 138),
    ("withdrawn behind", Trouble::Behind(Act::Withdraw), 45, 106),
    ("replaced", Trouble::Instead(Act::Replace), 46, 138),
    (
        "broken ring",
        Trouble::Instead(Act::Ring(Misbehaviour::WriteIndex(0x7fff_ffff))),
        46,
        138,
    ),
    (
        "broken room",
        Trouble::Behind(Act::Ring(Misbehaviour::ReadIndex(4))),
        45,
        178,
    ),
    ("news", Trouble::Behind(Act::Announce), 0, 0),
];

/// What is done while somebody looks at the clock: as by another processor, in no callback.
#[derive(Default)]
struct Knob {
    server: Mutex<Option<Arc<Server>>>,
    host: Mutex<Option<Host>>,
    act: Mutex<Option<Act>>,
    /// Behind the answer, and not instead of it.
    is_behind: AtomicBool,
    /// The message has come.
    is_met: AtomicBool,
    /// How long an answer is kept, and when it is let go; 0: never.
    delay: AtomicU64,
    release_at: AtomicU64,
    is_busy: AtomicBool,
}

impl Knob {
    /// Returns the time, and what goes with it.
    fn look(&self, platform: &FakePlatform) -> Instant {
        let now = platform.look_at_clock();
        // Once at a time: what is done here looks at the clock as well.
        if !self.is_busy.swap(true, Ordering::SeqCst) {
            self.turn(now);
            self.is_busy.store(false, Ordering::SeqCst);
        }
        Instant::from_reference_units(now)
    }

    fn turn(&self, now: u64) {
        let Some(server) = TestHeap::exempt(|| self.server.lock().unwrap().clone()) else {
            return;
        };
        let delay = self.delay.load(Ordering::SeqCst);
        if delay != 0 && server.held_count() != 0 {
            let due = self.release_at.load(Ordering::SeqCst);
            if due == 0 {
                self.release_at.store(now + delay, Ordering::SeqCst);
            } else if now >= due {
                self.delay.store(0, Ordering::SeqCst);
                server.resume();
            }
        }
        let is_due = match self.is_behind.load(Ordering::SeqCst) {
            true => self.is_met.load(Ordering::SeqCst),
            false => server.held_count() != 0,
        };
        if is_due {
            let act = self.act.lock().unwrap().take();
            if let Some(act) = act
                && !self.perform(&server, act)
            {
                *self.act.lock().unwrap() = Some(act);
            }
        }
    }

    /// Returns false if not now: in a callback of the controller's own.
    fn perform(&self, server: &Server, act: Act) -> bool {
        match act {
            Act::Withdraw => server.revoke(SOON).is_ok(),
            Act::Replace => server.revoke(SOON).is_ok() && server.offer().is_ok(),
            Act::Ring(how) => {
                let host = self.host.lock().unwrap().clone();
                let id = server.channel_id();
                host.zip(id).is_none_or(|(host, id)| host.misbehave(id, how).is_ok())
            }
            Act::Announce => {
                server.send_unasked(server::operation::ENUMERATE_BUS);
                true
            }
        }
    }

    fn reset(&self) {
        *self.act.lock().unwrap() = None;
        self.is_behind.store(false, Ordering::SeqCst);
        self.is_met.store(false, Ordering::SeqCst);
        self.delay.store(0, Ordering::SeqCst);
        self.release_at.store(0, Ordering::SeqCst);
    }
}

/// What each call of a life came to.
pub(crate) type Calls = Vec<(&'static str, Result<(), Error>)>;

pub(crate) struct Ground {
    pub(crate) platform: &'static FakePlatform,
    pub(crate) host: Host,
    pub(crate) doomed: Arc<Server>,
    _other: Server,
    /// A disk of the other controller, in use all the time.
    bystander: (Controller, Disk),
    knob: &'static Knob,
}

fn controller(host: &Host, platform: &'static FakePlatform, instance: Guid) -> Server {
    let config = server::Config {
        instance: Some(instance),
        ..server::Config::default()
    };
    let server = Server::new(host, config).unwrap();
    for lun in 0..2 {
        let memory = MemoryDisk::new(platform, 1 << 20, WriteCache::Volatile).unwrap();
        let mut serial = [0; 32];
        serial[..4].copy_from_slice(&[b'1', b'2', b'3', b'0' + lun]);
        // One is asked for every page, the other for none.
        let description = match lun {
            0 => DiskConfig {
                serial,
                provisioning: Provisioning::THIN,
                ..DiskConfig::default()
            },
            _ => DiskConfig::default(),
        };
        let disk = ServerDisk::new(memory, description).unwrap();
        server.attach(Address::lun(lun), disk).unwrap();
    }
    server.offer().unwrap();
    server
}

fn attach(host: &Host, instance: Guid) -> Result<Controller, Error> {
    let config = Config {
        commands: 8,
        ring_pages: 2,
        copy_buffers: 1,
        copy_buffer_len: 4096,
        ..Config::of(storage::SCSI, Instance::Only(instance))
    };
    storage::attach_with(host, &config, || (), SOON)
}

impl Ground {
    pub(crate) fn new() -> Self {
        let (platform, knob) = TestHeap::exempt(|| {
            let knob: &'static Knob = Box::leak(Box::default());
            (FakePlatform::new(), knob)
        });
        let host = Host::new(platform, move || knob.look(platform)).unwrap();
        let doomed = Arc::new(controller(&host, platform, DOOMED));
        let other = controller(&host, platform, OTHER);
        let bystander = attach(&host, OTHER).unwrap();
        let disk = bystander.wait_for_disk(SOON).unwrap();
        *knob.server.lock().unwrap() = Some(doomed.clone());
        *knob.host.lock().unwrap() = Some(host.clone());
        Self {
            platform,
            host,
            doomed,
            _other: other,
            bystander: (bystander, disk),
            knob,
        }
    }

    /// Plans something for message `number` of the life that comes.
    pub(crate) fn plan(&self, number: u32, trouble: Trouble) {
        let knob = self.knob;
        let effect = match trouble {
            Trouble::Effect(make) => make(),
            Trouble::Dead => Effect::NeverAnswer,
            Trouble::Rewrite(change) => Effect::rewrite(change).unwrap(),
            Trouble::Later(delay) => {
                let delay = u64::try_from(delay.as_nanos() / 100).unwrap();
                knob.delay.store(delay, Ordering::SeqCst);
                Effect::HoldAnswer
            }
            Trouble::Instead(act) => {
                *knob.act.lock().unwrap() = Some(act);
                Effect::Hold
            }
            Trouble::Behind(act) => {
                *knob.act.lock().unwrap() = Some(act);
                knob.is_behind.store(true, Ordering::SeqCst);
                Effect::rewrite(move |_| knob.is_met.store(true, Ordering::SeqCst)).unwrap()
            }
        };
        let fault = Fault::new(Filter::all(), effect).after(number);
        let fault = match trouble {
            Trouble::Dead => fault.always(),
            _ => fault,
        };
        self.doomed.inject(fault).unwrap();
    }

    /// Returns how many messages `work` sends to the doomed controller.
    pub(crate) fn messages(&self, work: impl FnOnce()) -> u32 {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let note = Effect::rewrite(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        self.doomed
            .inject(Fault::new(Filter::all(), note.unwrap()).always())
            .unwrap();
        work();
        self.doomed.clear_faults();
        u32::try_from(count.load(Ordering::SeqCst)).unwrap()
    }

    /// Makes a call, which ends in time.
    fn call<T>(&self, calls: &mut Calls, what: &'static str, call: impl FnOnce() -> Result<T, Error>) -> Option<T> {
        let began = self.platform.time();
        let result = call();
        let took = Duration::from_nanos((self.platform.time() - began) * 100);
        assert!(took <= LONGEST, "{what} took {took:?}: {:?}", result.as_ref().err());
        let (value, result) = match result {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => (None, Err(error)),
        };
        TestHeap::exempt(|| calls.push((what, result)));
        value
    }

    /// A life of the driver on the doomed controller, as far as it comes.
    pub(crate) fn live(&self) -> Calls {
        let mut calls = Calls::new();
        let Some(controller) = self.call(&mut calls, "attach", || attach(&self.host, DOOMED)) else {
            return calls;
        };
        self.call(&mut calls, "rescan", || controller.rescan(SOON));
        let disk = self.call(&mut calls, "wait for a disk", || controller.wait_for_disk(SOON));
        if let Some(disk) = &disk {
            self.use_disk(&mut calls, disk);
        }
        self.call(&mut calls, "reset", || controller.reset(SOON));
        self.call(&mut calls, "rescan", || controller.rescan(SOON));
        if let Some(disk) = disk {
            self.call(&mut calls, "read", || disk.read_into(Lba(0), &mut [0; 512], SOON));
        }
        calls
    }

    fn use_disk(&self, calls: &mut Calls, disk: &Disk) {
        let (bytes, mut found) = ([0x5A; 1024], [0; 1024]);
        let written = self.call(calls, "write", || disk.write_from(Lba(2), &bytes, SOON));
        self.call(calls, "flush", || disk.flush(SOON));
        let read = self.call(calls, "read", || disk.read_into(Lba(2), &mut found, SOON));
        if written.and(read).is_some() {
            assert!(found == bytes, "what was written is not what is read");
        }
        self.call(calls, "discard", || disk.discard(Lba(64), 8, SOON));
    }

    /// The other controller works as ever.
    pub(crate) fn ask_bystander(&self, what: &str) {
        let (controller, disk) = &self.bystander;
        let mut found = [0; 512];
        let outcome = disk
            .write_from(Lba(9), &[7; 512], SOON)
            .and_then(|()| disk.flush(SOON))
            .and_then(|()| disk.read_into(Lba(9), &mut found, SOON))
            .and_then(|()| controller.rescan(SOON).map(drop));
        assert_eq!((outcome, found), (Ok(()), [7; 512]), "{what}");
    }

    /// From now on the controller behaves, and is there.
    pub(crate) fn come_to_reason(&self) {
        self.knob.reset();
        self.doomed.clear_faults();
        self.doomed.resume();
        if self.doomed.channel_id().is_none() {
            self.doomed.offer().unwrap();
        }
        while self.host.process() {}
    }

    /// Nothing of the driver is left, and it did nothing wrong that `may_do` does not excuse.
    pub(crate) fn finish(self, what: &str, may_do: Option<Violation>) {
        let violations = self.doomed.take_violations();
        assert!(
            violations.iter().all(|violation| Some(*violation) == may_do),
            "{what}: {violations:?}"
        );
        drop(self.bystander);
        while self.host.process() {}
        drop(self.knob.server.lock().unwrap().take());
        drop(self.knob.host.lock().unwrap().take());
        self.doomed.revoke(SOON).unwrap();
        drop(self.doomed);
        drop(self._other);
        drop(self.host);
        assert_eq!(self.platform.live_pages(), 0, "{what}");
        self.platform.assert_no_faults();
    }
}
