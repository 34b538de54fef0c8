//! Both ends of a channel in one kernel, on a heap and a platform of which each single allocation fails once, and with a server that
//! revokes at each step and never answers: every call answers with an error or does without, and nothing is left behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]
#![expect(unsafe_code, reason = "a platform whose pages are not of the heap that is counted")]

use std::alloc::{GlobalAlloc as _, Layout, System};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vmbus::host::Host;
use vmbus::kmcl::{
    Channel, DisabledChannel, Error, GpadlAccess, IncomingPacket, Instance, OutgoingPacket, Refused, SendFlags,
    StateChangeCallbacks,
};
use vmbus::memory::{DmaBuffer, DmaError, Gpa, Mdl, PAGE_SIZE};
use vmbus::platform::{NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex};
use vmbus::protocol::Guid;
use vmbus::testing::TestHeap;
use vmbus::{Deadline, Instant};

#[global_allocator]
static HEAP: TestHeap = TestHeap;

/// A platform whose pages come from the system's heap, past the one that is counted.
struct Pages {
    live: AtomicUsize,
    blocks: AtomicU64,
    fail_at: AtomicU64,
    /// Every look at it takes 100 ns.
    clock: AtomicU64,
}

static PAGES: Pages = Pages::new();
/// For the test of servers that revoke.
static OTHER_PAGES: Pages = Pages::new();

impl Pages {
    const fn new() -> Self {
        Self {
            live: AtomicUsize::new(0),
            blocks: AtomicU64::new(0),
            fail_at: AtomicU64::new(u64::MAX),
            clock: AtomicU64::new(1),
        }
    }

    fn live_pages(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    fn allocations(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }

    fn fail_allocation(&self, number: u64) {
        self.fail_at.store(self.allocations() + number, Ordering::SeqCst);
    }

    fn stop_failing(&self) {
        self.fail_at.store(u64::MAX, Ordering::SeqCst);
    }
}

fn layout(page_count: usize) -> Layout {
    Layout::from_size_align(page_count * PAGE_SIZE, PAGE_SIZE).unwrap()
}

// SAFETY: pages are zeroed blocks of the system's heap, each owned by one caller until released; addresses are themselves.
unsafe impl Platform for Pages {
    fn allocate_pages(&self, page_count: usize, _: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        if self.blocks.fetch_add(1, Ordering::SeqCst) == self.fail_at.load(Ordering::SeqCst) {
            return Err(OutOfPages { page_count });
        }
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { System.alloc_zeroed(layout(page_count)) });
        self.live.fetch_add(page_count, Ordering::SeqCst);
        base.ok_or(OutOfPages { page_count })
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        self.live.fetch_sub(page_count, Ordering::SeqCst);
        // SAFETY: allocated above, with this layout.
        unsafe { System.dealloc(base.as_ptr(), layout(page_count)) };
    }

    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        Ok(Gpa::new(address.addr().get() as u64))
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(0)
    }

    fn schedule_deferred(&self, _: ProcessorIndex) {}
}

const CLASS: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000fa17");
const INSTANCE: Guid = Guid::literal("5a17e5a1-0000-4000-8000-000000000001");
const SOON: Deadline = Deadline::seconds(5);

/// The handle that the server is to map with the next packet.
static TO_MAP: Mutex<Option<u32>> = Mutex::new(None);

fn serve(channel: &Channel, mut packet: IncomingPacket<()>) {
    if packet.has_external_data() {
        let data = packet.external_data().unwrap();
        data.write_at(0, b"written").unwrap();
    }
    if let Some(handle) = TO_MAP.lock().unwrap().take() {
        // Without memory for the mapping the client finds nothing written.
        if let Ok(mapped) = channel.map_gpadl(handle, GpadlAccess::ReadWrite) {
            mapped.write_at(0, b"mapped").unwrap();
        }
    }
    packet.complete(b"answer").unwrap();
}

fn done(_: &Channel, mut packet: OutgoingPacket<()>, status: Result<(), Error>) {
    drop(packet.take_mdl());
    assert!(matches!(status, Ok(()) | Err(Error::Gone(_))), "{status:?}");
}

fn memory(platform: &'static Pages) -> Result<Mdl, Error> {
    DmaBuffer::allocate(platform, 5000)
        .map(Mdl::from)
        .map_err(|error| match error {
            DmaError::OutOfMemory(error) => error.into(),
            DmaError::OutOfPages(error) => error.into(),
            other => panic!("{other}"),
        })
}

fn given<T>(refused: Refused<T>) -> Error {
    refused.error
}

fn server(host: &Host) -> Result<DisabledChannel, Error> {
    let callbacks = StateChangeCallbacks::new()
        .opened(|_| Ok(()))
        .suspend(|_| ())
        .closed(|_| ());
    Channel::allocate_server(host)?
        .init_set_target_interface_id(CLASS, INSTANCE)
        .init_set_state_change_callbacks(callbacks)
        .init_set_process_packet_callbacks(serve, |_, _| ())
        .init_set_save_restore_packet_callbacks(
            |_, _, buffer| match buffer.len() {
                0 => Err(Error::BufferTooSmall { required: 9 }),
                len => Ok(len),
            },
            |channel, library, _| Ok(channel.packet_allocate()?.restore(library)?),
        )
        .init_set_maximum_packet_size(256)
        .map_err(given)
}

fn client(host: &Host) -> Result<DisabledChannel, Error> {
    Channel::allocate_client(host)?
        .init_set_target(CLASS, Instance::Any)
        .init_set_bounce_buffer_sizes(2, 100)
        .init_set_client_context_size(16)
        .init_set_maximum_packet_count(8)
        .init_set_process_packet_callback(|_, packet| packet.complete(&[]).unwrap())
        .init_set_pnp_failure_callback(|_, _| ())
        .init_set_maximum_packet_size(256)
        .map_err(given)
}

/// Everything that allocates, once.
fn everything(platform: &'static Pages) -> Result<(), Error> {
    let clock = || Instant::from_reference_units(platform.clock.fetch_add(1, Ordering::Relaxed));
    let host = Host::new(platform, clock)?;
    let first = server(&host)?.enable(SOON).map_err(given)?;
    let client = client(&host)?.enable(SOON).map_err(given)?;

    let mut answer = [0; 16];
    let mdl = memory(platform)?;
    let sent = client
        .send_synchronous_request(b"look", Some(mdl), SOON, &mut answer)
        .map_err(given)?;
    let mut bytes = [0; 7];
    sent.mdl.unwrap().read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"written");

    let mut packet = client.packet_initialize()?;
    packet.set_completion_routine(done);
    packet
        .send(b"own", Some(memory(platform)?), SendFlags::WAIT_FOR_COMPLETION)
        .map_err(given)?;
    client.send(b"notice")?;
    client.set_transaction_quota(100)?;
    drop(client.allocate_bounce_buffer(50)?);

    let shared = memory(platform)?;
    let gpadl = client.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &shared, 0, 0, SOON)?;
    *TO_MAP.lock().unwrap() = Some(gpadl.handle());
    client
        .send_synchronous_request(b"map", None, SOON, &mut answer)
        .map_err(given)?;
    drop(gpadl.delete(SOON).map_err(given)?);

    first
        .packet_allocate()?
        .send(b"saved", None, SendFlags::WAIT_FOR_COMPLETION)
        .map_err(given)?;
    first.pause(SOON)?;
    let mut saved = [0; 512];
    let len = first.save_begin()?.save_continue(&mut saved)?.filled();
    // The disabled channel is the next server.
    let second = first.hand_over(SOON).map_err(given)?.enable(SOON).map_err(given)?;
    let _ = second.restore_from_buffer(&saved[..len])?;
    second.start(SOON)?;
    client
        .send_synchronous_request(b"again", None, SOON, &mut answer)
        .map_err(given)?;
    drop(client.disable(SOON).map_err(given)?);
    drop(second.disable(SOON).map_err(given)?);
    Ok(())
}

#[test]
fn whatever_allocation_fails_nothing_hangs_and_nothing_is_left_behind() {
    let platform = &PAGES;
    // What is allocated once, by the standard library too, does not count.
    everything(platform).unwrap();
    assert_eq!(platform.live_pages(), 0);
    let mut refused = 0;
    for number in 0.. {
        let before = TestHeap::live();
        TestHeap::fail_allocation(number);
        let outcome = everything(platform);
        let was_ahead = TestHeap::stop_failing();
        *TO_MAP.lock().unwrap() = None;
        assert_eq!(
            TestHeap::live(),
            before,
            "heap, after allocation {number} failed: {outcome:?}"
        );
        assert_eq!(
            platform.live_pages(),
            0,
            "pages, after allocation {number} failed: {outcome:?}"
        );
        if was_ahead {
            assert_eq!(outcome, Ok(()));
            assert!(number > 50, "only {number} allocations");
            break;
        }
        refused += u64::from(outcome.is_err());
        assert!(
            matches!(outcome, Ok(()) | Err(Error::OutOfMemory(_) | Error::Refused(_))),
            "allocation {number}: {outcome:?}"
        );
    }
    assert!(refused > 50, "{refused} calls were refused");

    let blocks = platform.allocations();
    everything(platform).unwrap();
    let blocks = platform.allocations() - blocks;
    for number in 0..blocks {
        let before = TestHeap::live();
        platform.fail_allocation(number);
        let outcome = everything(platform);
        platform.stop_failing();
        *TO_MAP.lock().unwrap() = None;
        assert!(
            matches!(outcome, Err(Error::OutOfPages(_))),
            "pages {number}: {outcome:?}"
        );
        assert_eq!(platform.live_pages(), 0, "after {outcome:?}");
        assert_eq!(TestHeap::live().0, before.0, "heap, after pages {number} failed");
    }
    assert!(blocks >= 5, "only {blocks} blocks of pages");
}

/// The server that revokes, and the packets that it does not answer.
static SERVER: Mutex<Option<Channel>> = Mutex::new(None);
static HELD: Mutex<Vec<IncomingPacket<()>>> = Mutex::new(Vec::new());

fn revoke() {
    let server = SERVER.lock().unwrap().take();
    if let Some(server) = server {
        drop(server.disable(SOON).unwrap());
    }
}

/// A client uses a channel in every way; at `step` its server takes the offer back.
fn revoked_at(platform: &'static Pages, step: &'static str) -> Result<(), Error> {
    let clock = || Instant::from_reference_units(platform.clock.fetch_add(1, Ordering::Relaxed));
    let host = Host::new(platform, clock)?;
    let release = StateChangeCallbacks::new().suspend(|_| {
        let held = std::mem::take(&mut *HELD.lock().unwrap());
        drop(held);
    });
    let server = Channel::allocate_server(&host)?
        .init_set_target_interface_id(CLASS, INSTANCE)
        .init_set_state_change_callbacks(release)
        .init_set_process_packet_callback(|_, packet| HELD.lock().unwrap().push(packet))
        .enable(SOON)
        .map_err(given)?;
    *SERVER.lock().unwrap() = Some(server);
    let at = move |this: &str| {
        if this == step {
            revoke();
        }
    };
    let callbacks = StateChangeCallbacks::new()
        .opened(move |_| {
            at("opened");
            Ok(())
        })
        .started(move |_| at("started"))
        .post_started(move |_| at("post-started"))
        .suspend(move |_| at("suspend"))
        .closed(move |_| at("closed"));
    let outcome = client(&host)?
        .init_set_state_change_callbacks(callbacks)
        .enable(SOON)
        .map_err(given)
        .and_then(|client| {
            let outcome = use_all(platform, &client, at);
            drop(client.disable(SOON).unwrap());
            outcome
        });
    revoke();
    host.process();
    outcome
}

fn use_all(platform: &'static Pages, client: &Channel, at: impl Fn(&str)) -> Result<(), Error> {
    let mut packet = client.packet_allocate()?;
    packet.set_completion_routine(done);
    packet
        .send(b"lent", Some(memory(platform)?), SendFlags::WAIT_FOR_COMPLETION)
        .map_err(given)?;
    at("sent");
    let shared = memory(platform)?;
    let gpadl = client.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &shared, 0, 0, SOON)?;
    at("shared");
    let server = SERVER.lock().unwrap().clone();
    let mapped = server.map(|server| server.map_gpadl(gpadl.handle(), GpadlAccess::ReadWrite));
    at("mapped");
    drop(mapped);
    drop(gpadl.delete(SOON).map_err(given)?);
    // Nobody answers.
    let refused = client
        .send_synchronous_request(b"ask", Some(memory(platform)?), Deadline::millis(1), &mut [0; 8])
        .unwrap_err();
    at("asked");
    if refused.error != Error::Cancelled {
        return Err(refused.error);
    }
    client.send(b"last")
}

#[test]
fn whatever_step_a_server_that_never_answers_revokes_at_nothing_is_left_behind() {
    let platform = &OTHER_PAGES;
    let gone = Err(Error::Gone(vmbus::kmcl::Gone::Rescinded));
    revoked_at(platform, "never").unwrap();
    for (step, expected) in [
        ("never", Ok(())),
        ("opened", gone),
        ("started", gone),
        ("post-started", gone),
        ("sent", gone),
        ("shared", gone),
        ("mapped", gone),
        ("asked", gone),
        ("suspend", Ok(())),
        ("closed", Ok(())),
    ] {
        let before = TestHeap::live();
        assert_eq!(revoked_at(platform, step), expected, "{step}");
        assert_eq!(TestHeap::live(), before, "heap: {step}");
        assert_eq!(platform.live_pages(), 0, "pages: {step}");
        assert!(
            HELD.lock().unwrap().is_empty() && SERVER.lock().unwrap().is_none(),
            "{step}"
        );
    }
}
