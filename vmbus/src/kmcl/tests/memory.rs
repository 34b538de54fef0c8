//! Memory that the host gets: ranges of it, and when.

use std::time::Duration;

use super::*;
use crate::testing::model::Reply;

/// The type of the message that describes a GPADL.
const GPADL_HEADER: u32 = 8;

#[test]
fn gpm_3_it_does_not_return_while_the_host_withholds_its_answer_with_threads() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    ground.platform.use_real_time();
    let withheld = Duration::from_millis(40);
    ground.host.set_next_replies(GPADL_HEADER, Reply::Late(withheld), 1);
    let mdl = ground.mdl(&[1; PAGE_SIZE]);
    std::thread::scope(|scope| {
        let sharing = scope.spawn(|| {
            let start = std::time::Instant::now();
            let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, SOON);
            // The answer was not there before; now the host knows the memory.
            let gpadl = gpadl.unwrap();
            assert!(ground.host.gpadl(gpadl.handle()).is_some());
            assert!(start.elapsed() >= withheld, "{:?}", start.elapsed());
            gpadl
        });
        std::thread::sleep(withheld / 4);
        assert!(!sharing.is_finished());
        drop(sharing.join().unwrap().delete(SOON).unwrap());
    });
    // And one that is never answered is an error when time is up.
    ground.host.set_next_replies(GPADL_HEADER, Reply::Silent, 1);
    let refused = channel.create_gpadl_from_mdl(GpadlAccess::ReadWrite, &mdl, 0, 0, Deadline::millis(10));
    assert_eq!(refused.unwrap_err(), Error::TimedOut);
    drop((channel, mdl));
    ground.finish();
}

#[test]
fn the_host_gets_only_the_range_that_a_packet_names() {
    let ground = Ground::new();
    let channel = ground.client().enable(SOON).unwrap();
    let content: Vec<u8> = (0..9000_u32).map(|index| (index % 249) as u8).collect();
    for (offset, len) in [(5, 4000), (4096, 100), (8999, 1), (100, 0)] {
        let mut packet = channel.packet_allocate().unwrap();
        packet.set_completion_routine(|channel, mut packet, status| {
            assert_eq!(status, Ok(()));
            let bytes = bytes_of(&packet.take_mdl().unwrap());
            let text: Vec<String> = bytes.iter().map(ToString::to_string).collect();
            channel.context().lock().unwrap().push(text.join(" "));
        });
        log(&channel);
        packet
            .send_with_external_mdl(b"x", ground.mdl(&content), offset, len, SendFlags::WAIT_FOR_COMPLETION)
            .unwrap();
        ground.settle();
        // The device has reversed what it was given.
        let mut expected = content.clone();
        let end = if len == 0 { 9000 } else { offset + len };
        expected[offset..end].reverse();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(log(&channel), [expected.join(" ")], "{offset} {len}");
    }
    drop(channel);
    ground.finish();
}
