//! The callback API with both ends in this kernel: a service and its client, over the kernel's own platform, clock, tasks and
//! deferred work.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Display;
use core::sync::atomic::{AtomicU32, Ordering};

use vmbus::Deadline;
use vmbus::host::Host;
use vmbus::kmcl::{
    Channel, Counters, Error, Gone, GpadlAccess, IncomingPacket, Instance, MappedGpadl, OutgoingPacket, SendFlags,
};
use vmbus::memory::{DmaBuffer, Mdl};
use vmbus::protocol::{ChannelId, Guid};

use super::{Verdict, ensure};
use crate::hyperv::port::PLATFORM;
use crate::hyperv::{bus, local};
use crate::memory;
use crate::status::{Device, Report};
use crate::sync::IrqMutex;
use crate::task::{self, TaskId};
use crate::time::{self, Deadline as Until};

const CLASS: Guid = Guid::literal("5e1f7e57-0000-4000-8000-00000000c1a5");
/// What the service calls its channel.
const NAME: &str = "test service";
/// For what must not take long.
const SOON: Deadline = Deadline::seconds(5);
/// Round trips that are timed.
const ROUND_TRIPS: u32 = 1000;
/// Bytes of external data: more than a page, and no whole ones.
const LEN: usize = 3 * 4096 + 123;

/// What the first byte of a packet asks of the service.
mod ask {
    /// To send the payload back.
    pub(super) const ECHO: u8 = 0;
    /// To add 1 to each byte of the external data, and to answer with the sum of what they were.
    pub(super) const EXTERNAL: u8 = 1;
    /// To map the GPADL whose handle is in bytes 4 to 8, to write to it, and to answer with its first bytes.
    pub(super) const MAP: u8 = 2;
    /// To unmap it.
    pub(super) const UNMAP: u8 = 3;
    /// Not to answer until it is asked to.
    pub(super) const HOLD: u8 = 4;
    /// To answer what is held.
    pub(super) const RELEASE: u8 = 5;
}

/// The service's side.
pub(super) struct Service {
    held: IrqMutex<Vec<IncomingPacket<Self>>>,
    mapped: IrqMutex<Option<MappedGpadl>>,
    suspends: AtomicU32,
}

impl Service {
    const fn new() -> Self {
        Self {
            held: IrqMutex::new(Vec::new()),
            mapped: IrqMutex::new(None),
            suspends: AtomicU32::new(0),
        }
    }
}

/// The client's side.
#[derive(Default)]
pub(super) struct Client {
    completed: AtomicU32,
    rescinded: AtomicU32,
    other: AtomicU32,
    memory_back: AtomicU32,
    closed: AtomicU32,
    notices: AtomicU32,
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The service.
fn serve(channel: &Channel<Service>, mut packet: IncomingPacket<Service>) {
    let service = channel.context();
    let mut payload = [0; 8];
    for (target, source) in payload.iter_mut().zip(packet.payload()) {
        *target = *source;
    }
    let [what, _, _, _, handle @ ..] = payload;
    let answer = match what {
        ask::ECHO => payload,
        ask::EXTERNAL => add_one(&mut packet).unwrap_or(u64::MAX).to_le_bytes(),
        ask::MAP => match map(channel, u32::from_le_bytes(handle)) {
            Ok(first) => first,
            Err(error) => {
                log::warn!("not mapped: {error}");
                [0xff; 8]
            }
        },
        ask::UNMAP => {
            let mapped = service.mapped.lock().take();
            drop(mapped);
            payload
        }
        ask::HOLD => {
            service.held.lock().push(packet);
            task::notify();
            return;
        }
        _ => {
            release(service);
            payload
        }
    };
    if let Err(refused) = packet.complete(&answer) {
        log::error!("the service cannot answer: {refused}");
    }
}

/// Answers what the service holds.
fn release(service: &Service) {
    let held = core::mem::take(&mut *service.held.lock());
    for packet in held {
        if let Err(refused) = packet.complete(&[0; 8]) {
            log::error!("the service cannot answer: {refused}");
        }
    }
}

fn add_one(packet: &mut IncomingPacket<Service>) -> Result<u64, Error> {
    let data = packet.external_data()?;
    let mut sum = 0;
    for offset in 0..data.len() {
        let mut byte = [0];
        data.read_at(offset, &mut byte)?;
        sum += u64::from(byte[0]);
        data.write_at(offset, &[byte[0].wrapping_add(1)])?;
    }
    Ok(sum)
}

fn map(channel: &Channel<Service>, handle: u32) -> Result<[u8; 8], Error> {
    let mapped = channel.map_gpadl(handle, GpadlAccess::ReadWrite)?;
    let mut first = [0; 8];
    mapped.read_at(0, &mut first)?;
    mapped.write_at(4096, b"service!")?;
    *channel.context().mapped.lock() = Some(mapped);
    Ok(first)
}

/// Both ends of a channel.
pub(super) struct Pair {
    server: Channel<Service>,
    client: Channel<Client>,
}

impl Pair {
    pub(super) fn open(host: &Host) -> Result<Self, String> {
        let states = vmbus::kmcl::StateChangeCallbacks::new().suspend(|channel: &Channel<Service>| {
            channel.context().suspends.fetch_add(1, Ordering::Relaxed);
        });
        let server = Channel::allocate_server_with(host, Service::new())
            .map_err(text)?
            .init_set_target(CLASS, Instance::Any)
            .init_set_friendly_name(NAME)
            .init_set_process_packet_callback(serve)
            .init_set_state_change_callbacks(states)
            .enable(SOON)
            .map_err(text)?;
        let states = vmbus::kmcl::StateChangeCallbacks::new().closed(|channel: &Channel<Client>| {
            channel.context().closed.fetch_add(1, Ordering::Relaxed);
        });
        // Where there is a bus, a driver need not know who offers.
        let client = match bus::connected() {
            Some(bus) => Channel::allocate_client_with(&bus, Client::default()),
            None => Channel::allocate_client_with(host, Client::default()),
        };
        let client = client
            .map_err(text)?
            .init_set_target(CLASS, Instance::Any)
            .init_set_friendly_name(NAME)
            .init_set_process_packet_callback(take_notice)
            .init_set_state_change_callbacks(states)
            .enable(SOON)
            .map_err(text)?;
        Ok(Self { server, client })
    }

    fn ask(&self, question: [u8; 8]) -> Result<[u8; 8], String> {
        let mut answer = [0; 8];
        self.client
            .send_synchronous_request(&question, None, SOON, &mut answer)
            .map_err(text)?;
        Ok(answer)
    }

    /// Sends what a routine is told about, with memory if asked for.
    fn send(&self, what: u8, mdl: Option<Mdl>) -> Verdict {
        let mut packet = self.client.packet_allocate().map_err(text)?;
        packet.set_completion_routine(completed);
        packet
            .send(&[what; 8], mdl, SendFlags::WAIT_FOR_COMPLETION)
            .map_err(text)
    }

    /// Ends both in order.
    pub(super) fn revoke(self) -> Verdict {
        revoke(self)
    }

    /// Ends both, whatever has become of the channel.
    pub(super) fn dispose(self) -> Verdict {
        drop(self.client.disable(SOON).map_err(text)?);
        drop(self.server.disable(SOON).map_err(text)?);
        Ok(())
    }

    /// The channel between them.
    pub(super) fn channel(&self) -> ChannelId {
        self.client.id()
    }

    /// The device that it is of.
    pub(super) fn instance(&self) -> Guid {
        self.client.interface_instance()
    }

    /// What the client's end has done.
    pub(super) fn counters(&self) -> Counters {
        self.client.counters()
    }

    /// The client's end, for a task that looks at it.
    pub(super) fn client(&self) -> Channel<Client> {
        self.client.clone()
    }

    /// Notices of the service's that the client has had.
    pub(super) fn notices(&self) -> u32 {
        self.client.context().notices.load(Ordering::Relaxed)
    }

    /// The service's end, for a task that sends notices.
    pub(super) fn service(&self) -> Channel<Service> {
        self.server.clone()
    }

    /// Asks so many questions that are not answered.
    pub(super) fn leave_open(&self, count: u32) -> Verdict {
        (0..count).try_for_each(|_| self.send(ask::HOLD, None))
    }

    fn held(&self) -> usize {
        self.server.context().held.lock().len()
    }
}

fn take_notice(channel: &Channel<Client>, packet: IncomingPacket<Client>) {
    channel.context().notices.fetch_add(1, Ordering::Relaxed);
    // A notice wants no answer.
    drop(packet.complete(&[]));
}

fn completed(channel: &Channel<Client>, mut packet: OutgoingPacket<Client>, status: Result<(), Error>) {
    let client = channel.context();
    if packet.take_mdl().is_some() {
        client.memory_back.fetch_add(1, Ordering::Relaxed);
    }
    let counter = match status {
        Ok(()) => &client.completed,
        Err(Error::Gone(Gone::Rescinded)) => &client.rescinded,
        Err(_) => &client.other,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Waits for what deferred work brings about, and does nothing itself.
fn await_deferred(what: &str, condition: impl FnMut() -> bool) -> Verdict {
    ensure!(
        task::wait_until(Until::after_ms(5000), condition),
        "waited in vain for deferred work: {what}"
    );
    Ok(())
}

fn join(task: TaskId) -> Verdict {
    await_deferred("a task ends", || task::is_finished(task))
}

const fn question(what: u8, number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [what, 0, 0, 0, a, b, c, d]
}

fn memory_of(byte: impl Fn(usize) -> u8) -> Result<Mdl, String> {
    let buffer = DmaBuffer::allocate(&PLATFORM, LEN).map_err(text)?;
    let bytes: Vec<u8> = (0..LEN).map(byte).collect();
    buffer.write_at(0, &bytes).map_err(text)?;
    Ok(buffer.into())
}

/// The test: every round leaves as much memory free as the one before.
pub(super) fn run() -> Verdict {
    let host = local::host().ok_or("the kernel cannot have a host of its own")?;
    let mut before = None;
    for round in 0..3 {
        once(host)?;
        let free = memory::heap::free_in_all();
        ensure!(
            before.is_none_or(|before| before == free),
            "{before:?} bytes were free after the last round, {free} after round {round}"
        );
        before = Some(free);
    }
    Ok(())
}

fn once(host: &Host) -> Verdict {
    let pair = Pair::open(host)?;
    echo(&pair)?;
    status(&pair)?;
    by_routine(&pair)?;
    external_data(&pair)?;
    gpadl(&pair)?;
    time_out(&pair)?;
    two_tasks(&pair)?;
    pause(&pair)?;
    quota(&pair)?;
    let counters = pair.client.counters();
    ensure!(
        counters.outgoing_outstanding == 0 && counters.dropped == 0 && counters.unknown_completions == 0,
        "the client's counters: {counters:?}"
    );
    revoke(pair)
}

/// Asks once, and compares the answer.
pub(super) fn echo_once(pair: &Pair, number: u32) -> Verdict {
    let answer = pair.ask(question(ask::ECHO, number))?;
    ensure!(answer == question(ask::ECHO, number), "echo {number} is {answer:x?}");
    Ok(())
}

fn echo(pair: &Pair) -> Verdict {
    let start = time::now_ns();
    for number in 0..ROUND_TRIPS {
        echo_once(pair, number)?;
    }
    let each = (time::now_ns() - start) / u64::from(ROUND_TRIPS);
    log::info!("{each} ns for a synchronous request to this kernel and back");
    Ok(())
}

/// The status table has a row for each end, with what it has done.
fn status(pair: &Pair) -> Verdict {
    let report = Report::collect();
    let ours = |device: &&Device| device.name == NAME && device.channel == pair.client.id().0;
    let sent: Vec<u64> = report
        .devices
        .iter()
        .filter(ours)
        .filter_map(|device| Some(device.counters?.packets_sent))
        .collect();
    let number = u64::from(ROUND_TRIPS);
    ensure!(
        sent == [number, number],
        "the status table has rows of the service with {sent:?} packets sent"
    );
    Ok(())
}

/// Signals alone bring packets and completions: nobody polls.
fn by_routine(pair: &Pair) -> Verdict {
    let client = pair.client.context();
    let before = client.completed.load(Ordering::Relaxed);
    for _ in 0..16 {
        pair.send(ask::ECHO, None)?;
    }
    await_deferred("16 completions", || {
        client.completed.load(Ordering::Relaxed) == before + 16
    })
}

/// The service reads what the client lends and writes to it; the memory comes back with the completion.
fn external_data(pair: &Pair) -> Verdict {
    let old = |index: usize| index.to_le_bytes()[0] ^ 0x5a;
    let mdl = memory_of(old)?;
    let mut answer = [0; 8];
    let sent = pair
        .client
        .send_synchronous_request(&[ask::EXTERNAL; 8], Some(mdl), SOON, &mut answer)
        .map_err(text)?;
    let expected: u64 = (0..LEN).map(|index| u64::from(old(index))).sum();
    let sum = u64::from_le_bytes(answer);
    ensure!(
        sum == expected,
        "the service read bytes with the sum {sum}, not {expected}"
    );
    let mdl = sent.mdl.ok_or("the memory did not come back")?;
    let mut bytes = alloc::vec![0; LEN];
    mdl.read_at(0, &mut bytes).map_err(text)?;
    ensure!(
        bytes
            .iter()
            .enumerate()
            .all(|(index, byte)| *byte == old(index).wrapping_add(1)),
        "what the service wrote did not arrive"
    );
    Ok(())
}

/// The service maps memory that the client shares; it cannot be withdrawn before it is unmapped, nor mapped after that.
fn gpadl(pair: &Pair) -> Verdict {
    let mdl = memory_of(|index| b'a' + (index.to_le_bytes()[0] & 7))?;
    let gpadl = pair
        .client
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON)
        .map_err(text)?;
    let handle = gpadl.handle();
    let first = pair.ask(question(ask::MAP, handle))?;
    ensure!(&first == b"abcdefgh", "the service saw {first:x?}");
    let mut written = [0; 8];
    mdl.read_at(4096, &mut written).map_err(text)?;
    ensure!(&written == b"service!", "the client saw {written:x?}");
    let again = pair.server.map_gpadl(handle, GpadlAccess::ReadWrite).err();
    ensure!(again == Some(Error::AlreadyMapped), "mapped twice: {again:?}");
    let gpadl = match gpadl.delete(Deadline::millis(20)) {
        Err(refused) if refused.error == Error::TimedOut => refused.given,
        other => return Err(format!("withdrawn while mapped: {other:?}")),
    };
    pair.ask(question(ask::UNMAP, 0))?;
    drop(gpadl.delete(SOON).map_err(text)?);
    let late = pair.server.map_gpadl(handle, GpadlAccess::ReadWrite).err();
    ensure!(
        late == Some(Error::UnknownGpadl),
        "mapped after it was withdrawn: {late:?}"
    );
    Ok(())
}

/// A request that is not answered ends by its deadline; its memory stays lent until the late completion.
fn time_out(pair: &Pair) -> Verdict {
    let before = pair.client.counters();
    let start = time::now_ns();
    let mut answer = [0; 8];
    let deadline = Deadline::millis(20);
    let refused = pair
        .client
        .send_synchronous_request(&[ask::HOLD; 8], Some(memory_of(|_| 7)?), deadline, &mut answer)
        .err()
        .ok_or("a request that nobody answers was answered")?;
    let took = time::now_ns() - start;
    ensure!(
        refused.error == Error::Cancelled && refused.given.is_none(),
        "{refused:?} instead of a time-out that keeps the memory"
    );
    ensure!(took >= 20_000_000, "timed out after {took} ns instead of 20000000");
    ensure!(pair.held() == 1, "the service holds {} packets", pair.held());
    pair.ask(question(ask::RELEASE, 0))?;
    await_deferred("the late completion", || {
        pair.client.counters().late_completions == before.late_completions + 1
    })?;
    let outstanding = pair.client.counters().outgoing_outstanding;
    ensure!(outstanding == 0, "{outstanding} requests are outstanding");
    Ok(())
}

/// One task waits for ever, another one has its answer sent.
fn two_tasks(pair: &Pair) -> Verdict {
    let answered = Arc::new(AtomicU32::new(0));
    let (client, flag) = (pair.client.clone(), answered.clone());
    let waiting = task::spawn("kmcl-waits", move || {
        let mut answer = [0xff; 8];
        let sent = client.send_synchronous_request(&[ask::HOLD; 8], None, Deadline::Never, &mut answer);
        if sent.is_ok_and(|sent| sent.len == 8) && answer == [0; 8] {
            flag.store(1, Ordering::Relaxed);
        }
    })
    .map_err(text)?;
    await_deferred("the service holds the packet", || pair.held() == 1)?;
    ensure!(!task::is_finished(waiting), "the task does not wait");
    pair.ask(question(ask::RELEASE, 0))?;
    join(waiting)?;
    ensure!(
        answered.load(Ordering::Relaxed) == 1,
        "the waiting task was not answered"
    );
    Ok(())
}

/// A paused end delivers nothing, and everything once it is started again.
fn pause(pair: &Pair) -> Verdict {
    let client = pair.client.context();
    let before = client.completed.load(Ordering::Relaxed);
    let suspends = pair.server.context().suspends.load(Ordering::Relaxed);
    pair.server.pause(SOON).map_err(text)?;
    for _ in 0..4 {
        pair.send(ask::ECHO, None)?;
    }
    time::sleep_ns(10_000_000);
    let meanwhile = client.completed.load(Ordering::Relaxed);
    ensure!(
        meanwhile == before,
        "{} answers from a paused service",
        meanwhile - before
    );
    ensure!(
        pair.server.context().suspends.load(Ordering::Relaxed) == suspends + 1,
        "the suspend callback was not called once"
    );
    pair.server.start(SOON).map_err(text)?;
    await_deferred("4 completions", || {
        client.completed.load(Ordering::Relaxed) == before + 4
    })
}

/// No more packets are delivered than the quota says, until one is completed.
fn quota(pair: &Pair) -> Verdict {
    let client = pair.client.context();
    let before = client.completed.load(Ordering::Relaxed);
    pair.server.set_transaction_quota(2).map_err(text)?;
    for _ in 0..5 {
        pair.send(ask::HOLD, None)?;
    }
    await_deferred("2 packets", || pair.held() == 2)?;
    time::sleep_ns(5_000_000);
    ensure!(pair.held() == 2, "{} packets with a quota of 2", pair.held());
    for expected in [2, 4] {
        release(pair.server.context());
        await_deferred("the next packets", || {
            client.completed.load(Ordering::Relaxed) == before + expected && pair.held() == 2.min(5 - expected as usize)
        })?;
    }
    release(pair.server.context());
    await_deferred("the last completion", || {
        client.completed.load(Ordering::Relaxed) == before + 5
    })?;
    pair.server.set_transaction_quota(64).map_err(text)
}

/// The service takes its offer back while requests wait, one with memory, one by a task without a deadline: all end.
fn revoke(pair: Pair) -> Verdict {
    pair.server.pause(SOON).map_err(text)?;
    let memory_back = pair.client.context().memory_back.load(Ordering::Relaxed);
    pair.send(ask::ECHO, None)?;
    pair.send(ask::EXTERNAL, Some(memory_of(|_| 9)?))?;
    let ended = Arc::new(AtomicU32::new(0));
    let (client, flag) = (pair.client.clone(), ended.clone());
    let waiting = task::spawn("kmcl-revoked", move || {
        let sent = client.send_synchronous_request(&[ask::ECHO; 8], None, Deadline::Never, &mut [0; 8]);
        if sent.is_err_and(|refused| refused.error == Error::Gone(Gone::Rescinded)) {
            flag.store(1, Ordering::Relaxed);
        }
    })
    .map_err(text)?;
    await_deferred("three requests", || pair.client.counters().outgoing_outstanding == 3)?;
    let Pair { server, client } = pair;
    let server = server.disable(SOON).map_err(text)?;
    join(waiting)?;
    ensure!(ended.load(Ordering::Relaxed) == 1, "the waiting task was not told");
    let seen = client.context();
    await_deferred("two routines", || seen.rescinded.load(Ordering::Relaxed) == 2)?;
    ensure!(
        seen.memory_back.load(Ordering::Relaxed) == memory_back + 1
            && seen.other.load(Ordering::Relaxed) == 0
            && seen.closed.load(Ordering::Relaxed) == 1,
        "the memory did not come back, or the client was not told once"
    );
    let late = client.send(&[0; 8]);
    ensure!(late == Err(Error::Gone(Gone::Rescinded)), "sent to nobody: {late:?}");
    drop(client.disable(SOON).map_err(text)?);
    // The same service again, for the next client.
    let server = server.enable(SOON).map_err(text)?;
    drop(server.disable(SOON).map_err(text)?);
    Ok(())
}
