//! `EvtVmbChannelProcessPacket`.

use super::support::*;
use crate::Deadline;
use crate::kmcl::{Error, Level, SendFlags, StateChangeCallbacks};

#[test]
fn epp_1_the_callback_gets_channel_and_packet_with_payload_and_flags() {
    let pair = Pair::new(|channel, packet| {
        channel
            .context()
            .note(format!("{} {}", packet.payload().len(), packet.has_external_data()));
        assert_eq!(packet.channel().id(), channel.id());
    });
    pair.client.send(&[1; 16]).unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take()[1], "16 false");
    pair.close();
}

#[test]
fn epp_2_a_packet_in_the_ring_triggers_it_with_its_channel() {
    let pair = Pair::new(|channel, _| set(channel, u64::from(channel.id().0)));
    pair.client.send(b"x").unwrap();
    assert_eq!(get(&pair.server), 0, "not before the ring is looked at");
    pair.host.process();
    assert_eq!(get(&pair.server), u64::from(pair.server.id().0));
    pair.close();
}

#[test]
fn epp_3_the_payload_is_what_was_sent_padded_to_eight() {
    let pair = Pair::new(hold);
    for len in 0..=40 {
        let sent: Vec<u8> = (1..=len).collect();
        pair.client.send(&sent).unwrap();
        pair.host.process();
        let packet = pair.server.context().release();
        assert_eq!(packet.payload().len(), sent.len().next_multiple_of(8));
        assert_eq!(packet.payload()[..sent.len()], sent);
        assert!(
            packet.payload()[sent.len()..].iter().all(|byte| *byte == 0),
            "padding is zero"
        );
    }
    pair.close();
}

#[test]
fn epp_4_the_flag_tells_of_external_data() {
    let pair = Pair::new(hold);
    let flags = SendFlags::WAIT_FOR_COMPLETION;
    let plain = pair.client.packet_allocate().unwrap();
    plain.send(b"plain", None, flags).unwrap();
    let described = pair.client.packet_allocate().unwrap();
    described.send(b"mdl", Some(pair.mdl(&[1; 64])), flags).unwrap();
    let part = pair.client.packet_allocate().unwrap();
    part.send_with_external_mdl(b"part", pair.mdl(&[1; 64]), 8, 8, flags)
        .unwrap();
    pair.host.process();
    let external: Vec<bool> = (0..3)
        .map(|_| pair.server.context().release().has_external_data())
        .collect();
    assert_eq!(external, [false, true, true]);
    pair.close();
}

#[test]
fn epp_5_the_flag_means_that_the_data_can_be_had() {
    let pair = Pair::new(|channel, mut packet| {
        let mut bytes = [0; 5];
        packet.external_data().unwrap().read_at(3, &mut bytes).unwrap();
        channel.context().note(String::from_utf8_lossy(&bytes));
    });
    let mdl = pair.mdl(b"___hello___");
    pair.client
        .send_synchronous_request(b"x", Some(mdl), SOON, &mut [])
        .unwrap();
    assert_eq!(pair.server.context().take()[1], "hello");
    pair.close();
}

#[test]
fn epp_6_a_packet_can_be_completed_failed_deferred_and_asked_for_data() {
    let pair = Pair::new(|channel, mut packet| {
        match get(channel) {
            0 => packet.complete(b"completed").unwrap(),
            1 if packet.level() == Level::Dispatch => packet.defer_to_passive().unwrap(),
            1 => packet.complete(b"deferred").unwrap(),
            2 => assert_eq!(packet.external_data().unwrap_err(), Error::NoExternalData),
            _ => packet.fail(),
        };
    });
    for (action, answer) in [(0, 16), (1, 8), (2, 0), (3, 0)] {
        set(&pair.server, action);
        let packet = pair.client.packet_allocate().unwrap();
        packet.send(b"x", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
        pair.host.process();
        pair.server.process_at_passive();
        pair.host.process();
        assert_eq!(pair.client.counters().outgoing_outstanding, 0, "{action}");
        let _ = answer;
    }
    assert_eq!((pair.server.counters().failed, pair.server.counters().dropped), (1, 1));
    pair.close();
}

#[test]
fn epp_7_completing_inside_the_callback_works() {
    let pair = Pair::new(echo);
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"inside!!", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(&answer, b"inside!!");
    pair.close();
}

#[test]
fn epp_8_completing_later_from_another_thread_and_out_of_order_works() {
    let pair = Pair::new(hold);
    for number in 0..3_u8 {
        let mut packet = pair.client.packet_allocate().unwrap();
        packet.set_completion_routine(|channel, packet, _| {
            channel.context().note(format!("{:?}", packet.completion()[0]))
        });
        packet.send(&[number], None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    }
    pair.host.process();
    let mut held = std::mem::take(&mut *pair.server.context().held.lock().unwrap());
    held.reverse();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for packet in held {
                let first = packet.payload()[0];
                packet.complete(&[first; 8]).unwrap();
            }
        });
    });
    pair.host.process();
    assert_eq!(pair.client.context().take(), ["2", "1", "0"]);
    pair.close();
}

#[test]
fn epp_9_pause_and_disable_wait_for_packets_that_are_held() {
    let pair = Pair::new(hold);
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(pair.server.pause(Deadline::millis(20)), Err(Error::TimedOut));
    let refused = pair.server.clone().disable(Deadline::millis(20)).unwrap_err();
    assert_eq!(refused.error, Error::TimedOut);
    drop(refused);
    let log = pair.server.context().clone();
    assert_eq!(log.take(), ["packet x", "batch 1", "suspend"]);
    std::thread::scope(|scope| {
        let disabling = scope.spawn(|| pair.server.clone().disable(SOON).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!disabling.is_finished());
        log.release().complete(&[]).unwrap();
        disabling.join().unwrap().unwrap();
    });
    assert_eq!(log.take(), ["closed"]);
}

#[test]
fn epp_10_a_completion_carries_exactly_the_bytes_and_only_if_it_was_asked_for() {
    let pair = Pair::new(|_, packet| packet.complete(&[9; 24]).unwrap());
    pair.client.send(b"unasked").unwrap();
    pair.host.process();
    assert_eq!(pair.server.counters().packets_sent, 0);
    let mut answer = [0; 64];
    let sent = pair
        .client
        .send_synchronous_request(b"asked", None, SOON, &mut answer)
        .unwrap();
    assert_eq!(
        (sent.len, &answer[..25]),
        (24, &[[9; 24].as_slice(), &[0]].concat()[..])
    );
    assert_eq!(pair.server.counters().packets_sent, 1);
    pair.close();
}

#[test]
fn epp_11_delivery_is_at_dispatch_or_below_and_at_passive_where_that_is_set() {
    let pair = Pair::new(|channel, packet| channel.context().note(format!("{:?}", packet.level())));
    pair.client.send(b"x").unwrap();
    pair.host.process();
    pair.server.set_incoming_processing_at_passive(Level::Passive);
    pair.client.send(b"y").unwrap();
    pair.host.process();
    assert_eq!(count(&pair.server.context().take(), "Dispatch"), 1);
    pair.server.process_at_passive();
    assert_eq!(count(&pair.server.context().take(), "Passive"), 1);
    pair.close();
}

#[test]
fn epp_12_a_deferred_packet_comes_again_at_passive_and_is_not_overtaken() {
    let pair = Pair::new(|channel, packet| {
        channel
            .context()
            .note(format!("{:?} {}", packet.level(), packet.has_external_data()));
        if packet.payload()[0] == b'a' && packet.level() == Level::Dispatch {
            packet.defer_to_passive().unwrap();
        }
    });
    pair.client.send(b"a").unwrap();
    pair.client.send(b"b").unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take(), ["packet a", "Dispatch false", "batch 1"]);
    pair.host.process();
    assert!(pair.server.context().take().is_empty(), "b waits behind a");
    pair.server.process_at_passive();
    let expected = ["packet a", "Passive false", "packet b", "Passive false", "batch 2"];
    assert_eq!(pair.server.context().take(), expected);
    assert_eq!(pair.server.counters().packets_processed, 3, "a redelivery counts again");
    pair.close();
}

#[test]
fn epp_13_a_packet_whose_data_is_pending_comes_again() {
    let pair = Pair::new(super::ged::pending_once);
    let mdl = pair.mdl(b"pending data");
    let packet = pair.client.packet_allocate().unwrap();
    packet.send(b"x", Some(mdl), SendFlags::WAIT_FOR_COMPLETION).unwrap();
    pair.host.process();
    assert_eq!(
        pair.server.context().take(),
        ["packet x", "Dispatch Pending", "batch 1"]
    );
    pair.server.process_at_passive();
    assert_eq!(pair.server.context().take(), ["packet x", "Passive 12", "batch 1"]);
    pair.close();
}

#[test]
fn epp_14_failing_a_packet_stops_the_queue() {
    let pair = Pair::new(|_, packet| packet.fail());
    pair.client.send(b"bad").unwrap();
    pair.client.send(b"never").unwrap();
    pair.host.process();
    pair.client.send(b"never").unwrap();
    pair.host.process();
    pair.server.process_at_passive();
    assert_eq!(pair.server.context().take(), ["packet bad", "batch 1"]);
    pair.close();
}

#[test]
fn epp_15_no_packet_comes_before_post_started() {
    let (host, _) = host();
    let server = server_with(&host, echo).pause_when_enabled().enable(SOON).unwrap();
    let client = client_with(&host, echo).enable(SOON).unwrap();
    client.send(b"early").unwrap();
    server.context().take();
    server.start(SOON).unwrap();
    assert_eq!(
        server.context().take(),
        ["started", "post-started", "packet early", "batch 1"]
    );
}

#[test]
fn epp_16_from_suspend_on_no_packet_comes() {
    let (host, _) = host();
    let observer = StateChangeCallbacks::new().suspend(|channel: &End| {
        // Whoever processes now, finds the channel closed to packets.
        channel.process_at_passive();
        channel.context().note("suspended");
    });
    let server = server_with(&host, hold)
        .init_set_state_change_callbacks(observer)
        .enable(SOON)
        .unwrap();
    let client = client_with(&host, echo).enable(SOON).unwrap();
    client.send(b"late").unwrap();
    server.pause(SOON).unwrap();
    host.process();
    server.process_at_passive();
    assert_eq!(server.context().take(), ["suspended"]);
    server.start(SOON).unwrap();
    assert_eq!(server.context().take(), ["packet late", "batch 1"]);
    drop(server.context().release());
}

#[test]
fn epp_17_outstanding_packets_never_exceed_the_quota() {
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(2),
        |client| client,
        hold,
        echo,
    );
    for _ in 0..5 {
        pair.client.send(b"x").unwrap();
    }
    pair.host.process();
    assert_eq!(pair.server.context().held_count(), 2);
    pair.server.set_transaction_quota(4).unwrap();
    pair.host.process();
    assert_eq!(
        pair.server.context().held_count(),
        2,
        "raising the quota alone restarts nothing"
    );
    pair.server.context().release().complete(&[]).unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().held_count(), 4);
    for _ in 0..5 {
        pair.host.process();
        pair.server.context().release().complete(&[]).unwrap();
        pair.host.process();
        if pair.server.context().held_count() == 0 {
            break;
        }
    }
    assert_eq!(pair.server.counters().packets_processed, 5);
    pair.close();
}

#[test]
fn epp_18_a_quota_below_what_is_held_takes_effect_as_packets_are_completed() {
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(4),
        |client| client,
        hold,
        echo,
    );
    for _ in 0..6 {
        pair.client.send(b"x").unwrap();
    }
    pair.host.process();
    pair.server.set_transaction_quota(1).unwrap();
    for left in [3, 2, 1] {
        pair.server.context().release().complete(&[]).unwrap();
        pair.host.process();
        assert_eq!(pair.server.context().held_count(), left);
    }
    pair.server.context().release().complete(&[]).unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().held_count(), 1, "the next one");
    pair.server.context().held.lock().unwrap().clear();
    pair.host.process();
    pair.server.context().held.lock().unwrap().clear();
    pair.close();
}

#[test]
fn epp_19_the_payload_stays_until_the_packet_is_completed() {
    let pair = Pair::new(hold);
    pair.client.send(b"to stay ").unwrap();
    pair.host.process();
    for _ in 0..10 {
        pair.client.send(b"overwrites the ring and slots").unwrap();
        pair.host.process();
    }
    assert_eq!(pair.server.context().held.lock().unwrap()[0].payload(), b"to stay ");
    pair.server.context().held.lock().unwrap().clear();
    pair.close();
}

#[test]
fn epp_20_the_batch_ends_with_processing_complete() {
    let pair = Pair::new(echo);
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take().last().unwrap(), "batch 1");
    // Also where the batch ends by the quota.
    pair.close();
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(1),
        |client| client,
        hold,
        echo,
    );
    pair.client.send(b"x").unwrap();
    pair.client.send(b"y").unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take(), ["packet x", "batch 1"]);
    drop(pair.server.context().release());
    pair.host.process();
    drop(pair.server.context().release());
    pair.close();
}

#[test]
fn epp_21_packets_come_in_the_order_in_which_they_were_sent() {
    let pair = Pair::with(
        |server| server,
        |client| client.init_set_maximum_packet_count(64),
        echo,
        echo,
    );
    let big = [b'z'; 900];
    for number in 0..60 {
        let mut payload = big;
        payload[..8].copy_from_slice(format!("{number:08}").as_bytes());
        pair.client.send(&payload).unwrap();
    }
    assert!(pair.client.counters().ring_full > 0, "some had to wait in line");
    while pair.host.process() {}
    let log = pair.server.context().take();
    let order: Vec<String> = log
        .iter()
        .filter_map(|event| Some(event.strip_prefix("packet ")?.get(..8)?.to_string()))
        .collect();
    let expected: Vec<String> = (0..60).map(|number| format!("{number:08}")).collect();
    assert_eq!(order, expected);
    pair.close();
}
