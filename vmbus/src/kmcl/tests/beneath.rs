//! The bus beneath a channel: offers that the host takes back while a callback waits, closing, and signals in both directions.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::protocol::ChannelId;

const OTHER_CLASS: &str = "5a17e5a1-0000-4000-8000-00000000c1a7";

#[test]
fn a_rescind_wakes_who_waits_in_post_started_where_no_callback_can_tell_it_with_threads() {
    let ground = Ground::new();
    ground.control.is_silent.store(true, Ordering::SeqCst);
    ground.platform.use_real_time();
    let memory = Mutex::new(Some(ground.mdl(b"lent")));
    let states = StateChangeCallbacks::new().post_started(move |channel: &Channel<Mutex<Vec<String>>>| {
        let lent = memory.lock().unwrap().take();
        let refused = channel.send_synchronous_request(b"x", lent, SOON, &mut []).unwrap_err();
        let back = refused.given.map(|mdl| mdl.len());
        channel
            .context()
            .lock()
            .unwrap()
            .push(std::format!("{:?} {back:?}", refused.error));
    });
    let client = ground.client().init_set_state_change_callbacks(states);
    let (host, number, control) = (ground.host, ground.channel, ground.control.clone());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            wait_until("the request", || !control.held.lock().unwrap().is_empty());
            host.rescind(number);
        });
        let channel = client.enable(SOON).unwrap();
        assert_eq!(log(&channel), ["Gone(Rescinded) Some(4)"]);
        drop(channel);
    });
    ground.settle();
    ground.finish();
}

#[test]
fn a_channel_is_closed_when_it_is_disabled_whoever_else_looks_at_it() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    let core = channel.core();
    let transport = core.outgoing().transport.clone().unwrap();
    let mdl = ground.mdl(&[1; PAGE_SIZE]);
    let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON);
    assert_eq!(ground.host.gpadl_count(), 2, "the rings and the memory");
    drop(channel.disable(SOON).unwrap());
    assert_eq!(ground.host.gpadl_count(), 0);
    drop((transport, gpadl, mdl));
    ground.finish();
}

/// Counts signals, and reads nothing.
struct Still(Arc<AtomicUsize>);

impl Device for Still {
    fn signalled(&mut self, _: &HostChannel<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_host_is_signalled_and_a_routine_called_without_anything_from_the_host() {
    let ground = Ground::new();
    let signals = Arc::new(AtomicUsize::new(0));
    let number = ground
        .host
        .offer_with(model::Offer::new(OTHER_CLASS, INSTANCE), Still(signals.clone()));
    ground.settle();
    let channel = ground.client().init_set_target_channel(ChannelId(number));
    let channel = channel.enable(SOON).unwrap();
    ground.settle();
    log(&channel);
    let before = signals.load(Ordering::SeqCst);
    let mut packet = channel.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, _, status| {
        channel.context().lock().unwrap().push(std::format!("{status:?}"));
    });
    packet.send(b"x", None, SendFlags::empty()).unwrap();
    ground.settle();
    assert_eq!(signals.load(Ordering::SeqCst) - before, 1);
    assert_eq!(log(&channel), ["Ok(())"]);
    drop(channel);
    ground.finish();
}
