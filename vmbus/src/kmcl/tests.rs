//! The client end over the bus, against the independent model of a host.

#[cfg(feature = "host")]
mod attached;
mod beneath;
mod ending;
mod memory;
mod selection;

use std::boxed::Box;
use std::string::{String, ToString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::vec;
use std::vec::Vec;

use super::*;
use crate::Deadline;
use crate::bus::{self, Bus, ChannelCore, ChannelSink, Config};
use crate::hyperv::Hypervisor;
use crate::memory::{DmaBuffer, Mdl, PAGE_SIZE};
use crate::protocol::Guid;
use crate::testing::model::{self, Device, GuestRange, Host, HostChannel, Personality, Reply};
use crate::testing::{FakePlatform, wait_until};

const CLASS: &str = "5a17e5a1-0000-4000-8000-00000000c1a5";
const INSTANCE: &str = "5a17e5a1-0000-4000-8000-000000000001";
const SOON: Deadline = Deadline::seconds(5);

/// What the host's device does and has seen.
#[derive(Default)]
struct Control {
    is_silent: AtomicBool,
    completions: Mutex<Vec<(u64, Vec<u8>)>>,
    held: Mutex<Vec<u64>>,
    user_data: Mutex<Option<[u8; 120]>>,
}

/// Answers requests with their payload, and writes to the memory that they describe.
struct Peer(Arc<Control>);

impl Peer {
    fn work(&self, channel: &HostChannel<'_>) -> bool {
        let mut has_worked = false;
        while let Some(packet) = channel.receive() {
            has_worked = true;
            if packet.kind == 11 {
                self.0
                    .completions
                    .lock()
                    .unwrap()
                    .push((packet.transaction, packet.payload));
                continue;
            }
            if packet.flags & 1 == 0 {
                // Not asked to answer: says it again, and wants an answer itself.
                channel.send_in_band(0x1234, 1, &packet.payload).unwrap();
                continue;
            }
            if self.0.is_silent.load(Ordering::SeqCst) {
                self.0.held.lock().unwrap().push(packet.transaction);
                continue;
            }
            for range in packet.ranges().unwrap_or_default() {
                let mut bytes = channel.read_range(&range);
                bytes.reverse();
                channel.write_range(&range, &bytes);
            }
            channel.send_completion(packet.transaction, &packet.payload).unwrap();
        }
        has_worked
    }
}

impl Device for Peer {
    fn opened(&mut self, channel: &HostChannel<'_>) {
        *self.0.user_data.lock().unwrap() = channel.user_data();
    }
    fn signalled(&mut self, channel: &HostChannel<'_>) {
        self.work(channel);
    }
    fn run(&mut self, channel: &HostChannel<'_>) -> bool {
        self.work(channel)
    }
}

struct Ground {
    platform: &'static FakePlatform,
    host: &'static Host,
    bus: Bus,
    channel: u32,
    control: Arc<Control>,
}

impl Ground {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let platform = FakePlatform::new();
        let host = Host::new(platform, model::Config::new(Personality::HyperV));
        let control = Arc::new(Control::default());
        let channel = host.offer_with(model::Offer::new(CLASS, INSTANCE), Peer(control.clone()));
        let hypervisor = Box::leak(Box::new(Hypervisor::detect_on(host).unwrap()));
        let bus = Bus::connect(hypervisor, platform, config).unwrap();
        host.drive(&bus);
        Self {
            platform,
            host,
            bus,
            channel,
            control,
        }
    }

    fn settle(&self) {
        self.host.settle_with(&self.bus);
    }

    fn client(&self) -> DisabledChannel<Mutex<Vec<String>>> {
        let note =
            |channel: &Channel<Mutex<Vec<String>>>, text: &str| channel.context().lock().unwrap().push(text.into());
        let states = StateChangeCallbacks::new()
            .opened(move |channel| {
                note(channel, "opened");
                Ok(())
            })
            .started(move |channel| note(channel, "started"))
            .post_started(move |channel| note(channel, "post-started"))
            .suspend(move |channel| note(channel, "suspend"))
            .closed(move |channel| note(channel, "closed"));
        Channel::allocate_client_with(&self.bus, Mutex::default())
            .unwrap()
            .init_set_target(Guid::literal(CLASS), Instance::Any)
            .init_set_friendly_name("peer")
            .init_set_open_data([7; 120])
            .init_set_state_change_callbacks(states)
            .init_set_process_packet_callbacks(
                move |channel, packet| {
                    note(
                        channel,
                        core::str::from_utf8(packet.payload()).unwrap().trim_end_matches('\0'),
                    );
                    packet.complete(b"thanks").unwrap();
                },
                |_, _| (),
            )
    }

    fn mdl(&self, bytes: &[u8]) -> Mdl {
        let buffer = DmaBuffer::allocate(self.platform, bytes.len()).unwrap();
        buffer.write_at(0, bytes).unwrap();
        buffer.into()
    }

    fn finish(self) {
        self.bus.disconnect(Deadline::seconds(100)).unwrap();
        self.host.assert_no_violations();
        self.platform.assert_no_faults();
    }
}

fn log(channel: &Channel<Mutex<Vec<String>>>) -> Vec<String> {
    std::mem::take(&mut *channel.context().lock().unwrap())
}

fn bytes_of(mdl: &Mdl) -> Vec<u8> {
    let mut bytes = vec![0; mdl.len()];
    mdl.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn open_send_answer_close_and_open_again() {
    let ground = Ground::new();
    let mut client = ground.client();
    for _ in 0..3 {
        let channel = client.enable(SOON).unwrap();
        assert!(log(&channel).ends_with(&["opened", "started", "post-started"].map(String::from)));
        assert_eq!(*ground.control.user_data.lock().unwrap(), Some([7; 120]));
        assert_eq!(channel.interface_instance(), Guid::literal(INSTANCE));
        let mut answer = [0; 16];
        let sent = channel
            .send_synchronous_request(b"question", None, SOON, &mut answer)
            .unwrap();
        assert_eq!((sent.len, &answer), (8, b"question\0\0\0\0\0\0\0\0"));
        client = channel.disable(SOON).unwrap();
        assert_eq!(ground.host.gpadl_count(), 0, "the rings are taken back");
    }
    drop(client);
    ground.finish();
}

#[test]
fn packets_of_the_host_reach_the_callback_and_their_completions_the_host() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    log(&channel);
    channel.send(b"say it again").unwrap();
    ground.settle();
    assert_eq!(log(&channel), ["say it again"]);
    assert_eq!(
        *ground.control.completions.lock().unwrap(),
        [(0x1234, b"thanks\0\0".to_vec())]
    );
    drop(channel);
    ground.finish();
}

#[test]
fn the_host_reads_and_writes_the_memory_that_a_request_describes() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    let content: Vec<u8> = (0..5000_u32).map(|index| (index % 251) as u8).collect();
    let sent = channel
        .send_synchronous_request(b"x", Some(ground.mdl(&content)), SOON, &mut [0; 8])
        .unwrap();
    let mut reversed = content.clone();
    reversed.reverse();
    assert_eq!(bytes_of(&sent.mdl.unwrap()), reversed);
    // Parts that do not meet at page boundaries are ranges of their own.
    let chain = Mdl::chain([
        ground.mdl(b"abc"),
        ground.mdl(&vec![1; PAGE_SIZE + 5]),
        ground.mdl(b"xyz"),
    ])
    .unwrap();
    let sent = channel
        .send_synchronous_request(b"x", Some(chain), SOON, &mut [0; 8])
        .unwrap();
    let bytes = bytes_of(&sent.mdl.unwrap());
    assert_eq!(
        (&bytes[..3], &bytes[bytes.len() - 3..]),
        (b"cba".as_slice(), b"zyx".as_slice())
    );
    drop(channel);
    ground.finish();
}

#[test]
fn a_gpadl_is_known_to_the_host_until_it_is_deleted() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    let mdl = ground.mdl(&[1; 3 * PAGE_SIZE]);
    let gpadl = channel
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 100, 2 * PAGE_SIZE, SOON)
        .unwrap();
    let known: Vec<GuestRange> = ground.host.gpadl(gpadl.handle()).unwrap();
    let pages: Vec<u64> = mdl.page_spans().map(|span| span.pfn.get()).collect();
    assert_eq!(
        (known.len(), known[0].len_bytes, known[0].offset, &known[0].page_numbers),
        (1, 8192, 100, &pages)
    );
    assert_eq!(gpadl.delete(SOON).unwrap().len(), 2 * PAGE_SIZE);
    assert_eq!(ground.host.gpadl_count(), 1, "the rings");
    drop(channel);
    ground.finish();
}

#[test]
fn c1_a_rescind_ends_requests_and_gives_their_memory_back() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    log(&channel);
    ground.control.is_silent.store(true, Ordering::SeqCst);
    let mut packet = channel.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, mut packet, status| {
        let mdl = packet.take_mdl().map(|mdl| mdl.len());
        channel
            .context()
            .lock()
            .unwrap()
            .push(std::format!("{status:?} {mdl:?}"));
    });
    packet
        .send(b"x", Some(ground.mdl(b"lent")), SendFlags::WAIT_FOR_COMPLETION)
        .unwrap();
    ground.settle();
    ground.host.rescind(ground.channel);
    ground.settle();
    assert_eq!(log(&channel), ["suspend", "Err(Gone(Rescinded)) Some(4)", "closed"]);
    let refused = channel
        .send_synchronous_request(b"x", Some(ground.mdl(b"mine")), SOON, &mut [])
        .unwrap_err();
    assert_eq!(
        (refused.error, refused.given.map(|mdl| mdl.len())),
        (Error::Gone(Gone::Rescinded), Some(4))
    );
    drop(channel);
    ground.finish();
}

#[test]
fn m4_a_rescind_wakes_who_waits_although_only_the_wait_looks_at_messages() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    ground.control.is_silent.store(true, Ordering::SeqCst);
    ground.host.disable_interrupts();
    ground.platform.use_real_time();
    let (host, number) = (ground.host, ground.channel);
    let control = ground.control.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            wait_until("the request", || !control.held.lock().unwrap().is_empty());
            host.rescind(number);
        });
        let refused = channel
            .send_synchronous_request(b"x", Some(ground.mdl(b"lent")), SOON, &mut [])
            .unwrap_err();
        assert_eq!(refused.error, Error::Gone(Gone::Rescinded));
        assert_eq!(bytes_of(&refused.given.unwrap()), b"lent");
    });
    drop(channel);
    ground.settle();
    ground.finish();
}

#[test]
fn a_broken_ring_ends_the_channel_and_its_memory_stays_lent_until_it_is_closed() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    log(&channel);
    ground.control.is_silent.store(true, Ordering::SeqCst);
    let mdl = ground.mdl(b"lent");
    let buffer = mdl.clone().into_dma_buffer().unwrap();
    channel
        .packet_allocate()
        .unwrap()
        .send(b"x", Some(mdl), SendFlags::WAIT_FOR_COMPLETION)
        .unwrap();
    ground.settle();
    // A completion that is longer than the channel's limit is cut; a packet that is, breaks the channel.
    ground
        .host
        .channel(ground.channel)
        .send_in_band(0, 0, &[0; 8192])
        .unwrap();
    ground.settle();
    assert_eq!(log(&channel), ["suspend"]);
    assert_eq!(channel.send(b"x"), Err(Error::Gone(Gone::Corrupt)));
    assert!(!buffer.is_sole_owner());
    drop(channel.disable(SOON).unwrap());
    assert!(buffer.is_sole_owner());
    drop(buffer);
    ground.finish();
}

#[test]
fn q4_memory_that_the_host_does_not_give_up_at_the_end_stays_lent() {
    let ground = Ground::new();
    let channel = ground.client().init_set_maximum_packet_count(8).enable(SOON).unwrap();
    ground.control.is_silent.store(true, Ordering::SeqCst);
    let buffers: Vec<DmaBuffer> = (0..3).map(|_| ground.mdl(b"lent").into_dma_buffer().unwrap()).collect();
    let mut packet = channel.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, mut packet, status| {
        let mdl = packet.take_mdl().map(|mdl| mdl.len());
        channel
            .context()
            .lock()
            .unwrap()
            .push(std::format!("{status:?} {mdl:?}"));
    });
    let sent = packet.send(b"x", Some(buffers[0].clone().into()), SendFlags::WAIT_FOR_COMPLETION);
    sent.unwrap();
    let request = channel.send_request(b"x", Some(buffers[1].clone().into())).unwrap();
    drop(channel.send_request(b"x", Some(buffers[2].clone().into())).unwrap());
    ground.settle();
    log(&channel);
    // It says nothing to the end of the rings' memory: it may not have seen that the channel is closed.
    ground.host.set_reply(11, Reply::Silent);
    let watch = channel.uncounted();
    drop(channel.disable(Deadline::millis(50)));
    assert_eq!(log(&watch), ["suspend", "Err(Gone(Disabled)) None", "closed"]);
    let mut request = core::pin::pin!(request);
    let poll = request
        .as_mut()
        .poll(&mut core::task::Context::from_waker(core::task::Waker::noop()));
    assert!(matches!(poll, core::task::Poll::Ready(Err(refused)) if refused.given.is_none()));
    assert!(buffers.iter().all(|buffer| !buffer.is_sole_owner()));
}

#[test]
fn memory_stays_lent_to_a_host_that_does_not_answer_to_the_end_of_the_connection() {
    for in_callback in [false, true] {
        let ground = Ground::new();
        let channel = ground.client().init_set_maximum_packet_count(8).enable(SOON).unwrap();
        ground.control.is_silent.store(true, Ordering::SeqCst);
        let buffer = ground.mdl(b"lent").into_dma_buffer().unwrap();
        let request = channel.send_request(b"x", Some(buffer.clone().into())).unwrap();
        ground.settle();
        ground.host.set_reply(16, Reply::Silent);
        assert!(ground.bus.disconnect(Deadline::seconds(1)).is_err());
        if in_callback {
            ground.bus.poll();
        }
        drop(channel.disable(Deadline::millis(50)));
        drop(request);
        assert!(!buffer.is_sole_owner(), "{in_callback}");
    }
}

#[test]
fn a_page_list_is_described_to_the_host() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    let memory = ground.mdl(&vec![b'.'; 2 * PAGE_SIZE]);
    let pfns: Vec<_> = memory.page_spans().map(|span| span.pfn).collect();
    // SAFETY: the pages are those of `memory`, which outlives the list.
    #[expect(unsafe_code, reason = "a page list is an unsafe way to name memory")]
    let list = unsafe { Mdl::from_page_list(&pfns, 4, PAGE_SIZE) }.unwrap();
    memory.write_at(4, b"start").unwrap();
    let sent = channel
        .send_synchronous_request(b"x", Some(list), SOON, &mut [0; 8])
        .unwrap();
    // The device has reversed it.
    assert_eq!(&bytes_of(&memory)[PAGE_SIZE - 1..PAGE_SIZE + 4], b"trats");
    let list = sent.mdl.unwrap();
    let gpadl = channel
        .create_gpadl_from_mdl(GpadlAccess::ReadWrite, &list, 0, 0, SOON)
        .unwrap();
    let known = ground.host.gpadl(gpadl.handle()).unwrap();
    assert_eq!((known[0].offset, known[0].page_numbers.len()), (4, 2));
    gpadl.delete(SOON).unwrap();
    drop(channel);
    ground.finish();
}

#[test]
fn pages_that_run_out_at_any_step_of_enable_leave_nothing_behind() {
    let ground = Ground::new();
    let before = ground.platform.live_pages();
    let mut client = ground.client().init_set_bounce_buffer_sizes(2, 100);
    let mut failures = 0;
    let channel = loop {
        ground.platform.fail_allocation(failures);
        match client.enable(SOON) {
            Ok(channel) => break channel,
            Err(refused) => {
                assert!(matches!(refused.error, Error::OutOfPages(_)), "{}", refused.error);
                assert_eq!(ground.platform.live_pages(), before);
                client = refused.given;
                failures += 1;
            }
        }
    };
    ground.platform.stop_failing();
    assert!(failures >= 3, "two buffers and the rings: {failures}");
    drop(channel);
    ground.finish();
}

#[test]
fn a_subchannel_is_found_by_its_primary() {
    let ground = Ground::new();
    let mut offer = model::Offer::new(CLASS, INSTANCE);
    offer.subchannel_index = 1;
    let number = ground.host.offer_with(offer, Peer(ground.control.clone()));
    ground.settle();
    let primary = ground.client().enable(SOON).unwrap();
    let second = ground
        .client()
        .init_set_primary_channel(primary.id())
        .enable(SOON)
        .unwrap();
    assert_eq!((primary.id().0, second.id().0), (ground.channel, number));
    let mut answer = [0; 8];
    second
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"question");
    drop((second, primary));
    ground.finish();
}

#[test]
fn no_offer_is_an_error_when_time_is_up() {
    let ground = Ground::new();
    let other = ground.client().init_set_target(Guid::ZERO, Instance::Any);
    let refused = other.enable(Deadline::millis(5)).unwrap_err();
    assert_eq!(refused.error.to_string(), "no such offer");
    let first = ground.client().enable(SOON).unwrap();
    // Taken: a second driver does not get it.
    assert_eq!(
        ground.client().enable(Deadline::millis(5)).unwrap_err().error,
        Error::NoSuchOffer
    );
    drop((refused, first));
    ground.finish();
}
