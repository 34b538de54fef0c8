//! What a controller does wrong when it is told to.

use super::super::{Address, Config, DiskConfig, Effect, Fault, Filter, Outcome, Reset, Sense, opcode, operation};
use super::support::{AT_ONCE, Data, Ground, SOON, pattern, read_10, request, ten, write_10};
use crate::kmcl::{Error, Gone};

fn ground() -> Ground {
    Ground::with_disk(DiskConfig::default()).0
}

fn inject(ground: &Ground, fault: Fault) {
    ground.controller.inject(fault).unwrap();
}

fn read_block(ground: &Ground, block: u32) -> super::support::Reply {
    ground.run(&read_10(block, 1), Data::In(512))
}

#[test]
fn faults_meet_the_requests_that_their_filters_name_and_the_first_one_decides() {
    let ground = ground();
    let busy = |filter| Fault::new(filter, Effect::Answer(Outcome::busy()));
    inject(&ground, busy(Filter::reads().blocks(10..12)).times(2));
    inject(&ground, busy(Filter::command(opcode::TEST_UNIT_READY)).after(1));
    inject(&ground, busy(Filter::any().at(Address::lun(5))).always());
    let is_busy = |reply: &super::support::Reply| (reply.srb_status(), reply.scsi_status()) == (5, 8);
    assert!(!is_busy(&read_block(&ground, 9)));
    assert!(!is_busy(&read_block(&ground, 12)));
    assert!(is_busy(&ground.run(&read_10(0, 11), Data::In(11 * 512))));
    assert!(is_busy(&read_block(&ground, 11)));
    assert!(!is_busy(&read_block(&ground, 11)), "used up");
    let ready: Vec<bool> = (0..3).map(|_| is_busy(&ground.run(&[0; 6], Data::None))).collect();
    assert_eq!(ready, [false, true, false]);
    for _ in 0..3 {
        assert!(is_busy(&ground.run_at(Address::lun(5), &[0; 6], Data::None)));
    }
    ground.controller.clear_faults();
    assert_eq!(ground.run_at(Address::lun(5), &[0; 6], Data::None).srb_status(), 0x20);
    assert_eq!(ground.controller.commands(opcode::READ_10), 5);
    ground.close();
}

#[test]
fn outcomes_are_what_the_wire_says() {
    let ground = ground();
    let cases = [
        (Outcome::medium_error(11), 0x84, 2, (3, 0x11, 0), 0xC000_0185),
        (Outcome::unit_attention(0x29, 0), 0x84, 2, (6, 0x29, 0), 0xC000_0185),
        (Outcome::aborted_attention(0x2A, 9), 0x86, 2, (6, 0x2A, 9), 0xC000_0185),
        (Outcome::reservation_conflict(), 0x04, 0x18, (0, 0, 0), 0xC000_0185),
        (Outcome::task_set_full(), 0x04, 0x28, (0, 0, 0), 0xC000_0185),
        (Outcome::busy(), 0x05, 8, (0, 0, 0), 0x8000_0011),
        (Outcome::no_such_unit(), 0x20, 2, (0, 0, 0), 0xC000_00C0),
        (Outcome::no_space(), 0x84, 2, (7, 0x27, 7), 0xC000_0185),
        (Outcome::of(0x0E, 0).with_status(7), 0x0E, 0, (0, 0, 0), 7),
        (Outcome::of(0x09, 0), 0x09, 0, (0, 0, 0), 0xC000_00B5),
        (Outcome::of(0x0A, 0), 0x0A, 0, (0, 0, 0), 0xC000_009D),
        (Outcome::of(0x02, 0), 0x02, 0, (0, 0, 0), 0xC000_0120),
        (Outcome::of(0x16, 0), 0x16, 0, (0, 0, 0), 0xC000_0001),
    ];
    for (outcome, srb_status, scsi_status, sense, status) in cases {
        inject(&ground, Fault::new(Filter::reads(), Effect::Answer(outcome)));
        let reply = read_block(&ground, 11);
        assert_eq!((reply.srb_status(), reply.scsi_status()), (srb_status, scsi_status));
        assert_eq!((reply.sense(), reply.status()), (sense, status), "{outcome:?}");
        assert_eq!(reply.data, [0xCC; 512], "not executed");
    }
    inject(
        &ground,
        Fault::new(Filter::reads(), Effect::Answer(Outcome::medium_error(0x0102_0304))),
    );
    let reply = read_block(&ground, 0);
    assert_eq!(reply.bytes[28..36], [0xF0, 0, 3, 1, 2, 3, 4, 10]);
    let descriptor = Outcome::check(Sense::descriptor(6, 0x29, 1));
    inject(&ground, Fault::new(Filter::reads(), Effect::Answer(descriptor)));
    assert_eq!(read_block(&ground, 0).bytes[28..32], [0x72, 6, 0x29, 1]);
    ground.close();
}

#[test]
fn a_write_may_be_done_and_fail_all_the_same() {
    let ground = ground();
    let effect = Effect::ExecuteAndAnswer(Outcome::check(Sense::fixed(0xB, 0, 0)));
    inject(&ground, Fault::new(Filter::writes(), effect));
    ground
        .run(&write_10(3, 1), Data::Out(vec![5; 512]))
        .check(4, (0xB, 0, 0));
    assert_eq!(read_block(&ground, 3).good(), [5; 512]);
    inject(
        &ground,
        Fault::new(Filter::flushes(), Effect::Answer(Outcome::hardware_error())),
    );
    ground.run(&ten(0x35, 0, 0), Data::None).check(4, (4, 0x44, 0));
    ground.close();
}

#[test]
fn a_short_transfer_succeeds_with_fewer_bytes() {
    let ground = ground();
    let bytes = pattern(4, 1024);
    inject(&ground, Fault::new(Filter::writes(), Effect::Short(512)));
    assert_eq!(ground.run(&write_10(0, 2), Data::Out(bytes.clone())).transferred(), 512);
    assert_eq!(read_block(&ground, 1).good(), [0; 512], "not written");
    ground.run(&write_10(0, 2), Data::Out(bytes.clone())).good();
    inject(&ground, Fault::new(Filter::reads(), Effect::Short(700)));
    let reply = ground.run(&read_10(0, 2), Data::In(1024));
    assert_eq!((reply.transferred(), reply.srb_status()), (700, 1));
    assert_eq!(
        (&reply.data[..700], &reply.data[700..]),
        (&bytes[..700], &[0xCC; 324][..])
    );
    ground.close();
}

#[test]
fn a_command_may_bring_other_data_than_the_disk_has() {
    let ground = ground();
    let lies = |len| {
        Fault::new(
            Filter::command(opcode::READ_CAPACITY_10),
            Effect::data(&vec![9; len]).unwrap(),
        )
    };
    for (len, came) in [(0, 0), (5, 5), (8, 8), (100, 8)] {
        inject(&ground, lies(len));
        let reply = ground.run(&ten(0x25, 0, 0), Data::In(8));
        assert_eq!((reply.transferred(), reply.srb_status()), (came, 1));
        assert_eq!(
            reply.data,
            [vec![9; came as usize], vec![0xCC; 8 - came as usize]].concat()
        );
    }
    ground.close();
}

#[test]
fn held_requests_are_released_in_any_order() {
    let ground = ground();
    ground.controller.hold();
    for tag in 0..4_u8 {
        ground.start(tag.into(), &write_10(0, 1), Data::Out(vec![tag; 512]));
    }
    assert_eq!(ground.completed(), []);
    assert_eq!(ground.controller.held_count(), 4);
    let first = ground.controller.next_held(None).unwrap();
    assert_eq!((first.address, first.opcode), (Address::lun(0), 0x2A));
    let second = ground.controller.next_held(Some(first.number)).unwrap();
    assert!(ground.controller.release(second.number));
    assert!(!ground.controller.release(second.number));
    assert_eq!(ground.completed(), [(1, Some(1))]);
    assert!(ground.controller.release_with(first.number, Outcome::of(0x0B, 0)));
    assert_eq!(ground.completed(), [(0, Some(0x0B))]);
    ground.controller.resume();
    assert_eq!(ground.completed(), [(2, Some(1)), (3, Some(1))]);
    assert_eq!(
        read_block(&ground, 0).good(),
        [3; 512],
        "done in the order of their release"
    );
    // Held after it was done.
    inject(&ground, Fault::new(Filter::writes(), Effect::HoldAnswer));
    ground.start(9, &write_10(0, 1), Data::Out(vec![9; 512]));
    assert_eq!(ground.completed(), []);
    assert_eq!(read_block(&ground, 0).good(), [9; 512]);
    ground.controller.resume();
    assert_eq!(ground.completed(), [(9, Some(1))]);
    ground.close();
}

#[test]
fn a_disk_that_is_removed_takes_its_held_requests_with_it() {
    let ground = ground();
    ground.controller.hold();
    ground.start(1, &read_10(0, 1), Data::In(512));
    ground.host.process();
    let disk = ground.controller.detach(Address::lun(0)).unwrap();
    ground.controller.resume();
    assert_eq!(ground.completed(), [(1, Some(0x20))]);
    ground.controller.attach(Address::lun(0), disk).unwrap();
    read_block(&ground, 0).good();
    assert_eq!(ground.unasked().len(), 3);
    ground.close();
}

#[test]
fn a_reset_may_end_what_is_held() {
    let config = Config {
        reset: Reset::Aborts,
        ..Config::default()
    };
    let ground = Ground::ready(config);
    ground.add(Address::lun(0), 1 << 20, Default::default(), DiskConfig::default());
    ground.controller.hold();
    ground.start(1, &read_10(0, 1), Data::In(512));
    ground.host.process();
    assert_eq!(ground.control(6, &[]).status(), 0);
    assert_eq!(ground.completed(), [(1, Some(0x0E))]);
    ground.controller.resume();
    read_block(&ground, 0).check(4, (6, 0x29, 2));
    read_block(&ground, 0).good();
    ground.close();
}

#[test]
fn a_revoke_ends_requests_in_flight_without_an_answer() {
    let ground = ground();
    ground.controller.hold();
    ground.start(1, &read_10(0, 1), Data::In(512));
    ground.host.process();
    // Another one, which is still in the ring.
    ground.start(2, &read_10(0, 1), Data::In(512));
    ground.controller.revoke(SOON).unwrap();
    ground.host.process();
    let ended = std::mem::take(&mut *ground.client.context().completed.lock().unwrap());
    for (_, what) in &ended {
        assert_eq!(what, &Err(Error::Gone(Gone::Rescinded)));
    }
    assert_eq!(ended.len(), 2);
    assert_eq!(ground.controller.held_count(), 0);
    ground.close();
}

#[test]
fn a_client_that_closes_does_not_wait_for_what_is_held() {
    let ground = ground();
    ground.controller.hold();
    ground.start(1, &read_10(0, 1), Data::In(512));
    ground.host.process();
    assert_eq!(ground.controller.held_count(), 1);
    ground.close();
}

#[test]
fn answers_are_lost_doubled_strayed_and_changed() {
    let ground = ground();
    inject(&ground, Fault::new(Filter::reads(), Effect::NeverAnswer));
    let data = Data::In(512);
    let lost = ground.client.send_synchronous_request(
        &request(Address::lun(0), &read_10(0, 1), &data),
        ground.mdl(&data),
        AT_ONCE,
        &mut [0; 64],
    );
    assert_eq!(lost.unwrap_err().error, Error::Cancelled);
    assert_eq!(
        ground.client.counters().outgoing_outstanding,
        1,
        "its memory stays lent"
    );

    inject(&ground, Fault::new(Filter::reads(), Effect::AnswerTwice));
    read_block(&ground, 0).good();
    ground.host.process();
    assert_eq!(ground.client.counters().unknown_completions, 1);
    inject(&ground, Fault::new(Filter::reads(), Effect::StrayAnswer(0x7777)));
    read_block(&ground, 0).good();
    assert!(ground.controller.send_stray_answer(3, &[1; 64]));
    ground.host.process();
    assert_eq!(ground.client.counters().unknown_completions, 3);

    let change = Effect::rewrite(|answer| {
        assert_eq!(answer.as_bytes().len(), 64);
        answer.put(14, &[0xFF]);
        answer.put(300, &[1]);
        answer.set_len(16);
    });
    inject(&ground, Fault::new(Filter::reads(), change.unwrap()));
    let reply = read_block(&ground, 0);
    assert_eq!((reply.bytes.len(), reply.srb_status()), (16, 0xFF));
    // Longer than the client takes.
    let change = Effect::rewrite(|answer| answer.set_len(1000));
    inject(&ground, Fault::new(Filter::reads(), change.unwrap()));
    ground.start(5, &read_10(0, 1), Data::In(512));
    ground.host.process();
    let completed = std::mem::take(&mut *ground.client.context().completed.lock().unwrap());
    assert_eq!(completed, [(5, Err(Error::CompletionTruncated { len: 128 }))]);
    ground.close();
}

#[test]
fn initialisation_goes_wrong_as_well() {
    let ground = Ground::opened(Config::default());
    let version = Filter::operation(operation::QUERY_PROTOCOL_VERSION);
    ground.control(7, &[]);
    let garbage = Effect::rewrite(|answer| answer.put(0, &[0xA5; 64])).unwrap();
    inject(&ground, Fault::new(version.clone(), garbage));
    let reply = ground.control(9, &[2, 6]);
    assert_eq!(reply.bytes, [0xA5; 64]);
    // It was taken all the same, and the next operation is due.
    let properties = Filter::operation(operation::QUERY_PROPERTIES);
    inject(&ground, Fault::new(properties, Effect::Status(0xC000_0001)));
    assert_eq!(ground.control(10, &[]).status(), 0xC000_0001);
    inject(&ground, Fault::new(Filter::operation(8), Effect::Hold));
    let payload = super::support::packet(8, &[]);
    let held = ground
        .client
        .send_synchronous_request(&payload, None, AT_ONCE, &mut [0; 64]);
    assert_eq!(held.unwrap_err().error, Error::Cancelled);
    ground.controller.resume();
    ground.host.process();
    assert!(ground.controller.is_ready());
    ground.controller.send_unasked(operation::REMOVE_DEVICE);
    ground.controller.send_unasked_bytes(&[1, 2, 3]);
    let unasked = ground.unasked();
    assert_eq!((unasked[0][0], unasked[1].len()), (2, 8));
    ground.close();
}
