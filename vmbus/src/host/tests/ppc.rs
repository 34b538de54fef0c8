//! `VmbChannelInitSetProcessPacketCallbacks`.

use std::sync::Arc;

use super::support::*;
use crate::kmcl::{Channel, Error, Instance, Level};

#[test]
fn ppc_1_the_function_takes_two_callbacks_with_the_documented_arguments() {
    // Channel, packet (with payload and flags) -> nothing; channel, count -> nothing: this would not compile otherwise.
    fn process_packet(_: &End, packet: crate::kmcl::IncomingPacket<Arc<Log>>) {
        let (_, _): (&[u8], bool) = (packet.payload(), packet.has_external_data());
    }
    fn processing_complete(_: &End, _: u32) {}
    let (host, _) = host();
    let client = Channel::allocate_client_with(&host, Arc::<Log>::default()).unwrap();
    drop(client.init_set_process_packet_callbacks(process_packet, processing_complete));
    assert_refused("PPC-1", "E0593", "position in an interface table");
}

#[test]
fn ppc_2_a_channel_that_is_not_enabled_accepts_both_callbacks() {
    let pair = Pair::new(echo);
    pair.client.send(b"hello").unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take(), ["packet hello", "batch 1"]);
    pair.close();
}

#[test]
fn ppc_3_it_works_on_servers_and_clients_alike() {
    let pair = Pair::new(echo);
    pair.server.send(b"to the client").unwrap();
    pair.client.send(b"to the server").unwrap();
    pair.host.process();
    assert_eq!(pair.client.context().take(), ["packet to the client", "batch 1"]);
    assert_eq!(pair.server.context().take(), ["packet to the server", "batch 1"]);
    pair.close();
}

#[test]
fn ppc_4_there_is_no_invalid_channel_to_give_it() {
    assert_refused("PPC-4", "E0382", "no value of the type is invalid");
    assert_eq!(Error::WrongState.ntstatus().0, 0xc000_00ef);
}

#[test]
fn ppc_5_an_enabled_channel_has_no_such_function_and_keeps_its_callbacks() {
    assert_refused("PPC-5", "E0599", "no `init_*` functions");
    // A channel that is disabled is not enabled by being initialised, and the other way round.
    let pair = Pair::new(echo);
    let disabled = pair.client.disable(SOON).unwrap();
    let client = disabled.init_set_process_packet_callback(hold).enable(SOON).unwrap();
    pair.server.send(b"x").unwrap();
    pair.host.process();
    assert_eq!(
        client.context().held_count(),
        1,
        "the callback of before it was enabled"
    );
    drop(client.context().release());
    pair.host.process();
    drop(client.disable(SOON).unwrap());
}

#[test]
fn ppc_6_no_other_status_exists() {
    // The function returns the channel itself: there is no status at all.
    let (host, _) = host();
    let client: DisabledEnd = client_with(&host, echo);
    let _: DisabledEnd = client.init_set_process_packet_callback(echo);
    assert_refused("PPC-6", "E0277", "returns the channel");
}

#[test]
fn ppc_7_the_second_callback_may_be_missing() {
    let pair = Pair::with(
        |server| server.init_set_process_packet_callback(hold),
        |client| client,
        hold,
        echo,
    );
    pair.client.send(b"hello").unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().held_count(), 1);
    assert!(pair.server.context().take().is_empty(), "no batch is reported");
    drop(pair.server.context().release());
    pair.close();
}

#[test]
fn ppc_8_each_packet_is_indicated_once() {
    let pair = Pair::new(echo);
    for number in 0..40 {
        pair.client.send(format!("{number:08}").as_bytes()).unwrap();
        if number % 7 == 0 {
            pair.host.process();
        }
    }
    pair.host.process();
    let seen: Vec<String> = pair
        .server
        .context()
        .take()
        .into_iter()
        .filter(|event| event.starts_with("packet"))
        .collect();
    let expected: Vec<String> = (0..40).map(|number| format!("packet {number:08}")).collect();
    assert_eq!(seen, expected);
    pair.close();
}

#[test]
fn ppc_9_each_time_the_ring_runs_empty_the_batch_ends() {
    let pair = Pair::new(echo);
    for packets in [1, 3, 2] {
        for _ in 0..packets {
            pair.client.send(b"x").unwrap();
        }
        pair.host.process();
    }
    let log = pair.server.context().take();
    let batches: Vec<&String> = log.iter().filter(|event| event.starts_with("batch")).collect();
    assert_eq!(batches, ["batch 1", "batch 3", "batch 2"]);
    pair.close();
}

#[test]
fn ppc_10_the_end_comes_after_the_last_packet_of_the_batch() {
    let pair = Pair::new(echo);
    for _ in 0..3 {
        pair.client.send(b"x").unwrap();
    }
    pair.host.process();
    assert_eq!(
        pair.server.context().take(),
        ["packet x", "packet x", "packet x", "batch 3"]
    );
    pair.close();
}

#[test]
fn ppc_11_the_counts_sum_up_to_the_deliveries() {
    let pair = Pair::new(echo);
    for round in 0..20 {
        for _ in 0..round % 4 {
            pair.client.send(b"x").unwrap();
        }
        pair.host.process();
    }
    let log = pair.server.context().take();
    let sum: usize = log
        .iter()
        .filter_map(|event| event.strip_prefix("batch ")?.parse::<usize>().ok())
        .sum();
    assert_eq!(sum, count(&log, "packet"));
    assert_eq!(sum as u64, pair.server.counters().packets_processed);
    pair.close();
}

#[test]
fn ppc_12_without_traffic_no_callback_comes() {
    let pair = Pair::new(echo);
    for _ in 0..3 {
        pair.host.process();
        pair.server.process();
    }
    assert!(pair.server.context().take().is_empty());
    pair.close();
}

#[test]
fn ppc_13_callbacks_are_those_of_their_own_channel() {
    let (host, _) = host();
    let other_class = crate::protocol::Guid::literal("5a17e5a1-0000-4000-8000-0000000000bb");
    let first = server_with(&host, echo).enable(SOON).unwrap();
    let second = server_with(&host, echo)
        .init_set_target(other_class, Instance::Any)
        .enable(SOON)
        .unwrap();
    let to_first = client_with(&host, echo).enable(SOON).unwrap();
    let to_second = client_with(&host, echo)
        .init_set_target(other_class, Instance::Any)
        .enable(SOON)
        .unwrap();
    first.context().take();
    second.context().take();
    to_second.send(b"second").unwrap();
    host.process();
    assert!(first.context().take().is_empty());
    assert_eq!(second.context().take(), ["packet second", "batch 1"]);
    drop(to_first);
}

#[test]
fn ppc_14_queue_management_cannot_be_suppressed() {
    assert_row("PPC-14", "not applicable", "switch");
}

#[test]
fn ppc_15_without_callbacks_packets_are_completed_empty_and_counted() {
    let (host, _) = host();
    let server = Channel::allocate_server(&host)
        .unwrap()
        .init_set_target(CLASS, Instance::Any)
        .enable(SOON)
        .unwrap();
    let client = client_with(&host, echo).enable(SOON).unwrap();
    let mut answer = [7; 8];
    let sent = client
        .send_synchronous_request(b"anyone?", None, SOON, &mut answer)
        .unwrap();
    assert_eq!((sent.len, answer), (0, [7; 8]));
    assert_eq!(server.counters().dropped, 1);
}

#[test]
fn ppc_16_completions_do_not_reach_the_packet_callback() {
    let pair = Pair::new(echo);
    let mut answer = [0; 8];
    pair.client
        .send_synchronous_request(b"question", None, SOON, &mut answer)
        .unwrap();
    let mut packet = pair.client.packet_allocate().unwrap();
    packet.set_completion_routine(|channel, packet, status| {
        channel
            .context()
            .note(format!("routine {status:?} {}", packet.completion().len()));
    });
    packet
        .send(b"question", None, crate::kmcl::SendFlags::WAIT_FOR_COMPLETION)
        .unwrap();
    pair.host.process();
    assert_eq!(pair.client.context().take(), ["routine Ok(()) 8"]);
    pair.close();
}

#[test]
fn ppc_17_callbacks_run_at_passive_if_that_is_asked_for() {
    let pair = Pair::with(
        |server| server.init_set_incoming_processing_at_passive(Level::Passive),
        |client| client,
        |channel, packet| channel.context().note(format!("{:?}", packet.level())),
        echo,
    );
    pair.client.send(b"x").unwrap();
    pair.host.process();
    assert!(pair.server.context().take().is_empty(), "not at dispatch");
    assert!(pair.server.needs_passive());
    pair.server.process_at_passive();
    assert_eq!(pair.server.context().take(), ["packet x", "Passive", "batch 1"]);
    pair.server.set_incoming_processing_at_passive(Level::Dispatch);
    pair.client.send(b"y").unwrap();
    pair.host.process();
    assert_eq!(pair.server.context().take(), ["packet y", "Dispatch", "batch 1"]);
    pair.close();
}

#[test]
fn setting_callbacks_again_replaces_them_also_after_disabling() {
    let (host, _) = host();
    let server =
        server_with(&host, hold).init_set_process_packet_callback(|channel, _| channel.context().note("second"));
    let server = server.enable(SOON).unwrap();
    let client = client_with(&host, echo).enable(SOON).unwrap();
    server.context().take();
    client.send(b"x").unwrap();
    host.process();
    assert_eq!(server.context().take(), ["second"]);
    let server = server.disable(SOON).unwrap();
    let server = server.init_set_process_packet_callback(|channel, _| channel.context().note("third"));
    let server = server.enable(SOON).unwrap();
    let client = client.disable(SOON).unwrap().enable(SOON).unwrap();
    server.context().take();
    client.send(b"x").unwrap();
    host.process();
    assert_eq!(server.context().take(), ["third"]);
}
