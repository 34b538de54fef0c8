//! Golden bytes: each message built with literal offsets and numbers, as Linux, FreeBSD and OpenVMM have them.

use proptest::prelude::*;
use zerocopy::FromZeros;

use super::channel::{
    CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenChannelResult, RelIdReleased,
};
use super::contact::{
    CONTACT_LEN_WITHOUT_CLIENT_ID, ConnectionState, FeatureFlags, InitiateContact, MessageTarget, Unload,
    UnloadResponse, VersionResponse,
};
use super::gpadl::{
    BODY_PAGES, GpadlBody, GpadlCreated, GpadlHeader, GpadlRange, GpadlTeardown, GpadlTorndown, HEADER_PAGES,
    MAX_GPADL_PAGES,
};
use super::message::MessageFull;
use super::offer::{AllOffersDelivered, OfferChannel, OfferFlags, RequestOffers, RescindChannelOffer};
use super::*;

/// A message of `len` zeros with these 32-bit words at these offsets.
fn golden(len: usize, words: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for &(offset, word) in words {
        bytes[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

const TARGET: MessageTarget = MessageTarget {
    sint: 2,
    vtl: 0,
    features: FeatureFlags::CLIENT_ID,
};

#[test]
fn contacts_before_5_0_carry_the_interrupt_page_and_later_ones_the_target() {
    let contact = |version, client_id| {
        InitiateContact::new(
            version,
            VpIndex(3),
            TARGET,
            0x7_0000_1000,
            [0x2000, 0x8_0000_3000],
            client_id,
        )
        .encode()
    };
    let mut old = golden(40, &[(0, 14), (8, 0x4_0000), (12, 3), (24, 0x2000), (32, 0x3000)]);
    old[16..24].copy_from_slice(&0x7_0000_1000_u64.to_le_bytes());
    old[36] = 8;
    assert_eq!(
        contact(Version::V4_0, None)
            .truncated(CONTACT_LEN_WITHOUT_CLIENT_ID)
            .as_slice(),
        old
    );

    let mut newer = golden(
        40,
        &[(0, 14), (8, 0x5_0003), (12, 3), (16, 2), (24, 0x2000), (32, 0x3000)],
    );
    newer[36] = 8;
    assert_eq!(
        contact(Version::V5_3, None)
            .truncated(CONTACT_LEN_WITHOUT_CLIENT_ID)
            .as_slice(),
        newer
    );

    let client = Guid::from_wire([0xab; 16]);
    let mut newest = golden(
        56,
        &[
            (0, 14),
            (8, 0x6_0000),
            (12, 3),
            (16, 2),
            (20, 8),
            (24, 0x2000),
            (32, 0x3000),
        ],
    );
    newest[36] = 8;
    newest[40..56].fill(0xab);
    assert_eq!(contact(Version::V6_0, Some(client)).as_slice(), newest);
}

#[test]
fn m7_version_responses_of_every_length_are_understood() {
    // QEMU: a byte, and padding to 12. No version, no connection id.
    for len in 9..=12 {
        let mut bytes = golden(12, &[(0, 15), (8, 1)]);
        bytes.truncate(len);
        let response = VersionResponse::decode(&bytes).unwrap();
        assert!(response.is_supported());
        assert_eq!(response.state(), ConnectionState::SUCCESSFUL);
        assert_eq!(response.message_connection(Version::V4_0), ConnectionId(1));
        assert_eq!(response.features(), FeatureFlags::empty());
    }
    assert_eq!(
        VersionResponse::decode(&golden(8, &[(0, 15)])).unwrap_err(),
        ParseError::TooShort {
            message_type: MessageType::VERSION_RESPONSE,
            len: 8,
            min_len: 9
        }
    );
    // Up to 5.3: 16 bytes; from 6.0 on: 20.
    let named = VersionResponse::decode(&golden(16, &[(0, 15), (8, 1), (12, 0x80_0074)])).unwrap();
    assert_eq!(named.message_connection(Version::V5_0), ConnectionId(0x80_0074));
    assert_eq!(
        named.message_connection(Version::V4_1),
        ConnectionId(1),
        "an echo of the version, not a connection"
    );
    let unnamed = VersionResponse::decode(&golden(16, &[(0, 15), (8, 1)])).unwrap();
    assert_eq!(unnamed.message_connection(Version::V5_3), ConnectionId(4));
    let newest = VersionResponse::decode(&golden(20, &[(0, 15), (8, 0x0201), (12, 4), (16, 0x8000_0008)])).unwrap();
    assert_eq!(newest.state(), ConnectionState::UNKNOWN_FAILURE);
    assert_eq!(newest.features().bits(), 0x8000_0008);
    assert!(!VersionResponse::decode(&golden(16, &[(0, 15)])).unwrap().is_supported());
}

#[test]
fn an_offer_has_its_fields_where_linux_has_them() {
    let mut bytes = golden(196, &[(0, 1)]);
    bytes[8..24].copy_from_slice(&Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f").to_wire());
    bytes[24..40].fill(0x11);
    bytes[56..58].copy_from_slice(&0x2011_u16.to_le_bytes());
    bytes[58..60].copy_from_slice(&64_u16.to_le_bytes());
    bytes[60..180].fill(0x22);
    bytes[180..182].copy_from_slice(&5_u16.to_le_bytes());
    bytes[182..184].copy_from_slice(&7_u16.to_le_bytes());
    bytes[184..188].copy_from_slice(&9_u32.to_le_bytes());
    bytes[188] = 33;
    bytes[189] = 1;
    bytes[190] = 1;
    bytes[192..196].copy_from_slice(&0x1_0009_u32.to_le_bytes());
    let offer = OfferChannel::decode(&bytes).unwrap();
    assert_eq!(offer.class(), Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"));
    assert_eq!(offer.instance(), Guid::from_wire([0x11; 16]));
    assert_eq!(
        offer.flags(),
        OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE | OfferFlags::TLNPI_PROVIDER
    );
    assert_eq!((offer.mmio_megabytes(), offer.mmio_megabytes_optional()), (64, 7));
    assert_eq!(offer.user_defined(), &[0x22; 120]);
    assert_eq!(offer.subchannel_index(), 5);
    assert_eq!(
        (offer.channel(), offer.connection()),
        (ChannelId(9), ConnectionId(0x1_0009))
    );
    assert_eq!((offer.monitor(), offer.is_dedicated_interrupt()), (Some(33), true));

    let ours = OfferChannel::new(offer.class(), offer.instance(), ChannelId(9), ConnectionId(0x1_0009))
        .with_flags(offer.flags())
        .with_mmio_megabytes(64, 7)
        .with_user_defined([0x22; 120])
        .with_subchannel_index(5);
    bytes[188..190].fill(0);
    assert_eq!(ours.encode().as_slice(), bytes);
    assert_eq!(ours.monitor(), None);
}

#[test]
fn messages_about_channels_are_these_bytes() {
    let mut open = golden(148, &[(0, 5), (8, 9), (12, 77), (16, 0xe1e10), (20, 3), (24, 17)]);
    open[28..148].fill(0x5a);
    assert_eq!(
        OpenChannel::new(ChannelId(9), OpenId(77), GpadlId(0xe1e10), 17, VpIndex(3), [0x5a; 120])
            .encode()
            .as_slice(),
        open
    );
    let result = OpenChannelResult::decode(&golden(20, &[(0, 6), (8, 9), (12, 77), (16, 0xc000_0001)])).unwrap();
    assert_eq!(
        (result.channel(), result.open_id(), result.status()),
        (ChannelId(9), OpenId(77), 0xc000_0001)
    );
    assert_eq!(
        CloseChannel::new(ChannelId(9)).encode().as_slice(),
        golden(12, &[(0, 7), (8, 9)])
    );
    assert_eq!(
        RelIdReleased::new(ChannelId(9)).encode().as_slice(),
        golden(12, &[(0, 13), (8, 9)])
    );
    assert_eq!(
        ModifyChannel::new(ChannelId(9), VpIndex(2)).encode().as_slice(),
        golden(16, &[(0, 22), (8, 9), (12, 2)])
    );
    let modified = ModifyChannelResponse::decode(&golden(16, &[(0, 24), (8, 9), (12, 5)])).unwrap();
    assert_eq!((modified.channel(), modified.status()), (ChannelId(9), 5));
    let rescind = RescindChannelOffer::decode(&golden(12, &[(0, 2), (8, 9)])).unwrap();
    assert_eq!(rescind.channel(), ChannelId(9));
    for (message, number) in [
        (RequestOffers {}.encode(), 3),
        (AllOffersDelivered {}.encode(), 4),
        (Unload {}.encode(), 16),
        (UnloadResponse {}.encode(), 17),
    ] {
        assert_eq!(message.as_slice(), golden(8, &[(0, number)]));
    }
}

#[test]
fn messages_about_gpadls_are_these_bytes() {
    let range = GpadlRange::new(0, 2 * 4096).unwrap();
    let header = GpadlHeader::describe(ChannelId(9), GpadlId(7), range, |index| {
        Ok::<u64, ()>(0x1_0000_0000 + index as u64)
    })
    .unwrap();
    let mut bytes = golden(
        44,
        &[(0, 8), (8, 9), (12, 7), (20, 8192), (28, 0), (32, 1), (36, 1), (40, 1)],
    );
    bytes[16..18].copy_from_slice(&24_u16.to_le_bytes());
    bytes[18..20].copy_from_slice(&1_u16.to_le_bytes());
    assert_eq!(header.as_slice(), bytes);
    let read = GpadlHeader::decode(&bytes).unwrap();
    assert_eq!(read.range(), Ok(range));
    assert_eq!(
        GpadlHeader::pages(&bytes).collect::<Vec<_>>(),
        [0x1_0000_0000, 0x1_0000_0001]
    );

    let created = GpadlCreated::decode(&golden(20, &[(0, 10), (8, 9), (12, 7), (16, 0x8000_ffff)])).unwrap();
    assert_eq!(
        (created.channel(), created.gpadl(), created.status()),
        (ChannelId(9), GpadlId(7), 0x8000_ffff)
    );
    assert_eq!(
        GpadlTeardown::new(ChannelId(9), GpadlId(7)).encode().as_slice(),
        golden(16, &[(0, 11), (8, 9), (12, 7)])
    );
    let torndown = GpadlTorndown::decode(&golden(12, &[(0, 12), (8, 7)])).unwrap();
    assert_eq!(torndown.gpadl(), GpadlId(7));
}

#[test]
fn g1_descriptions_have_26_pages_in_the_header_and_28_in_each_body() {
    for (pages, lens) in [
        (1, vec![36]),
        (25, vec![228]),
        (26, vec![236]),
        (27, vec![236, 24]),
        (54, vec![236, 240]),
        (55, vec![236, 240, 24]),
        (82, vec![236, 240, 240]),
    ] {
        let range = GpadlRange::new(0, pages * 4096).unwrap();
        assert_eq!((range.page_count(), range.message_count()), (pages, lens.len()));
        let page = |index| Ok::<u64, ()>(index as u64 * 3);
        let mut messages = vec![GpadlHeader::describe(ChannelId(1), GpadlId(2), range, page).unwrap()];
        let mut seen: Vec<u64> = GpadlHeader::pages(messages[0].as_slice()).collect();
        for number in 1..range.message_count() {
            let body = GpadlBody::describe(number, GpadlId(2), range, page).unwrap();
            assert_eq!(
                body.as_slice()[..16],
                golden(16, &[(0, 9), (8, u32::try_from(number).unwrap()), (12, 2)])
            );
            seen.extend(GpadlBody::pages(body.as_slice()));
            messages.push(body);
        }
        assert_eq!(
            messages
                .iter()
                .map(|message| message.as_slice().len())
                .collect::<Vec<_>>(),
            lens
        );
        assert_eq!(seen, (0..pages as u64).map(|index| index * 3).collect::<Vec<_>>());
        let byte_count = &messages[0].as_slice()[20..24];
        assert_eq!(byte_count, (u32::try_from(pages).unwrap() * 4096).to_le_bytes());
    }
    assert_eq!((HEADER_PAGES, BODY_PAGES), (26, 28));
}

#[test]
fn g1_a_description_is_limited_by_its_16_bit_length() {
    assert_eq!(GpadlRange::new(0, MAX_GPADL_PAGES * 4096).unwrap().page_count(), 8190);
    assert!(GpadlRange::new(0, 8192 * 4096).is_err());
    assert!(GpadlRange::new(1, MAX_GPADL_PAGES * 4096).is_err(), "one page more");
    assert!(GpadlRange::new(4096, 1).is_err());
    assert!(GpadlRange::new(0, 0).is_err());
    assert!(GpadlRange::new(usize::MAX, usize::MAX).is_err());
    assert_eq!(GpadlRange::new(4095, 2).unwrap().page_count(), 2);
}

#[test]
fn the_offering_side_refuses_descriptions_that_contradict_themselves() {
    let good = GpadlHeader::describe(ChannelId(1), GpadlId(2), GpadlRange::new(0, 4096).unwrap(), |_| {
        Ok::<u64, ()>(5)
    })
    .unwrap();
    for (offset, value) in [(16, 0_u8), (18, 0), (18, 2), (20, 1), (21, 0x20), (25, 0x10)] {
        let mut bytes = good.as_slice().to_vec();
        bytes[offset] = value;
        let header = GpadlHeader::decode(&bytes).unwrap();
        if offset == 20 {
            // 4097 bytes need a second page, which the length does not have.
            assert!(header.range().is_err());
        }
        assert!(
            matches!(header.range(), Err(ParseError::Inconsistent { .. })),
            "{offset}"
        );
    }
}

#[test]
fn m13_unused_bytes_of_a_message_are_zero() {
    let message = OpenChannel::new(ChannelId(1), OpenId(1), GpadlId(1), 1, VpIndex(0), [0xff; 120]).encode();
    let cut = message.truncated(30);
    assert_eq!(cut.as_slice().len(), 30);
    let mut grown = cut;
    grown.append(&[]).unwrap();
    assert_eq!(grown.as_slice()[4..8], [0; 4]);
    let mut full = MessageBytes::header(MessageType::GPADL_BODY);
    full.append(&[1; 232]).unwrap();
    assert_eq!(full.append(&[1]), Err(MessageFull));
    assert_eq!(full.as_slice().len(), 240);
}

#[test]
fn the_table_has_each_number_once_and_knows_its_names() {
    let numbers: Vec<u32> = MessageType::TABLE.iter().map(|row| row.message_type.0).collect();
    assert!(numbers.is_sorted_by(|earlier, later| earlier < later));
    assert_eq!(std::format!("{}", MessageType(6)), "OPEN_CHANNEL_RESULT (6)");
    assert_eq!(std::format!("{}", MessageType(0x99)), "message type 0x99");
    let lens: Vec<usize> = MessageType::TABLE.iter().map(|row| row.min_len).collect();
    assert_eq!(
        lens,
        [196, 12, 8, 8, 148, 20, 12, 28, 16, 20, 16, 12, 12, 40, 9, 8, 8, 16, 16]
    );
}

fn check_any<T: ChannelMessage>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(message) = T::decode(bytes) {
        prop_assert!(bytes.len() >= T::MIN_LEN);
        // What is written back and read again is the same.
        let encoded = message.encode();
        let again = T::decode(encoded.as_slice()).unwrap();
        prop_assert_eq!(again.as_bytes(), message.as_bytes());
        let fields = message.as_bytes();
        let known = fields.len().min(bytes.len() - 8);
        prop_assert_eq!(&fields[..known], &bytes[8..8 + known]);
    } else {
        prop_assert!(bytes.len() < T::MIN_LEN || MessageType::of(bytes).unwrap() != T::TYPE);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn m2_any_bytes_parse_or_are_refused(number in 0_u32..32, mut bytes in proptest::collection::vec(any::<u8>(), 0..=240)) {
        for (target, source) in bytes.iter_mut().zip(number.to_le_bytes()) {
            *target = source;
        }
        check_any::<OfferChannel>(&bytes)?;
        check_any::<RescindChannelOffer>(&bytes)?;
        check_any::<RequestOffers>(&bytes)?;
        check_any::<AllOffersDelivered>(&bytes)?;
        check_any::<OpenChannel>(&bytes)?;
        check_any::<OpenChannelResult>(&bytes)?;
        check_any::<CloseChannel>(&bytes)?;
        check_any::<GpadlHeader>(&bytes)?;
        check_any::<GpadlBody>(&bytes)?;
        check_any::<GpadlCreated>(&bytes)?;
        check_any::<GpadlTeardown>(&bytes)?;
        check_any::<GpadlTorndown>(&bytes)?;
        check_any::<RelIdReleased>(&bytes)?;
        check_any::<InitiateContact>(&bytes)?;
        check_any::<VersionResponse>(&bytes)?;
        check_any::<Unload>(&bytes)?;
        check_any::<UnloadResponse>(&bytes)?;
        check_any::<ModifyChannel>(&bytes)?;
        check_any::<ModifyChannelResponse>(&bytes)?;
        if let Ok(header) = GpadlHeader::decode(&bytes) {
            let _ = header.range();
            prop_assert!(GpadlHeader::pages(&bytes).count() <= HEADER_PAGES);
        }
        prop_assert!(GpadlBody::pages(&bytes).count() <= BODY_PAGES);
    }
}

#[test]
fn zeroed_messages_are_valid() {
    // `decode` fills a zeroed message: this is what short answers of old hosts become.
    assert!(!VersionResponse::new_zeroed().is_supported());
}
