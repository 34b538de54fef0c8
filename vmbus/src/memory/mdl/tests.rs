use super::*;
use crate::test_platform::TestPlatform;

fn platform() -> &'static TestPlatform {
    TestPlatform::leak()
}

fn buffer(platform: &'static TestPlatform, len: usize, seed: u8) -> DmaBuffer {
    let buffer = DmaBuffer::allocate(platform, len).unwrap();
    let bytes: Vec<u8> = (0..=250_u8)
        .cycle()
        .map(|byte| seed.wrapping_add(byte))
        .take(len)
        .collect();
    buffer.write_at(0, &bytes).unwrap();
    buffer
}

fn bytes(mdl: &Mdl) -> Vec<u8> {
    let mut bytes = vec![0; mdl.len()];
    mdl.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_chain_reads_as_its_parts_in_order() {
    let platform = platform();
    let parts = [
        buffer(platform, 10, 1),
        buffer(platform, 5000, 2),
        buffer(platform, 1, 3),
    ];
    let expected: Vec<u8> = parts.iter().flat_map(|part| bytes(&part.clone().into())).collect();
    let mdl = Mdl::chain(parts.map(Mdl::from)).unwrap();
    assert_eq!((mdl.len(), mdl.chain_len()), (5011, 3));
    assert_eq!(bytes(&mdl), expected);
}

#[test]
fn every_range_of_a_chain_reads_and_writes_the_same_bytes_as_a_plain_slice() {
    let platform = platform();
    let mdl = Mdl::chain([3, 9, 4].map(|len| Mdl::from(buffer(platform, len, 7)))).unwrap();
    let mut model = bytes(&mdl);
    for offset in 0..=16 {
        for len in 1..=16 - offset {
            let range = mdl.range(offset, len).unwrap();
            assert_eq!(bytes(&range), model[offset..offset + len]);
            let fill = u8::try_from((offset * 16 + len) % 256).unwrap();
            range.write_at(len / 2, &vec![fill; len - len / 2]).unwrap();
            model[offset + len / 2..offset + len].fill(fill);
            assert_eq!(bytes(&mdl), model);
        }
        assert_eq!(
            bytes(&mdl.range(offset, 0).unwrap()),
            model[offset..],
            "0 is: to the end"
        );
    }
}

#[test]
fn what_is_outside_is_refused_and_nothing_is_copied() {
    let mdl = Mdl::from(buffer(platform(), 100, 7));
    assert!(mdl.range(101, 0).is_err());
    assert!(mdl.range(1, 100).is_err());
    assert!(mdl.range(usize::MAX, 2).is_err());
    assert!(mdl.range(100, 0).unwrap().is_empty());
    let before = bytes(&mdl);
    assert!(matches!(mdl.write_at(1, &[0; 100]), Err(MdlError::OutOfRange(_))));
    let mut target = [9; 100];
    assert!(mdl.read_at(usize::MAX, &mut target).is_err());
    assert_eq!((bytes(&mdl), target), (before, [9; 100]));
}

#[test]
fn page_spans_cover_each_byte_once_and_name_its_page() {
    let platform = platform();
    let first = buffer(platform, 3 * PAGE_SIZE, 1);
    let second = buffer(platform, PAGE_SIZE, 2);
    let chain = Mdl::chain([first.slice(100, 2 * PAGE_SIZE).unwrap().into(), second.clone().into()]).unwrap();
    let spans: Vec<_> = chain
        .page_spans()
        .map(|span| (span.pfn, span.offset, span.len))
        .collect();
    assert_eq!(
        spans,
        [
            (first.pfns()[0], 100, PAGE_SIZE - 100),
            (first.pfns()[1], 0, PAGE_SIZE),
            (first.pfns()[2], 0, 100),
            (second.pfns()[0], 0, PAGE_SIZE)
        ]
    );
    // The second range starts at a page boundary, but the first does not end at one.
    assert_eq!(chain.wire_extent(), WireExtent { ranges: 2, pages: 4 });
}

#[test]
fn parts_that_meet_at_page_boundaries_share_a_range() {
    let platform = platform();
    let chain = Mdl::chain([
        buffer(platform, 2 * PAGE_SIZE, 0)
            .slice(7, 2 * PAGE_SIZE - 7)
            .unwrap()
            .into(),
        buffer(platform, PAGE_SIZE, 0).into(),
        buffer(platform, 5, 0).into(),
    ])
    .unwrap();
    assert_eq!(chain.wire_extent(), WireExtent { ranges: 1, pages: 4 });
    // An extent of one piece is computed, one of a chain is counted: both agree.
    for offset in [0, 1, 4089, 4096, 8192] {
        let one = Mdl::from(buffer(platform, 3 * PAGE_SIZE, 0)).range(offset, 0).unwrap();
        let counted = Mdl::chain([one.clone()]).unwrap().wire_extent();
        assert_eq!(one.wire_extent(), counted, "from {offset}");
    }
}

#[test]
fn kernel_memory_and_page_lists_name_the_same_pages() {
    let platform = platform();
    let pages = SharedPagesForTest::new(platform);
    // SAFETY: the block outlives the list, and is reached as shared pages only.
    let base = unsafe { pages.0.base().add(10) };
    // SAFETY: as above.
    let mdl = unsafe { Mdl::from_kernel_memory(platform, base, 5000) }.unwrap();
    mdl.write_at(4090, b"across").unwrap();
    let mut found = [0; 6];
    pages.0.read_at(4100, &mut found).unwrap();
    assert_eq!(&found, b"across");
    assert_eq!(bytes(&mdl.range(4090, 6).unwrap()), b"across");
    let pfns = [pages.0.pfn(0).unwrap(), pages.0.pfn(1).unwrap()];
    // SAFETY: as above.
    let list = unsafe { Mdl::from_page_list(&pfns, 10, 5000) }.unwrap();
    assert!(list.page_spans().eq(mdl.page_spans()));
    assert_eq!(list.read_at(0, &mut found), Err(MdlError::NoAddress));
    assert_eq!(list.write_at(0, &found), Err(MdlError::NoAddress));
    // SAFETY: nothing is made.
    assert!(unsafe { Mdl::from_page_list(&pfns, 10, 8190) }.is_err());
    // SAFETY: nothing is made.
    assert!(unsafe { Mdl::from_page_list(&pfns, PAGE_SIZE, 1) }.is_err());
}

struct SharedPagesForTest(super::super::SharedPages);
impl SharedPagesForTest {
    fn new(platform: &'static TestPlatform) -> Self {
        Self(super::super::SharedPages::allocate(platform, 2).unwrap())
    }
}

#[test]
fn memory_goes_back_to_the_platform_with_its_last_owner() {
    let platform = platform();
    let mdl = Mdl::from(buffer(platform, 9000, 0));
    let tail = mdl.range(8000, 0).unwrap();
    let chain = Mdl::chain([tail, Mdl::from(buffer(platform, 1, 0))]).unwrap();
    drop(mdl);
    assert_eq!(platform.pages_in_use(), 4);
    drop(chain);
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn a_whole_buffer_comes_back_as_itself() {
    let platform = platform();
    let mdl = Mdl::from(buffer(platform, 100, 5));
    let part = mdl.range(1, 0).unwrap().into_dma_buffer().unwrap_err();
    assert_eq!(part.len(), 99);
    drop(part);
    let buffer = mdl.into_dma_buffer().unwrap();
    assert!(buffer.is_sole_owner());
    assert_eq!(buffer.len(), 100);
}

#[test]
fn no_memory_is_an_error_that_leaves_nothing_behind() {
    let platform = platform();
    platform.refuse_pages(true);
    assert!(matches!(DmaBuffer::allocate(platform, 1), Err(DmaError::OutOfPages(_))));
    platform.refuse_pages(false);
    assert!(matches!(DmaBuffer::allocate(platform, 0), Err(DmaError::OutOfPages(_))));
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn no_bytes_touch_no_page() {
    let platform = platform();
    let whole = buffer(platform, 100, 7);
    assert_eq!(whole.slice(100, 0).unwrap().pfns(), []);
    assert_eq!(whole.slice(0, 0).unwrap().pfns(), []);
    let none = Mdl::from(whole.clone()).range(100, 0).unwrap();
    let chained = Mdl::chain([Mdl::from(whole)]).unwrap().range(100, 0).unwrap();
    for mdl in [Mdl::empty(), none, chained] {
        assert_eq!((mdl.len(), mdl.page_spans().count()), (0, 0));
        assert_eq!(mdl.wire_extent(), WireExtent::default());
    }
    // SAFETY: nothing lies there, and so many bytes are asked for.
    let kernel = unsafe { Mdl::from_kernel_memory(platform, NonNull::<u64>::dangling().cast(), 0) };
    assert!(kernel.is_ok_and(|mdl| mdl.wire_extent() == WireExtent::default()));
}
