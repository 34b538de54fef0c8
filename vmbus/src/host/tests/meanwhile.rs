//! What others do between a check and the lock behind it. A test's platform does it before a lock is taken, so that no test depends on
//! who is faster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::support::*;
use crate::Deadline;
use crate::host::Misbehaviour;
use crate::kmcl::{Error, Gone, Level, OutgoingPacket, SendFlags, StateChangeCallbacks, SynchronousRequest};

#[test]
fn two_that_raise_the_quota_at_the_same_time_do_not_make_slots_twice() {
    let pair = Pair::with(
        |server| server.init_set_transaction_quota(2),
        |client| client,
        hold,
        echo,
    );
    let other = pair.server.clone();
    // Between the look at how many there are and the making of more.
    pair.platform.before_lock(1, move || {
        other.set_transaction_quota(8).unwrap();
        false
    });
    pair.server.set_transaction_quota(6).unwrap();
    assert_eq!(pair.server.core().incoming().slots(), 8);
    assert_eq!(pair.server.core().incoming().quota, 6);
    pair.close();
}

