//! A driver that does real work on a channel of the callback API, and counts how each of its requests ends.

use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use core::task::{Context, Poll, Waker};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arbitrary::Arbitrary;
use vmbus::Deadline;
use vmbus::kmcl::{
    Channel, DisabledChannel, Error, Gone, Gpadl, GpadlAccess, IncomingPacket, OutgoingPacket, Request, SendFlags,
    StateChangeCallbacks, SynchronousRequest,
};
use vmbus::memory::{DmaBuffer, Mdl};
use vmbus::platform::Platform;

use crate::observe::{note, note_counter};
use crate::world::{PATIENCE, SOON, World};

/// What the packet callback does with packets.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Habit {
    Answer,
    Hold,
    Drop,
    Fail,
    Defer,
    /// Sends something from within the callback, and asks for what it may not have there.
    Talk,
    /// Looks at all memory that is described.
    Touch,
}

/// What the driver knows of its channel.
#[derive(Default)]
pub(crate) struct Log {
    /// For each request: how often it ended.
    ends: Mutex<Vec<u32>>,
    held: Mutex<Vec<IncomingPacket<Self>>>,
    habit: AtomicU8,
    /// Packets sent from within the callback.
    said: AtomicU32,
}

pub(crate) type End = Channel<Log>;
pub(crate) type DisabledEnd = DisabledChannel<Log>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    fn begin(&self) -> usize {
        let mut ends = locked(&self.ends);
        ends.push(0);
        ends.len() - 1
    }

    fn ended(&self, request: usize) {
        let mut ends = locked(&self.ends);
        ends[request] += 1;
        assert_eq!(ends[request], 1, "request {request} ended again");
    }

    fn take_held(&self, which: u8) -> Option<IncomingPacket<Self>> {
        let mut held = locked(&self.held);
        let index = usize::from(which).checked_rem(held.len())?;
        Some(held.swap_remove(index))
    }
}

fn on_packet(channel: &End, mut packet: IncomingPacket<Log>) {
    let log = channel.context();
    let mut answer = [0; 64];
    for (target, source) in answer.iter_mut().zip(packet.payload()) {
        *target = *source;
    }
    assert!(packet.payload().len() <= MAX_PACKET, "no longer than agreed on");
    match log.habit.load(Ordering::Relaxed) {
        0 => finish(packet, &answer),
        1 if locked(&log.held).len() < 12 => locked(&log.held).push(packet),
        1 | 2 => drop(packet),
        3 => packet.fail(),
        4 => {
            if let Err(refused) = packet.defer_to_passive() {
                finish(refused.given, &[]);
            }
        }
        5 => {
            // A device that answers each packet with one would keep both busy for ever, rightly.
            if log.said.fetch_add(1, Ordering::Relaxed) < MOST_SAID {
                met(channel.send(&answer));
            }
            let mut buffer = [0; 8];
            let asked = channel.send_synchronous_request(&answer, None, SOON, &mut buffer);
            assert!(asked.is_err(), "it would wait for the callback that it was called from");
            assert!(channel.pause(SOON).is_err(), "it would wait for its own callback");
            finish(packet, &answer);
        }
        _ => {
            touch(&mut packet);
            finish(packet, &answer);
        }
    }
}

fn finish(packet: IncomingPacket<Log>, answer: &[u8]) {
    if let Err(refused) = packet.complete(answer) {
        note("kmcl::Error", &refused.error);
        // Dropped, it is completed empty.
    }
}

fn touch(packet: &mut IncomingPacket<Log>) {
    if let Ok((_, ranges)) = packet.transfer_pages(10_000) {
        for (offset, len) in ranges {
            assert!(u64::from(offset) + u64::from(len) <= 10_000);
        }
    }
    match packet.external_data() {
        Ok(data) => {
            let mut bytes = vec![0; data.len().min(300)];
            let _ = (
                data.read_at(0, &mut bytes),
                data.write_at(data.len() / 2, &bytes),
                data.chain_len(),
            );
            assert!(data.read_at(data.len(), &mut [0]).is_err(), "not past its end");
        }
        Err(error) => note("kmcl::Error", &error),
    }
}

fn on_completion(channel: &End, mut packet: OutgoingPacket<Log>, status: Result<(), Error>) {
    assert!(packet.completion().len() <= MAX_PACKET.next_multiple_of(8));
    drop(packet.take_mdl());
    channel.context().ended(packet.pointer());
    met(status);
}

pub(crate) const MAX_PACKET: usize = 256;

const MOST_SAID: u32 = 40;

/// Fits an end with all callbacks and with small limits.
pub(crate) fn fit(channel: DisabledEnd, quota: u8) -> DisabledEnd {
    let callbacks = StateChangeCallbacks::new()
        .opened(|_: &End| Ok(()))
        .started(|_| ())
        .suspend(|channel: &End| locked(&channel.context().held).clear())
        .closed(|_| ());
    let channel = channel
        .init_set_state_change_callbacks(callbacks)
        .init_set_process_packet_callbacks(on_packet, |_, _| ())
        .init_set_ring_buffer_page_count(1, 1)
        .init_set_transaction_quota(u32::from(quota % 8) + 1)
        .init_set_maximum_packet_count(6)
        .init_set_client_context_size(8);
    let channel = channel
        .init_set_maximum_packet_size(MAX_PACKET)
        .map_err(|refused| refused.error);
    let channel = channel.and_then(|channel| {
        channel
            .init_set_maximum_external_data(8192, 2)
            .map_err(|refused| refused.error)
    });
    match channel {
        Ok(channel) => channel,
        Err(error) => panic!("the limits are sound: {error}"),
    }
}

/// What the driver does next.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum DriverStep {
    Send {
        len: u8,
        times: u8,
    },
    Packet {
        len: u8,
        memory: Option<u16>,
        waits: bool,
        own: bool,
    },
    Ask {
        len: u8,
        memory: Option<u16>,
        immediate: bool,
        room: u8,
    },
    Future {
        len: u8,
        memory: Option<u16>,
    },
    PollFutures,
    DropFuture(u8),
    Transfer {
        ranges: Vec<(u32, u32)>,
        len: u8,
    },
    Release {
        which: u8,
        how: u8,
    },
    Behave(Habit),
    Share(u16),
    Delete(u8),
    Map(u8),
    Pause,
    Start,
    Quota(u8),
    Process,
    Passive,
    Counters,
}

/// A driver's end of a channel, with what it has under way.
pub(crate) struct Driver {
    world: &'static World,
    pub(crate) channel: End,
    futures: Vec<Request<'static, Log>>,
    shared: Vec<Gpadl<Log>>,
    /// Futures that came to an end, and how many were begun.
    began: u64,
    is_paused: bool,
}

fn met<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|error| met_error(*error)).ok()
}

fn met_error(error: Error) {
    note("kmcl::Error", &error);
    if let Error::Gone(gone) = error {
        note("Gone", &gone);
    }
}

static PAYLOAD: [u8; 300] = [0x3c; 300];

impl Driver {
    pub(crate) const fn new(world: &'static World, channel: End) -> Self {
        Self {
            world,
            channel,
            futures: Vec::new(),
            shared: Vec::new(),
            began: 0,
            is_paused: false,
        }
    }

    fn memory(&self, len: Option<u16>) -> Option<Mdl> {
        let platform: &'static dyn Platform = self.world.platform;
        let buffer = DmaBuffer::allocate(platform, usize::from(len? % 13_000)).ok()?;
        Some(buffer.into())
    }

    pub(crate) fn act(&mut self, step: &DriverStep) {
        let world = self.world;
        match step {
            DriverStep::Send { len, times } => {
                for _ in 0..=*times % 32 {
                    met(self.channel.send(&PAYLOAD[..usize::from(*len)]));
                }
            }
            DriverStep::Packet {
                len,
                memory,
                waits,
                own,
            } => self.packet(usize::from(*len), *memory, *waits, *own),
            DriverStep::Ask {
                len,
                memory,
                immediate,
                room,
            } => {
                let mut room = vec![0; usize::from(*room)];
                let request = SynchronousRequest {
                    payload: &PAYLOAD[..usize::from(*len)],
                    mdl: self.memory(*memory),
                    flags: SendFlags::WAIT_FOR_COMPLETION,
                    completion: Some(&mut room),
                    deadline: if *immediate { Deadline::IMMEDIATE } else { SOON },
                };
                let asked = world.within(PATIENCE, || self.channel.send_synchronous(request));
                met(asked.map_err(|refused| refused.error));
            }
            DriverStep::Future { len, memory } => {
                if self.futures.len() < 4 {
                    let payload = &PAYLOAD[..usize::from(*len)];
                    self.futures.push(self.channel.request(payload, self.memory(*memory)));
                    self.began += 1;
                    self.poll_futures();
                }
            }
            DriverStep::PollFutures => self.poll_futures(),
            DriverStep::DropFuture(which) => {
                if let Some(index) = usize::from(*which).checked_rem(self.futures.len()) {
                    drop(self.futures.swap_remove(index));
                }
            }
            DriverStep::Transfer { ranges, len } => {
                let payload = &PAYLOAD[..usize::from(*len)];
                met(self
                    .channel
                    .send_transfer_pages(3, ranges.get(..40).unwrap_or(ranges), payload));
            }
            DriverStep::Release { which, how } => self.release(*which, *how),
            DriverStep::Behave(habit) => self.channel.context().habit.store(*habit as u8, Ordering::Relaxed),
            DriverStep::Share(len) => self.share(*len),
            DriverStep::Delete(which) => {
                if let Some(index) = usize::from(*which).checked_rem(self.shared.len()) {
                    let gpadl = self.shared.swap_remove(index);
                    let deleted = world.within(PATIENCE, || gpadl.delete(SOON));
                    met(deleted.map_err(|refused| refused.error));
                }
            }
            DriverStep::Map(handle) => {
                if let Some(mapped) = met(self.channel.map_gpadl(u32::from(*handle), GpadlAccess::ReadWrite)) {
                    let mut bytes = [0; 64];
                    let _ = (mapped.read_at(0, &mut bytes), mapped.write_at(mapped.len() / 2, &bytes));
                    assert!(mapped.read_at(mapped.len(), &mut [0]).is_err(), "not past its end");
                }
            }
            DriverStep::Pause => {
                self.is_paused = met(world.within(PATIENCE, || self.channel.pause(SOON))).is_some();
            }
            DriverStep::Start => {
                met(world.within(PATIENCE, || self.channel.start(SOON)));
            }
            DriverStep::Quota(quota) => {
                met(self.channel.set_transaction_quota(u32::from(*quota % 16)));
            }
            DriverStep::Process => self.channel.process(),
            DriverStep::Passive => self.channel.process_at_passive(),
            DriverStep::Counters => {
                let _ = (
                    self.channel.counters().iter().count(),
                    self.channel.is_running(),
                    self.channel.id(),
                );
            }
        }
    }

    fn packet(&self, len: usize, memory: Option<u16>, waits: bool, own: bool) {
        let packet = if own {
            self.channel.packet_initialize()
        } else {
            self.channel.packet_allocate()
        };
        let Some(mut packet) = met(packet) else { return };
        let log = self.channel.context();
        let request = log.begin();
        packet.set_pointer(request);
        packet.set_completion_routine(on_completion);
        let flags = if waits {
            SendFlags::WAIT_FOR_COMPLETION
        } else {
            SendFlags::empty()
        };
        if let Err(refused) = packet.send(&PAYLOAD[..len], self.memory(memory), flags) {
            met_error(refused.error);
            // It came back: this is its end.
            log.ended(request);
        }
    }

    fn poll_futures(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        self.futures
            .retain_mut(|future| match Pin::new(future).poll(&mut context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    met(result.map_err(|refused| refused.error));
                    false
                }
            });
    }

    fn release(&self, which: u8, how: u8) {
        if let Some(mut packet) = self.channel.context().take_held(which) {
            match how % 4 {
                0 => finish(packet, &PAYLOAD[..usize::from(how)]),
                1 => drop(packet),
                2 => packet.fail(),
                _ => {
                    touch(&mut packet);
                    packet.client_context().fill(how);
                    finish(packet, &[]);
                }
            }
        }
    }

    fn share(&mut self, len: u16) {
        if self.shared.len() >= 4 {
            return;
        }
        // QEMU takes whole pages only.
        let pages = len % 10_000 / 4096 + 1;
        let Some(mdl) = self.memory(Some(pages * 4096)) else {
            return;
        };
        let shared = self.world.within(PATIENCE * 2, || {
            self.channel
                .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON)
        });
        self.shared.extend(met(shared));
    }

    /// Ends the channel, and checks that every request has ended once. What was disabled comes back.
    pub(crate) fn end(self) -> Option<DisabledEnd> {
        let Self {
            world,
            channel,
            mut futures,
            shared,
            ..
        } = self;
        let log = channel.context();
        log.habit.store(Habit::Answer as u8, Ordering::Relaxed);
        while let Some(packet) = log.take_held(0) {
            drop(packet);
        }
        drop(futures.pop());
        let counters = channel.counters();
        for (name, value) in counters.iter() {
            note_counter("kmcl", name, value);
        }
        // The futures that are left end with the channel.
        let watcher = channel.clone();
        let disabled = world.within(PATIENCE * 3, || channel.disable(SOON));
        let disabled = match disabled {
            Ok(disabled) => Some(disabled),
            Err(refused) => {
                met_error(refused.error);
                let again = world.within(PATIENCE * 3, || refused.given.disable(SOON));
                met(again.map_err(|refused| refused.error))
            }
        };
        let mut context = Context::from_waker(Waker::noop());
        for future in &mut futures {
            // One that was answered just before is done; all others are over with the channel.
            match Pin::new(future).poll(&mut context) {
                Poll::Ready(Err(refused)) => met_error(refused.error),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => panic!("a request outlives its channel"),
            }
        }
        for (request, ends) in locked(&watcher.context().ends).iter().enumerate() {
            assert_eq!(*ends, 1, "request {request} ended {ends} times");
        }
        drop((futures, shared, watcher));
        disabled
    }

    /// Whether the channel has come to an end by itself.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.channel.send(&[]), Err(Error::Gone(Gone::Corrupt)))
    }
}
