//! The protocol: order, versions, what is not answered.

use super::super::{Address, Config, Kind, Version, Violation};
use super::support::{AT_ONCE, Data, Ground, IDE, SCSI, SOON, connect, packet, request};
use crate::memory::{DmaBuffer, Mdl};
use crate::ring::{ExternalToSend, GpaRangeToSend, Header};

const OUT_OF_ORDER: u32 = 0xC000_0184;

#[test]
fn the_order_is_enforced() {
    let ground = Ground::opened(Config::default());
    let version = 0x0602_u16.to_le_bytes();
    for (due, rest) in [(7_u32, [0, 0]), (9, version), (10, [0, 0]), (8, [0, 0])] {
        for operation in [7, 9, 10, 8, 6] {
            if operation != due {
                assert_eq!(ground.control(operation, &rest).status(), OUT_OF_ORDER);
                assert_eq!(ground.controller.take_violations(), [Violation::OutOfOrder(operation)]);
            }
        }
        // Nor is a command taken.
        let answer = ground.ask(&request(Address::lun(0), &[0; 6], &Data::None), None);
        assert_eq!(answer.status(), OUT_OF_ORDER);
        assert_eq!(ground.controller.take_violations(), [Violation::OutOfOrder(3)]);
        assert!(!ground.controller.is_ready());
        let answer = ground.control(due, &rest);
        assert_eq!((answer.u32(0), answer.u32(4), answer.status()), (1, 0, 0));
    }
    assert!(ground.controller.is_ready());
    assert_eq!(ground.control(7, &[]).status(), OUT_OF_ORDER, "only once");
    assert_eq!(ground.controller.take_violations(), [Violation::OutOfOrder(7)]);
    ground.close();
}

#[test]
fn versions_are_known_up_to_the_configured_one() {
    let known = [0x0602, 0x0600, 0x0501, 0x0402];
    for (index, maximum) in [Version::V6_2, Version::V6_0, Version::V5_1, Version::V4_2]
        .into_iter()
        .enumerate()
    {
        let ground = Ground::opened(Config {
            max_version: maximum,
            ..Config::default()
        });
        ground.control(7, &[]);
        let unknown = [0, 0x0200, 0x0403, 0x0601, 0x0700, 0xFFFF];
        for version in unknown.into_iter().chain(known[..index].iter().copied()) {
            let answer = ground.control(9, &u16::to_le_bytes(version));
            assert_eq!((answer.u32(0), answer.status()), (1, 0xC000_0059), "{version:#x}");
        }
        let answer = ground.control(9, &u16::to_le_bytes(known[index]));
        assert_eq!((answer.status(), answer.u32(12)), (0, u32::from(known[index])));
        let properties = ground.control(10, &[]);
        // Channels, flags, bytes.
        let has_channels = u32::from(known[index] >= 0x0501);
        assert_eq!(
            (properties.u32(16), properties.u32(20), properties.u32(24)),
            (0, has_channels, 0x4_0000)
        );
        let channels = ground.control(13, &[0, 0]).status();
        assert_eq!(channels, if has_channels == 1 { 0 } else { OUT_OF_ORDER });
        if has_channels == 1 {
            assert_eq!(ground.control(13, &[2, 0]).status(), 0xC000_000D);
        }
        ground.control(8, &[]);
        assert!(ground.controller.is_ready());
    }
}

#[test]
fn answers_are_as_long_as_their_requests() {
    let ground = Ground::opened(Config::default());
    assert_eq!(ground.ask(&packet(7, &[])[..48], None).bytes.len(), 48);
    assert_eq!(ground.ask(&packet(9, &[2, 6])[..64], None).bytes.len(), 64);
    let answer = ground.ask(&packet(10, &[])[..16], None);
    assert_eq!(answer.bytes.len(), 16, "cut, not refused");
    ground.close();
}

#[test]
fn a_packet_without_the_completion_flag_stops_the_ring() {
    let ground = Ground::ready(Config::default());
    ground.client.send(&packet(6, &[])).unwrap();
    ground.is_deaf();
    assert_eq!(ground.controller.take_violations(), [Violation::NoCompletionRequested]);
    // Opening it again revives it, from the beginning.
    drop(ground.client.disable(SOON).unwrap());
    let client = connect(&ground.host, SCSI);
    assert!(!ground.controller.is_ready());
    let ground = Ground { client, ..ground };
    ground.initialise(0x0602);
    ground.close();
}

#[test]
fn packets_that_are_wrong_in_themselves_stop_the_ring() {
    let request = |len| request(Address::lun(0), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &Data::In(len));
    let cases: [(Vec<u8>, Violation); 6] = [
        (
            packet(3, &[])[..48].to_vec(),
            Violation::ShortPacket { operation: 3, len: 48 },
        ),
        (
            vec![3, 0, 0, 0, 0, 0, 0, 0],
            Violation::ShortPacket { operation: 3, len: 8 },
        ),
        (packet(2, &[]).to_vec(), Violation::UnknownOperation(2)),
        (packet(11, &[]).to_vec(), Violation::UnknownOperation(11)),
        (packet(99, &[]).to_vec(), Violation::UnknownOperation(99)),
        (
            request(512).to_vec(),
            Violation::MemoryTooShort {
                transfer: 512,
                memory: 0,
            },
        ),
    ];
    for (payload, violation) in cases {
        let ground = Ground::ready(Config::default());
        ground.stops_at(&payload, None);
        assert_eq!(ground.controller.take_violations(), [violation]);
    }
}

#[test]
fn memory_lies_in_one_range_at_least_as_long_as_the_transfer() {
    let (ground, memory) = Ground::with_disk(Default::default());
    memory.write_at(0, &[7; 1024]).unwrap();
    let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    // Longer is fine.
    let payload = request(Address::lun(0), &cdb, &Data::In(512));
    let answer = ground.ask(&payload, ground.mdl(&Data::In(1024)));
    assert_eq!((answer.transferred(), &answer.data[..512]), (512, &[7; 512][..]));
    assert_eq!(answer.data[512..], [0xCC; 512]);
    // At any offset in the page.
    let buffer = DmaBuffer::allocate(ground.platform, 8192).unwrap();
    let odd = Mdl::from(buffer).range(4095, 600).unwrap();
    let answer = ground.ask(&payload, Some(odd));
    assert_eq!(answer.data[..512], [7; 512]);
    // Shorter is not.
    ground.stops_at(&payload, ground.mdl(&Data::In(511)));
    let short = Violation::MemoryTooShort {
        transfer: 512,
        memory: 511,
    };
    assert_eq!(ground.controller.take_violations(), [short]);

    let (ground, _) = Ground::with_disk(Default::default());
    let piece = || ground.mdl(&Data::In(256)).unwrap();
    let two = Mdl::chain([piece(), piece()]).unwrap();
    ground.stops_at(&payload, Some(two));
    assert_eq!(ground.controller.take_violations(), [Violation::TooManyRanges(2)]);

    // Memory that is described and not lent is nobody's to write to.
    let (ground, _) = Ground::with_disk(Default::default());
    let range = GpaRangeToSend {
        byte_count: 512,
        byte_offset: 0,
        pfns: &[7],
    };
    let external = ExternalToSend::GpaDirect(core::slice::from_ref(&range));
    assert!(
        ground
            .client
            .send_raw_for_tests(Header::gpa_direct(1 << 32), &[&payload], external)
    );
    ground.host.process();
    ground.is_deaf();
    assert_eq!(ground.controller.take_violations(), [Violation::MemoryNotLent]);
}

#[test]
fn request_blocks_that_cannot_be_are_refused() {
    let (ground, _) = Ground::with_disk(Default::default());
    let good = request(Address::lun(0), &[0; 6], &Data::None);
    let with = |changes: &[(usize, u8)]| {
        let mut bytes = good;
        for (at, value) in changes {
            bytes[*at] = *value;
        }
        bytes
    };
    for (payload, srb_status, violation) in [
        (with(&[(12, 0x24)]), 0x15, Violation::SrbLength(0x24)),
        (with(&[(20, 0)]), 0x06, Violation::CdbLength(0)),
        (with(&[(20, 17)]), 0x06, Violation::CdbLength(17)),
        (with(&[(22, 3)]), 0x06, Violation::Direction(3)),
    ] {
        assert_eq!(ground.ask(&payload, None).srb_status(), srb_status);
        assert_eq!(ground.controller.take_violations(), [violation]);
    }
    let payload = request(Address::lun(0), &[0x28; 10], &Data::In(0x4_0200));
    ground.stops_at(&payload, ground.mdl(&Data::In(0x4_1200)));
    assert_eq!(
        ground.controller.take_violations(),
        [Violation::TransferTooLong(0x4_1200)]
    );
    let (ground, _) = Ground::with_disk(Default::default());
    let config = Config {
        max_transfer_bytes: 1024,
        ..Config::default()
    };
    drop(ground);
    let ground = Ground::ready(config);
    let payload = request(Address::lun(0), &[0x28; 10], &Data::In(1536));
    let answer = ground.ask(&payload, ground.mdl(&Data::In(1536)));
    assert_eq!((answer.srb_status(), answer.status()), (0x06, 0xC000_0185));
    assert_eq!(ground.controller.take_violations(), [Violation::TransferTooLong(1536)]);
    ground.close();
}

#[test]
fn older_versions_have_shorter_requests() {
    let ground = Ground::opened(Config {
        max_version: Version::V4_2,
        ..Config::default()
    });
    ground.initialise(0x0402);
    ground.add(Address::lun(0), 1 << 20, Default::default(), Default::default());
    let announced = ground.unasked();
    assert_eq!((announced.len(), announced[0].len(), announced[0][0]), (1, 48, 11));
    let mut payload = request(Address::lun(0), &[0; 6], &Data::None);
    payload[12] = 0x24;
    let answer = ground.ask(&payload[..48], None);
    assert_eq!((answer.bytes.len(), answer.srb_status()), (48, 1));
    ground.close();
}

#[test]
fn a_disk_that_comes_or_goes_is_announced_to_clients_that_are_ready() {
    let ground = Ground::opened(Config::default());
    ground.add(Address::lun(1), 1 << 20, Default::default(), Default::default());
    assert_eq!(ground.unasked().len(), 0, "it will look anyway");
    ground.initialise(0x0602);
    ground.add(Address::lun(2), 1 << 20, Default::default(), Default::default());
    ground.controller.detach(Address::lun(1)).unwrap();
    assert!(ground.controller.detach(Address::lun(1)).is_none());
    let mut enumerate = vec![0; 64];
    enumerate[0] = 11;
    assert_eq!(ground.unasked(), [enumerate.clone(), enumerate]);
    ground.close();
}

#[test]
fn an_ide_disk_is_found_whatever_path_is_named() {
    let config = Config {
        kind: Kind::Ide { channel: 1, device: 0 },
        ..Config::default()
    };
    let ground = Ground::ready(config);
    let at = |path, target| Address { path, target, lun: 0 };
    ground.add(at(1, 0), 1 << 20, Default::default(), Default::default());
    assert_eq!(ground.run_at(at(0, 0), &[0; 6], Data::None).srb_status(), 1);
    assert_eq!(ground.run_at(at(1, 0), &[0; 6], Data::None).srb_status(), 1);
    assert_eq!(ground.run_at(at(0, 1), &[0; 6], Data::None).srb_status(), 0x20);
    assert_eq!(
        ground.client.interface_instance(),
        crate::protocol::Guid::literal("00000001-0000-8899-0000-000000000000")
    );
    let offered = ground.client.offer_user_defined();
    assert_eq!(offered[..12], [0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    let classes: Vec<_> = ground.host.offers().map(|offer| offer.class).collect();
    assert_eq!(classes, [IDE]);
    ground.close();
}

#[test]
fn resets_and_requests_after_the_end_of_the_channel() {
    let ground = Ground::ready(Config::default());
    for operation in [4, 5, 6] {
        assert_eq!(ground.control(operation, &[]).status(), 0);
    }
    assert_eq!(ground.controller.resets(), 3);
    ground.controller.revoke(SOON).unwrap();
    let refused = ground
        .client
        .send_synchronous_request(&packet(6, &[]), None, AT_ONCE, &mut [0; 64])
        .unwrap_err();
    assert!(matches!(refused.error, crate::kmcl::Error::Gone(_)));
    assert_eq!(ground.controller.channel_id(), None);
    drop(ground.client.disable(SOON).unwrap());
    // Offered again, to another client.
    ground.controller.offer().unwrap();
    assert_eq!(ground.controller.offer(), Err(crate::kmcl::Error::WrongState));
    let client = connect(&ground.host, SCSI);
    let ground = Ground { client, ..ground };
    ground.initialise(0x0602);
    ground.close();
}
