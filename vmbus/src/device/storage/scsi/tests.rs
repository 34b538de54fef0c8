//! Commands, and the data that they bring.
#![expect(clippy::cast_possible_truncation, reason = "the numbers of a test are small")]

use proptest::prelude::*;

use super::*;

#[test]
fn transfers_take_the_short_form_where_it_can_say_it() {
    for (lba, blocks, len) in [
        (0, 1, 10),
        (u64::from(u32::MAX), 0xffff, 10),
        (u64::from(u32::MAX) + 1, 1, 16),
        (0, 0x1_0000, 16),
    ] {
        assert_eq!(Cdb::read(lba, blocks).bytes().len(), len);
        assert_eq!(Cdb::write(lba, blocks).bytes().len(), len);
    }
    assert_eq!(
        Cdb::write(0x0102_0304_0506_0708, 0x0a0b_0c0d).bytes(),
        [0x8a, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 0, 0]
    );
    assert_eq!(
        Cdb::write(0x0102_0304, 0x0506).bytes(),
        [0x2a, 0, 1, 2, 3, 4, 0, 5, 6, 0]
    );
    assert_eq!(Cdb::synchronize_cache().bytes(), [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Cdb::report_luns(0x808).bytes(), [0xa0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 0, 0]);
}

#[test]
fn unmap_names_one_range() {
    assert_eq!(
        unmap_parameters(0x0102_0304_0506_0708, 0x0a0b_0c0d),
        [
            0, 22, 0, 16, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 0, 0, 0, 0
        ]
    );
}

#[test]
fn a_list_of_units_is_read_as_far_as_it_came() {
    let list = [
        &[0, 0, 0, 48, 0, 0, 0, 0][..],
        &[0, 1, 0, 0, 0, 0, 0, 0],
        &[0x40, 200, 0, 0, 0, 0, 0, 0],
        // A well-known unit, one of another level, one beyond 255, and one that is cut off.
        &[0xc1, 1, 0, 0, 0, 0, 0, 0],
        &[0, 3, 0, 4, 0, 0, 0, 0],
        &[0x41, 0, 0, 0, 0, 0, 0, 0],
        &[0, 5, 0, 0],
    ]
    .concat();
    assert_eq!(luns(&list).collect::<Vec<_>>(), [1, 200]);
    // The length counts, too.
    let mut short = list;
    short[3] = 8;
    assert_eq!(luns(&short).collect::<Vec<_>>(), [1]);
}

#[test]
fn an_identity_is_the_best_of_the_unit() {
    let page = |designators: &[&[u8]]| {
        let content = designators.concat();
        [&[0, 0x83, 0, content.len() as u8][..], &content].concat()
    };
    let eui = [&[1, 2, 0, 8][..], &[1; 8]].concat();
    let naa = [&[1, 3, 0, 16][..], &[2; 16]].concat();
    let of_port = [&[1, 0x13, 0, 8][..], &[3; 8]].concat();
    let text = [&[2, 1, 0, 4][..], b"Msft"].concat();
    let identity = |page: &[u8]| parse_identity(page).map(|identity| identity.bytes().to_vec());
    assert_eq!(identity(&page(&[&text, &of_port, &eui, &naa])), Some(vec![2; 16]));
    assert_eq!(identity(&page(&[&naa, &eui])), Some(vec![2; 16]));
    assert_eq!(identity(&page(&[&eui])), Some(vec![1; 8]));
    assert_eq!(identity(&page(&[&text, &of_port])), None);
    // A length that leaves the page.
    assert_eq!(identity(&page(&[&[1, 3, 0, 200, 1]])), None);
}

proptest! {
    #[test]
    fn any_bytes_are_some_data_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300), page in 0_usize..5) {
        let mut bytes = bytes;
        if let Some(number) = bytes.get_mut(1) {
            // Pages that are looked at are more interesting.
            *number = [0, 0x80, 0x83, 0xb0, 0xb2][page];
        }
        let _ = Inquiry::parse(&bytes).map(|inquiry| inquiry.product.as_str().len());
        let _ = (Capacity::parse_10(&bytes), Capacity::parse_16(&bytes));
        prop_assert!(luns(&bytes).count() <= bytes.len() / 8);
        prop_assert!(vpd_pages(&bytes).len() <= bytes.len());
        let _ = (is_write_protected(&bytes), knows_write_through(&bytes), parse_serial(&bytes), parse_block_limits(&bytes), parse_provisioning(&bytes));
        if let Some(identity) = parse_identity(&bytes) {
            prop_assert!((1..=MAX_IDENTITY).contains(&identity.bytes().len()));
        }
    }
}
