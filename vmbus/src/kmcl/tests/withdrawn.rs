//! Offers that the host takes back while a callback waits, and channels that are closed although somebody else looks at them.

use super::*;

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
            while control.held.lock().unwrap().is_empty() {
                std::thread::yield_now();
            }
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
    let transport = core.outgoing.lock(core.platform).transport.clone().unwrap();
    let mdl = ground.mdl(&[1; PAGE_SIZE]);
    let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON);
    assert_eq!(ground.host.gpadl_count(), 2, "the rings and the memory");
    drop(channel.disable(SOON).unwrap());
    assert_eq!(ground.host.gpadl_count(), 0);
    drop((transport, gpadl, mdl));
    ground.finish();
}
