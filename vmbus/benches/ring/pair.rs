//! A client and a server on a host in this process, on the leanest platform that there can be: what is measured over them is
//! the crate's own work. For the benchmarks and for the tests that count.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::alloc::{Layout, alloc_zeroed, dealloc};

use vmbus::host::Host;
use vmbus::kmcl::{Channel, Instance, OutgoingPacket, SendFlags};
use vmbus::memory::{Gpa, PAGE_SIZE};
use vmbus::platform::{Callers, NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex, TaskId};
use vmbus::protocol::Guid;
use vmbus::{Deadline, Instant};

const CLASS: Guid = Guid::literal("5a17e5a1-0000-4000-8000-0000000bec40");
/// What a server says whose work is not looked at.
static ANSWER: [u8; 64] = [0xa5; 64];
const SOON: Deadline = Deadline::seconds(5);

/// Pages from the heap, at their own addresses; one task; work is deferred to whoever calls `process`.
#[derive(Debug)]
pub(crate) struct Lean(Callers);

/// The platform of which all calls come one at a time, as they do here.
pub(crate) static LEAN: Lean = Lean(Callers::OneAtATime);

/// The same, with that promise or another one.
pub(crate) fn lean(callers: Callers) -> &'static Lean {
    static ANYWHERE: Lean = Lean(Callers::Anywhere);
    static ONE_PROCESSOR: Lean = Lean(Callers::OneProcessor);
    match callers {
        Callers::Anywhere => &ANYWHERE,
        Callers::OneProcessor => &ONE_PROCESSOR,
        Callers::OneAtATime => &LEAN,
    }
}

fn layout(page_count: usize) -> Layout {
    Layout::from_size_align(page_count * PAGE_SIZE, PAGE_SIZE).expect("a few pages")
}

// SAFETY: pages are zeroed heap blocks of the caller's alone; nothing but this process reads the addresses. What is promised of
// the callers is kept by the users of this module: each pair stays on the thread that has made it.
unsafe impl Platform for Lean {
    fn allocate_pages(&self, page_count: usize, _: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        if page_count == 0 {
            return Err(OutOfPages { page_count });
        }
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { alloc_zeroed(layout(page_count)) }).ok_or(OutOfPages { page_count })
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        // SAFETY: allocated above with this layout, by the caller's promise.
        unsafe { dealloc(base.as_ptr(), layout(page_count)) };
    }

    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        Ok(Gpa::new(address.addr().get() as u64))
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(0)
    }

    fn current_task(&self) -> TaskId {
        TaskId(0)
    }

    fn schedule_deferred(&self, _: ProcessorIndex) {}

    fn callers(&self) -> Callers {
        self.0
    }
}

/// What an end has seen; `count` are packets at the server, completions at the client.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) count: AtomicU64,
    pub(crate) sum: AtomicU64,
}

impl Seen {
    fn add(&self, payload: &[u8]) {
        self.one();
        self.sum
            .fetch_add(payload.iter().map(|&byte| u64::from(byte)).sum(), Ordering::Relaxed);
    }

    /// Without a locked instruction: an end's callbacks never run at the same time.
    fn one(&self) {
        self.count
            .store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(crate) fn take(&self) -> (u64, u64) {
        (
            self.count.swap(0, Ordering::Relaxed),
            self.sum.swap(0, Ordering::Relaxed),
        )
    }
}

type End = Seen;

/// A client and a server, connected.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) host: Host,
    pub(crate) server: Channel<End>,
    pub(crate) client: Channel<End>,
}

/// What the server answers with, and whether both ends look at the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// They do, and the server sends back what came: for the runs that verify.
    Verify,
    /// They take what comes, and the server has its answer ready: for the runs that are timed, whose work is the crate's.
    Pass,
}

impl Pair {
    pub(crate) fn on(platform: &'static Lean, look: Look) -> Self {
        let start = std::time::Instant::now();
        let clock = move || {
            Instant::from_reference_units(1 + 10 * u64::try_from(start.elapsed().as_micros()).unwrap_or(1 << 50))
        };
        let host = Host::new(platform, clock).expect("memory");
        let server = Channel::allocate_server_with(&host, End::default())
            .expect("memory")
            .init_set_target(CLASS, Instance::Only(CLASS))
            .init_set_maximum_packet_size(2048)
            .expect("a size")
            .init_set_transaction_quota(512)
            .init_set_process_packet_callback(move |channel: &Channel<End>, packet| match look {
                Look::Verify => {
                    channel.context().add(packet.payload());
                    let mut answer = [0; 64];
                    let len = packet.payload().len().min(answer.len());
                    answer[..len].copy_from_slice(&packet.payload()[..len]);
                    packet.complete(&answer[..len]).expect("the answer fits");
                }
                Look::Pass => {
                    channel.context().one();
                    packet.complete(&ANSWER).expect("the answer fits");
                }
            })
            .enable(SOON)
            .expect("an offer");
        let client = Channel::allocate_client_with(&host, End::default())
            .expect("memory")
            .init_set_target(CLASS, Instance::Any)
            .init_set_ring_buffer_page_count(64, 64)
            .init_set_maximum_packet_size(2048)
            .expect("a size")
            .init_set_maximum_packet_count(512)
            .enable(SOON)
            .expect("an open channel");
        host.process();
        let pair = Self { host, server, client };
        pair.server.context().take();
        pair
    }

    /// Sends one packet that wants a completion.
    pub(crate) fn ask(&self, payload: &[u8], routine: fn(&Channel<End>, OutgoingPacket<End>, Outcome)) {
        let mut packet = self.client.packet_allocate().expect("a free packet");
        packet.set_completion_routine(routine);
        packet
            .send(payload, None, SendFlags::WAIT_FOR_COMPLETION)
            .expect("there is room");
    }

    /// One round trip: sent, processed, completed, and the routine called.
    pub(crate) fn round_trip(&self, payload: &[u8]) {
        self.ask(payload, count);
        self.host.process();
    }

    /// `batch` packets that want no completion, and one `process` for them all.
    pub(crate) fn stream(&self, payload: &[u8], batch: usize) {
        for _ in 0..batch {
            self.client.send(payload).expect("there is room");
        }
        self.host.process();
    }

    /// `batch` packets that want a completion, and one `process` for them all.
    pub(crate) fn ask_many(&self, payload: &[u8], batch: usize) {
        for _ in 0..batch {
            self.ask(payload, count);
        }
        self.host.process();
    }

    /// Checks that what arrives, there and back, is what was sent.
    pub(crate) fn verify(platform: &'static Lean, payload: &[u8]) {
        let pair = Self::on(platform, Look::Verify);
        let sum: u64 = payload.iter().map(|&byte| u64::from(byte)).sum();
        for _ in 0..10_000 {
            pair.ask(payload, |channel, packet, outcome| {
                outcome.expect("an answer");
                channel.context().add(packet.completion());
            });
            pair.host.process();
        }
        assert_eq!(pair.server.context().take(), (10_000, 10_000 * sum));
        assert_eq!(pair.client.context().take(), (10_000, 10_000 * sum));
    }
}

type Outcome = Result<(), vmbus::kmcl::Error>;

fn count(channel: &Channel<End>, _: OutgoingPacket<End>, outcome: Outcome) {
    outcome.expect("an answer");
    channel.context().one();
}
