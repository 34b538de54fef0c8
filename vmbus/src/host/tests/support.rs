//! A server and a client that record what they see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::fallible::Shared;
use crate::host::Host;
use crate::kmcl::{Channel, DisabledChannel, Gpadl, IncomingPacket, Instance, StateChangeCallbacks};
use crate::memory::{DmaBuffer, Mdl};
use crate::protocol::Guid;
use crate::test_platform::TestPlatform;
use crate::{Deadline, Instant};

pub(super) const CLASS: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000c1a5");
/// In real time, where threads are in the way; Miri is slow.
pub(super) const SOON: Deadline = Deadline::seconds(if cfg!(miri) { 300 } else { 5 });

/// A packet of either end.
type Packet = IncomingPacket<Arc<Log>>;
pub(super) type End = Channel<Arc<Log>>;
pub(super) type DisabledEnd = DisabledChannel<Arc<Log>>;

/// What an end has seen, in order.
#[derive(Default)]
pub(super) struct Log {
    events: Mutex<Vec<String>>,
    pub(super) held: Mutex<Vec<Packet>>,
    pub(super) value: AtomicU64,
    pub(super) peer: Mutex<Option<End>>,
    pub(super) gpadl: Mutex<Option<Gpadl<Arc<Self>>>>,
}

impl Log {
    pub(super) fn note(&self, event: impl Into<String>) {
        self.events.lock().unwrap().push(event.into());
    }

    /// Returns what was seen since the last call.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    pub(super) fn hold(&self, packet: Packet) {
        self.held.lock().unwrap().push(packet);
    }

    /// Takes the packet that was held first.
    pub(super) fn release(&self) -> Packet {
        self.held.lock().unwrap().remove(0)
    }

    pub(super) fn held_count(&self) -> usize {
        self.held.lock().unwrap().len()
    }
}

/// A host on a clock of real time.
pub(super) fn host() -> (Host, &'static TestPlatform) {
    host_on(TestPlatform::leak())
}

/// The same on a platform of the test's.
pub(super) fn host_on(platform: &'static TestPlatform) -> (Host, &'static TestPlatform) {
    let start = std::time::Instant::now();
    let clock = move || Instant::from_reference_units(1 + u64::try_from(start.elapsed().as_nanos() / 100).unwrap());
    (Host::new(platform, clock).unwrap(), platform)
}

pub(super) fn states() -> StateChangeCallbacks<Arc<Log>> {
    StateChangeCallbacks::new()
        .opened(|channel: &End| {
            channel.context().note("opened");
            Ok(())
        })
        .started(|channel| channel.context().note("started"))
        .post_started(|channel| channel.context().note("post-started"))
        .suspend(|channel| channel.context().note("suspend"))
        .closed(|channel| channel.context().note("closed"))
}

fn with_callbacks(
    channel: DisabledEnd,
    handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
) -> DisabledEnd {
    channel
        .init_set_state_change_callbacks(states())
        .init_set_process_packet_callbacks(
            move |channel: &End, packet| {
                let text = String::from_utf8_lossy(packet.payload())
                    .trim_end_matches('\0')
                    .to_string();
                channel.context().note(format!("packet {text}"));
                handler(channel, packet);
            },
            |channel, count| channel.context().note(format!("batch {count}")),
        )
}

/// A server that records, and then does as `handler` says.
pub(super) fn server_with(
    host: &Host,
    handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
) -> DisabledEnd {
    let channel = Channel::allocate_server_with(host, Arc::default()).unwrap();
    with_callbacks(channel, handler).init_set_target(CLASS, Instance::Any)
}

/// A client that records, and then does as `handler` says.
pub(super) fn client_with(
    host: &Host,
    handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
) -> DisabledEnd {
    let channel = Channel::allocate_client_with(host, Arc::default()).unwrap();
    with_callbacks(channel, handler).init_set_target(CLASS, Instance::Any)
}

/// Answers with what came.
pub(super) fn echo(_: &End, packet: IncomingPacket<Arc<Log>>) {
    let payload = packet.payload().to_vec();
    packet.complete(&payload).unwrap();
}

/// Keeps the packet.
pub(super) fn hold(channel: &End, packet: IncomingPacket<Arc<Log>>) {
    channel.context().hold(packet);
}

/// Both ends of an open channel.
pub(super) struct Pair {
    pub(super) host: Host,
    pub(super) platform: &'static TestPlatform,
    pub(super) server: End,
    pub(super) client: End,
}

impl Pair {
    /// Opens a channel to a server that does as `handler` says.
    pub(super) fn new(handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static) -> Self {
        Self::with(|server| server, |client| client, handler, echo)
    }

    pub(super) fn with(
        server_init: impl FnOnce(DisabledEnd) -> DisabledEnd,
        client_init: impl FnOnce(DisabledEnd) -> DisabledEnd,
        server_handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
        client_handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
    ) -> Self {
        Self::on(
            TestPlatform::leak(),
            server_init,
            client_init,
            server_handler,
            client_handler,
        )
    }

    /// Opens a channel on a platform of the test's.
    pub(super) fn on(
        platform: &'static TestPlatform,
        server_init: impl FnOnce(DisabledEnd) -> DisabledEnd,
        client_init: impl FnOnce(DisabledEnd) -> DisabledEnd,
        server_handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
        client_handler: impl Fn(&End, IncomingPacket<Arc<Log>>) + Send + Sync + 'static,
    ) -> Self {
        let (host, platform) = host_on(platform);
        let server = server_init(server_with(&host, server_handler)).enable(SOON).unwrap();
        let client = client_init(client_with(&host, client_handler)).enable(SOON).unwrap();
        server.context().take();
        client.context().take();
        Self {
            host,
            platform,
            server,
            client,
        }
    }

    /// Takes both ends down and checks that nothing is left.
    pub(super) fn close(self) {
        let Self {
            host,
            platform,
            server,
            client,
        } = self;
        drop(client.disable(SOON).unwrap());
        drop(server.disable(SOON).unwrap());
        host.process();
        assert_eq!(platform.pages_in_use(), 0, "pages left behind");
        assert_eq!(Shared::owner_count(&host.inner), 1, "handles left behind");
    }

    pub(super) fn mdl(&self, bytes: &[u8]) -> Mdl {
        mdl_of(self.platform, bytes)
    }
}

pub(super) fn mdl_of(platform: &'static TestPlatform, bytes: &[u8]) -> Mdl {
    let buffer = DmaBuffer::allocate(platform, bytes.len()).unwrap();
    buffer.write_at(0, bytes).unwrap();
    buffer.into()
}

pub(super) fn bytes_of(mdl: &Mdl) -> Vec<u8> {
    let mut bytes = vec![0; mdl.len()];
    mdl.read_at(0, &mut bytes).unwrap();
    bytes
}

pub(super) fn count(log: &[String], prefix: &str) -> usize {
    log.iter().filter(|event| event.starts_with(prefix)).count()
}

/// Sets a number that a handler looks at.
pub(super) fn set(end: &End, value: u64) {
    end.context().value.store(value, Ordering::SeqCst);
}

pub(super) fn get(end: &End) -> u64 {
    end.context().value.load(Ordering::SeqCst)
}

fn source(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Checks the row of a statement that Rust's types or the world outside Windows decide: how, and a part of the reason.
pub(super) fn assert_row(id: &str, how: &str, reason: &str) {
    let table = source("src/kmcl/statements.rs");
    let row = table.lines().find(|line| line.starts_with(&format!("//! | {id} |")));
    let row = row.unwrap_or_else(|| panic!("{id} has no row"));
    assert!(row.contains(&format!("| {how} |")) && row.contains(reason), "{row}");
}

/// Checks the row of a statement that Rust's types decide, and that there is an example of what the compiler refuses with this
/// error, beside one that it takes; the documentation's tests try both.
pub(super) fn assert_refused(id: &str, code: &str, reason: &str) {
    assert_row(id, "types", reason);
    let text = source("src/kmcl/statements.rs");
    let (_, section) = text.split_once(&format!("//! # {id}: ")).expect("a section");
    let section = section.split("\n//!\n//! # ").next().unwrap();
    let fences: Vec<&str> = section.lines().filter(|line| line.starts_with("//! ```")).collect();
    let refused = format!("//! ```compile_fail,{code}");
    assert_eq!(fences, [refused.as_str(), "//! ```", "//! ```", "//! ```"], "{id}");
}

/// Checks that the block of code that starts with `start` hands out no memory by reference.
pub(super) fn assert_no_slice(path: &str, start: &str) {
    let source = source(path);
    let at = source.find(start).expect("the block is there");
    let end = source[at..].find("\n}\n").expect("the block ends") + at;
    for line in source[at..end].lines().filter(|line| line.contains("fn ")) {
        let result = line.split("->").nth(1).unwrap_or("");
        assert!(!result.contains('&') && !result.contains('*'), "{line}");
    }
}
