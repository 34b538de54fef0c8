//! Memory that is lent when the connection ends: it comes back with the host's word, and not before, whoever looks meanwhile.

use super::*;

/// Every how many-th lock is tried.
const STEP_BY: usize = if cfg!(miri) { 97 } else { 3 };

/// A channel with a request that the host has, whose memory `buffer` is.
fn lending() -> (Ground, Channel<Mutex<Vec<String>>>, DmaBuffer) {
    let ground = Ground::new();
    let channel = ground.client().init_set_maximum_packet_count(8).enable(SOON).unwrap();
    ground.control.is_silent.store(true, Ordering::SeqCst);
    let buffer = ground.mdl(b"lent").into_dma_buffer().unwrap();
    (ground, channel, buffer)
}

#[test]
fn who_waits_does_not_get_back_what_the_host_has_not_given_up_with_the_connection() {
    for later in (0..).step_by(STEP_BY) {
        let (ground, channel, buffer) = lending();
        ground.host.set_reply(16, Reply::Silent);
        let bus = ground.bus.clone();
        ground
            .platform
            .before_lock(later, move || assert!(bus.disconnect(Deadline::seconds(1)).is_err()));
        let result =
            channel.send_synchronous_request(b"x", Some(buffer.clone().into()), Deadline::seconds(200), &mut []);
        let was_last = ground.platform.forget_meanwhile();
        let refused = result.unwrap_err();
        assert!(
            matches!(refused.error, Error::Gone(_) | Error::Cancelled),
            "{later}: {refused:?}"
        );
        drop(refused);
        // What the host has not seen may have come back.
        if !ground.control.held.lock().unwrap().is_empty() {
            assert!(!buffer.is_sole_owner(), "{later}");
        }
        if was_last {
            break;
        }
    }
}

#[test]
fn a_channel_that_is_closed_while_the_connection_ends_gives_nothing_back_before_the_hosts_word() {
    for later in (0..).step_by(STEP_BY) {
        let (ground, channel, buffer) = lending();
        let request = channel.send_request(b"x", Some(buffer.clone().into())).unwrap();
        ground.settle();
        ground.host.set_reply(16, Reply::Silent);
        let (bus, is_given_up) = (ground.bus.clone(), Arc::new(AtomicBool::new(false)));
        let seen = is_given_up.clone();
        ground.platform.before_lock(later, move || {
            drop(channel.disable(Deadline::seconds(1)).unwrap());
            // All before the host was asked to end the connection.
            seen.store(bus.is_connected(), Ordering::SeqCst);
        });
        assert!(ground.bus.disconnect(Deadline::seconds(1)).is_err());
        let was_last = ground.platform.forget_meanwhile();
        drop(request);
        assert!(!buffer.is_sole_owner() || is_given_up.load(Ordering::SeqCst), "{later}");
        if was_last {
            break;
        }
    }
}

/// Closes a channel whose host does not give up the rings in time, with a request of whose memory the buffer is.
fn closed_in_vain(reply: Reply) -> (Ground, DmaBuffer) {
    let (ground, channel, buffer) = lending();
    let request = channel.send_request(b"x", Some(buffer.clone().into())).unwrap();
    ground.settle();
    ground.host.set_next_replies(11, reply, 1);
    drop(channel.disable(Deadline::seconds(1)));
    drop(request);
    assert!(!buffer.is_sole_owner());
    // The rings, and what the request lent.
    assert_eq!(
        (ground.bus.counters().parked_blocks, ground.bus.counters().lost_blocks),
        (2, 0)
    );
    (ground, buffer)
}

#[test]
fn q4_what_requests_have_lent_comes_back_with_the_rings_when_a_late_answer_comes() {
    let (ground, buffer) = closed_in_vain(Reply::Late(core::time::Duration::from_secs(5)));
    ground.platform.advance(core::time::Duration::from_secs(6));
    ground.settle();
    assert!(buffer.is_sole_owner());
    assert_eq!(ground.bus.counters().unparked_blocks, 2);
    drop(buffer);
    ground.finish();
}

#[test]
fn q4_what_requests_have_lent_comes_back_with_the_end_of_the_connection_or_is_lost_with_it() {
    for is_answered in [true, false] {
        let (ground, buffer) = closed_in_vain(Reply::Silent);
        if !is_answered {
            ground.host.set_reply(16, Reply::Silent);
        }
        assert_eq!(ground.bus.disconnect(Deadline::seconds(1)).is_ok(), is_answered);
        assert_eq!(buffer.is_sole_owner(), is_answered);
        let counters = ground.bus.counters();
        let expected = if is_answered { (2, 0) } else { (0, 2) };
        assert_eq!((counters.unparked_blocks, counters.lost_blocks), expected);
    }
}

/// A client's context that keeps its last handle.
#[derive(Default)]
struct Own(Mutex<Option<Channel<Self>>>);

#[test]
fn a_channel_of_the_host_whose_last_handle_goes_in_its_own_callback_is_closed_behind_it() {
    let ground = Ground::new();
    let channel = Channel::allocate_client_with(&ground.bus, Own::default()).unwrap();
    let channel = channel
        .init_set_target(Guid::literal(CLASS), Instance::Any)
        .init_set_process_packet_callback(|channel, packet| {
            let last = channel.context().0.lock().unwrap().take();
            drop(last);
            packet.complete(&[]).unwrap();
        })
        .enable(SOON)
        .unwrap();
    ground.control.is_silent.store(true, Ordering::SeqCst);
    let buffer = ground.mdl(b"lent").into_dma_buffer().unwrap();
    let packet = channel.packet_allocate().unwrap();
    packet
        .send(b"x", Some(buffer.clone().into()), SendFlags::WAIT_FOR_COMPLETION)
        .unwrap();
    ground.settle();
    *channel.context().0.lock().unwrap() = Some(channel.clone());
    drop(channel);
    ground
        .host
        .set_next_replies(11, Reply::Late(core::time::Duration::from_secs(5)), 1);
    ground.host.channel(ground.channel).send_in_band(1, 0, b"go").unwrap();
    ground.settle();
    assert!(!buffer.is_sole_owner(), "the host has not given up the rings");
    ground.platform.advance(core::time::Duration::from_secs(6));
    ground.settle();
    assert!(buffer.is_sole_owner());
    assert_eq!(ground.host.gpadl_count(), 0);
    drop(buffer);
    ground.finish();
}

#[test]
fn memory_that_is_shared_while_the_channel_is_closed_is_not_said_to_be_shared() {
    for later in (0..).step_by(STEP_BY) {
        let ground = Ground::new();
        let channel = ground.client().enable(SOON).unwrap();
        let buffer = ground.mdl(&[7; PAGE_SIZE]).into_dma_buffer().unwrap();
        let other = channel.clone();
        ground
            .platform
            .before_lock(later, move || drop(other.disable(SOON).unwrap()));
        let memory = buffer.clone().into();
        let result = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &memory, 0, 0, SOON);
        let was_last = ground.platform.forget_meanwhile();
        drop(memory);
        if was_last {
            assert!(result.is_ok());
            break;
        }
        assert!(result.is_err(), "{later}");
        ground.settle();
        assert_eq!(ground.host.gpadl_count(), 0, "{later}");
        assert!(buffer.is_sole_owner(), "{later}");
    }
}
