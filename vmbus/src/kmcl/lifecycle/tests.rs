//! Ends that come at odd moments, seen from inside.

use super::*;
use crate::Deadline;
use crate::testing::Loopback;

const SOON: Deadline = Deadline::seconds(5);

#[test]
fn an_end_that_comes_before_the_opening_is_found_by_whoever_opens() {
    let both = Loopback::echo().unwrap();
    let (server, core) = (both.server(), both.server().core());
    Sink::gone(&Receiver(server.uncounted()), Gone::Rescinded);
    assert_eq!((core.phase(), server.gone()), (Phase::Closed, Some(Gone::Rescinded)));
    // The one who opens it goes through all callbacks, and then through those of the end.
    let client = both.open();
    assert_eq!(core.phase(), Phase::Ended);
    drop(client);
    // One who is disabled before it was ever opened is at the end at once.
    let both = Loopback::echo().unwrap();
    let core = both.server().core();
    core.end(Gone::Disabled);
    both.server().process();
    assert_eq!(core.phase(), Phase::Suspending);
    Core::disable(&both.server().shared(), core.until(SOON)).unwrap();
    assert_eq!(core.phase(), Phase::Ended);
}

#[test]
fn why_a_channel_ended_stays_when_it_is_disabled_unless_it_would_be_opened_again() {
    let both = Loopback::echo().unwrap();
    let client = both.open().unwrap();
    let watch = client.uncounted();
    client.core().end(Gone::Corrupt);
    drop(client.disable(SOON).unwrap());
    assert_eq!(
        (watch.core().phase(), watch.gone()),
        (Phase::Ended, Some(Gone::Corrupt))
    );
    // A server whose client has just closed.
    let client = both.open().unwrap();
    let server = both.server();
    server.core().end(Gone::Closed);
    Core::disable(&server.shared(), server.core().until(SOON)).unwrap();
    assert_eq!(
        (server.core().phase(), server.gone()),
        (Phase::Ended, Some(Gone::Disabled))
    );
    drop(client);
}
