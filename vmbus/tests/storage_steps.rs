//! A whole life on a storage controller, message by message, with a host that misbehaves at one of them: each message of the driver
//! gets each kind of trouble in turn. Every call ends within its deadline, another controller of the same host works all the time,
//! the same one works again when it has come to reason, and no memory is left behind.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

#[path = "storage_steps/ground.rs"]
mod ground;

use vmbus::host::storage::{Violation, operation};
use vmbus::testing::TestHeap;

use ground::{Calls, Ground, TROUBLES};

#[global_allocator]
static HEAP: TestHeap = TestHeap;

/// Every how many-th message is tried.
const STEP_BY: usize = if cfg!(miri) { 9 } else { 1 };

/// The calls of a life without trouble.
const CALLS: usize = 10;

fn errors(calls: &Calls) -> usize {
    calls.iter().filter(|(_, result)| result.is_err()).count()
}

/// The messages of a life without trouble: four that initialise, and the commands.
fn messages() -> u32 {
    let ground = Ground::new();
    let count = ground.messages(|| {
        let calls = ground.live();
        assert_eq!((calls.len(), errors(&calls)), (CALLS, 0), "{calls:?}");
    });
    ground.finish("without trouble", None);
    count
}

#[test]
fn whatever_a_host_does_with_any_message_the_driver_carries_on() {
    let messages = messages();
    assert!(messages > 25, "{messages}");
    let mut figures = Vec::new();
    for (name, trouble, ..) in TROUBLES {
        let (mut lives, mut calls_in_all) = (0, 0);
        for number in (0..messages).step_by(STEP_BY) {
            let what = format!("{name} at message {number}");
            let before = TestHeap::live();
            let ground = Ground::new();
            ground.plan(number, trouble);
            let calls = ground.live();
            ground.ask_bystander(&what);
            ground.come_to_reason();
            let again = ground.live();
            assert_eq!((again.len(), errors(&again)), (CALLS, 0), "{what}: {again:?}");
            ground.ask_bystander(&what);
            // Told that a version was not accepted that was, it asks for the next one.
            let is_lied_to = number == 1;
            let may_do = is_lied_to.then_some(Violation::OutOfOrder(operation::QUERY_PROTOCOL_VERSION));
            ground.finish(&what, may_do);
            let failures = errors(&calls);
            drop((calls, again));
            assert_eq!(TestHeap::live(), before, "heap, {what}");
            lives += u32::from(failures != 0);
            calls_in_all += u32::try_from(failures).unwrap();
        }
        figures.push((name, lives, calls_in_all));
    }
    let expected = TROUBLES.map(|(name, _, lives, calls)| (name, lives, calls));
    if STEP_BY == 1 {
        assert_eq!(figures, expected, "lives and calls with an error, of {messages} lives");
    }
}

#[test]
fn whichever_pages_are_not_to_be_had_the_driver_carries_on() {
    let mut refused = 0;
    for all_others_too in [false, true] {
        for number in 0.. {
            let what = format!("pages {number} are missing, and all others: {all_others_too}");
            let before = TestHeap::live();
            let ground = Ground::new();
            let blocks = ground.platform.allocations();
            if all_others_too {
                ground.platform.fail_allocations_from(number);
            } else {
                ground.platform.fail_allocation(number);
            }
            let calls = ground.live();
            ground.platform.stop_failing();
            let was_ahead = ground.platform.allocations() - blocks <= number;
            ground.ask_bystander(&what);
            ground.come_to_reason();
            let again = ground.live();
            assert_eq!((again.len(), errors(&again)), (CALLS, 0), "{what}: {again:?}");
            ground.finish(&what, None);
            let failures = errors(&calls);
            drop((calls, again));
            assert_eq!(TestHeap::live(), before, "heap, {what}");
            refused += usize::from(failures != 0);
            if was_ahead {
                assert_eq!(failures, 0, "{what}");
                break;
            }
        }
    }
    // The rings, and the buffers for what is copied; then nothing takes a page.
    assert_eq!(refused, 4, "lives with an error");
}
