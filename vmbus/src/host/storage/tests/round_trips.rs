//! What the driver writes is what the controller reads, and the other way round, whatever the values: the two are written
//! independently, each with numbers and offsets of its own.

use proptest::prelude::*;

use super::super::config::Version;
use super::super::state::{Phase, Session};
use super::super::target::Cdb as ServerCdb;
use super::super::wire::{Answer, Incoming, unasked};
use super::super::{Outcome, Sense, srb_status};
use crate::device::storage::protocol::{
    self, Address, Answer as DriverAnswer, Direction, Execute, Operation, Packet, Properties,
};
use crate::device::storage::scsi::{Cdb, unmap_parameters};

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn cdb() -> impl Strategy<Value = Cdb> {
    prop_oneof![
        (any::<u64>(), any::<u32>()).prop_map(|(lba, blocks)| Cdb::read(lba, blocks)),
        (any::<u32>(), any::<u16>()).prop_map(|(lba, blocks)| Cdb::write(lba.into(), blocks.into())),
        (any::<u64>(), any::<u32>()).prop_map(|(lba, blocks)| Cdb::write_through(lba, blocks)),
        (any::<u8>(), any::<u16>()).prop_map(|(page, len)| Cdb::inquiry_page(page, len)),
        any::<u32>().prop_map(Cdb::report_luns),
        any::<u16>().prop_map(Cdb::unmap),
        Just(Cdb::test_unit_ready()),
    ]
}

/// The first request of a client, for the length of the answer.
fn request(len: usize) -> Incoming {
    Incoming::copy(&[0; 64][..len])
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn requests_of_the_driver_are_what_the_controller_reads(
        (path, target, lun) in any::<(u8, u8, u8)>(),
        cdb in cdb(),
        transfer_bytes in any::<u32>(),
        direction in 0_u8..3,
        version in 0_usize..4,
    ) {
        let version = protocol::Version::LADDER[version];
        let execute = Execute {
            address: Address { path, target, lun },
            cdb,
            direction: [Direction::Out, Direction::In, Direction::None][usize::from(direction)],
            transfer_bytes,
        };
        let packet = execute.packet(version);
        let read = Incoming::copy(packet.bytes());
        prop_assert_eq!((read.len(), read.operation()), (version.packet_len(), 3));
        let srb = read.srb();
        prop_assert_eq!((srb.path, srb.target, srb.lun), (path, target, lun));
        prop_assert_eq!((srb.direction, srb.transfer), (direction, transfer_bytes));
        prop_assert_eq!(usize::from(srb.length), version.packet_len() - 12);
        // Hosts are told of all of the room for commands.
        prop_assert_eq!(&srb.cdb[..cdb.bytes().len()], cdb.bytes());
        prop_assert!(srb.cdb[cdb.bytes().len()..].iter().all(|byte| *byte == 0));
        prop_assert_eq!(usize::from(srb.cdb_length), cdb.bytes().len());
    }

    #[test]
    fn blocks_of_a_transfer_are_what_the_controller_reads(lba in any::<u64>(), blocks in any::<u32>(), small in any::<bool>()) {
        let (lba, blocks) = if small { (lba & 0xffff_ffff, blocks & 0xffff) } else { (lba, blocks) };
        for cdb in [Cdb::read(lba, blocks), Cdb::write(lba, blocks), Cdb::write_through(lba, blocks)] {
            let mut bytes = [0; 16];
            bytes[..cdb.bytes().len()].copy_from_slice(cdb.bytes());
            prop_assert_eq!(ServerCdb(bytes).blocks(), Some((lba, u64::from(blocks))));
        }
        let parameters = unmap_parameters(lba, blocks);
        prop_assert_eq!(&parameters[8..16], &lba.to_be_bytes());
        prop_assert_eq!(&parameters[16..20], &blocks.to_be_bytes());
    }

    #[test]
    fn outcomes_of_the_controller_are_what_the_driver_reads(
        (srb, scsi, transferred) in any::<(u8, u8, u32)>(),
        status in any::<u32>(),
        sense in any::<Option<[u8; 20]>>(),
        is_long in any::<bool>(),
    ) {
        let outcome = Outcome {
            srb_status: srb,
            scsi_status: scsi,
            sense: sense.map(Sense::raw),
            transferred,
            status: Some(status),
        };
        let answer = Answer::new(&request(if is_long { 64 } else { 48 }), status).with_outcome(&outcome);
        let read = DriverAnswer::parse(answer.as_bytes()).unwrap();
        prop_assert_eq!(read.status, status);
        let executed = read.executed().unwrap();
        prop_assert_eq!((executed.scsi.0, executed.transferred), (scsi, transferred));
        // The two flags stand in the same byte.
        prop_assert_eq!(executed.srb.0, srb & 0x3f);
        let has_sense = srb & srb_status::AUTOSENSE_VALID != 0;
        let expected = if has_sense { sense.unwrap_or_default().to_vec() } else { vec![] };
        prop_assert_eq!(executed.sense, expected);
    }

    #[test]
    fn sense_data_of_the_controller_is_what_the_driver_reads(
        (key, code, qualifier) in (0_u8..16, any::<u8>(), any::<u8>()),
        block in any::<u64>(),
        is_small in any::<bool>(),
    ) {
        let block = if is_small { block & 0xffff_ffff } else { block };
        for (sense, information) in [
            (Sense::fixed(key, code, qualifier), None),
            (Sense::fixed(key, code, qualifier).with_block(block), Some(block).filter(|block| *block <= 0xffff_ffff)),
            (Sense::descriptor(key, code, qualifier), None),
        ] {
            let read = protocol::Sense::parse(sense.as_bytes()).unwrap();
            prop_assert_eq!((read.key.0, read.code, read.information), (key, (code, qualifier), information));
        }
    }

    #[test]
    fn properties_of_the_controller_are_what_the_driver_reads(channels in any::<Option<u16>>(), max_transfer_bytes in any::<u32>()) {
        let answer = Answer::new(&request(48), 0).with_properties(channels, max_transfer_bytes);
        let read = DriverAnswer::parse(answer.as_bytes()).unwrap();
        let expected = Properties { max_channels: channels.unwrap_or(0), max_transfer_bytes, ..Properties::default() };
        prop_assert_eq!(read.properties(), Ok(expected));
    }

    #[test]
    fn any_number_is_a_version_of_both_ends_or_of_neither(number in prop_oneof![any::<u16>(), 0x0400_u16..0x0700]) {
        let ours = protocol::Version::LADDER.into_iter().find(|version| version.get() == number);
        let read = Version::from_wire(number);
        prop_assert_eq!(read.is_some(), ours.is_some());
        if let (Some(read), Some(ours)) = (read, ours) {
            prop_assert_eq!(u16::from_le_bytes([read.minor, read.major]), number);
            prop_assert_eq!(Incoming::copy(Packet::query_version(ours).bytes()).version(), number);
            let answer = Answer::new(&request(48), 0).with_version(number);
            prop_assert_eq!(&answer.as_bytes()[12..14], number.to_le_bytes());
        }
    }

    #[test]
    fn any_bytes_are_a_packet_of_a_client(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let read = Incoming::copy(&bytes);
        prop_assert_eq!(read.len(), bytes.len().min(64));
        let mut whole = bytes.clone();
        whole.resize(64.max(bytes.len()), 0);
        let word = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().unwrap());
        prop_assert_eq!(read.operation(), word(0));
        prop_assert_eq!(u32::from(read.version()), word(12) & 0xffff);
        prop_assert_eq!(u32::from(read.sub_channels()), word(12) & 0xffff);
        let srb = read.srb();
        prop_assert_eq!((u32::from(srb.length), srb.transfer), (word(12) & 0xffff, word(24)));
        prop_assert_eq!(&[srb.path, srb.target, srb.lun, srb.cdb_length], &whole[17..21]);
        prop_assert_eq!(srb.direction, whole[22]);
        prop_assert_eq!(&srb.cdb, &whole[28..44]);
        // Whatever the command is, its blocks are some or none, and its answer is as long as it was.
        let _ = ServerCdb(srb.cdb).blocks();
        prop_assert_eq!(Answer::new(&read, 0).as_bytes().len(), read.len().max(12));
    }

    #[test]
    fn answers_take_any_bytes_anywhere(puts in prop::collection::vec((0_usize..200, prop::collection::vec(any::<u8>(), 0..80)), 0..6), len in 0_usize..200) {
        let mut answer = Answer::new(&request(64), 0);
        answer.set_len(usize::MAX);
        let mut model = answer.as_bytes().to_vec();
        prop_assert_eq!(model.len(), 128);
        for (at, bytes) in puts {
            answer.put(at, &bytes);
            for (target, source) in model.iter_mut().skip(at).zip(bytes) {
                *target = source;
            }
        }
        answer.set_len(len);
        prop_assert_eq!(answer.as_bytes(), &model[..len.min(128)]);
    }

    #[test]
    fn any_number_is_a_session(number in any::<u32>()) {
        let session = Session::unpack(number);
        let again = Session::unpack(session.pack());
        prop_assert_eq!((again.phase, again.version), (session.phase, session.version));
    }
}

#[test]
fn every_phase_of_a_session_goes_there_and_back() {
    for phase in [
        Phase::Begin,
        Phase::Version,
        Phase::Properties,
        Phase::End,
        Phase::Ready,
    ] {
        for version in [Version::V4_2, Version::V5_1, Version::V6_0, Version::V6_2] {
            let read = Session::unpack(Session { phase, version }.pack());
            assert_eq!((read.phase, read.version), (phase, version));
        }
    }
}

#[test]
fn control_packets_and_notices_go_there_and_back() {
    for operation in [
        Operation::BEGIN_INITIALIZATION,
        Operation::QUERY_PROPERTIES,
        Operation::END_INITIALIZATION,
        Operation::RESET_BUS,
    ] {
        for version in [None, Some(protocol::Version::V4_2), Some(protocol::Version::V6_2)] {
            let packet = Packet::control(operation, version);
            let read = Incoming::copy(packet.bytes());
            let len = version.map_or(48, protocol::Version::packet_len);
            assert_eq!((read.len(), read.operation()), (len, operation.0));
        }
    }
    for operation in [Operation::ENUMERATE_BUS, Operation::REMOVE_DEVICE] {
        for is_long in [false, true] {
            let (bytes, len) = unasked(operation.0, is_long);
            assert_eq!(len, if is_long { 64 } else { 48 });
            assert_eq!(protocol::parse_notice(&bytes[..len]), Ok(operation));
        }
    }
}
