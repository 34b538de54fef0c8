//! A whole life on the bus, step by step, with a host that misbehaves at one of them: each step of the guest, and each packet that the
//! device answers, gets each way of misbehaving in turn. Every call ends in bounded time, nothing is left behind, and the bus carries
//! on: another device works afterwards, on the same connection where there is one.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy knows tests by their attribute, and these functions are a test's"
)]

#[path = "host_steps/ground.rs"]
mod ground;

use std::sync::atomic::Ordering;
use std::time::Duration;

use vmbus::bus::Bus;
use vmbus::testing::TestHeap;
use vmbus::testing::model::{Action, Reply};

use ground::{FAULTS, Failure, Fault, Ground, LONGEST_WAIT, MOODS, SOON};

#[global_allocator]
static HEAP: TestHeap = TestHeap;

/// After this time a rescind's grace is over, and every late answer has come.
const ALL_OVER: Duration = Duration::from_secs(31);
/// The pages that the life's one request with memory lends.
const LENT_PAGES: usize = 2;
/// Every how many-th step is tried.
const STEP_BY: usize = if cfg!(miri) { 7 } else { 1 };

/// When a host stops misbehaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// When the device has been given up: the end of the connection goes well.
    DeviceIsGivenUp,
    /// When the guest has ended the connection as well as it could.
    End,
}

/// How a life under a fault went.
#[derive(Debug)]
struct Outcome {
    /// Of the connection and the use of the device.
    life: Result<(), Failure>,
    /// Of the end of the connection.
    end: Result<(), vmbus::bus::Error>,
    /// How long both took.
    took: Duration,
    /// The bytes that were still lent after the life and after all that may come late has come.
    kept_bytes: u64,
    /// The pages that were lost, because the host never said that it has let go of them.
    lost_pages: usize,
    /// What the host has to complain about.
    violations: Vec<String>,
}

/// Ends a connection, and what keeps it.
fn end(ground: &Ground, bus: Bus) -> Result<(), vmbus::bus::Error> {
    let result = bus.disconnect(SOON);
    drop(bus);
    // The lock is free again while the bus goes.
    let last = ground.bus.lock().unwrap().take();
    drop(last);
    result
}

/// One life with a fault that is planned already, what has to work afterwards on the same connection, its end, with a fault
/// `at_end` if there is one, and another connection.
fn endure(ground: &Ground, what: &str, until: Until, at_end: Option<(usize, Fault)>) -> Outcome {
    let heap = TestHeap::live();
    let start = ground.hypervisor.now();
    let life = ground.live();
    let mut took = ground.hypervisor.elapsed_since(start);
    if until == Until::DeviceIsGivenUp {
        ground.come_to_reason();
    }
    let (mut ended, mut kept_bytes) = (Ok(()), 0);
    let bus = ground.bus.lock().unwrap().clone();
    if let Some(bus) = bus {
        if until == Until::DeviceIsGivenUp {
            // Only a host that lost the one question for its offers has none.
            if bus.offers().count() > 0 {
                ground.use_other(&bus, what);
            }
            TestHeap::exempt(|| ground.platform.advance(ALL_OVER));
            ground.settle(&bus);
        }
        kept_bytes = bus.shared_bytes();
        if let Some((step, fault)) = at_end {
            ground.plan(ground.host.step_count() + step, fault);
        }
        let start = ground.hypervisor.now();
        ended = end(ground, bus);
        took += ground.hypervisor.elapsed_since(start);
    }
    ground.hypervisor.disable_hypercalls().unwrap();
    ground.come_to_reason();
    let lost = (TestHeap::live(), ground.platform.live_pages());

    // Once more, from nothing: all is given back, and of the heap also after the life before.
    let bus = ground.connect().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    ground.use_other(&bus, what);
    ground.settle(&bus);
    end(ground, bus).unwrap_or_else(|error| panic!("{what}: {error}"));
    ground.hypervisor.disable_hypercalls().unwrap();
    assert_eq!((TestHeap::live(), ground.platform.live_pages()), lost, "{what}");
    if lost.1 == 0 {
        assert_eq!(lost.0, heap, "heap, {what}");
    }
    TestHeap::exempt(|| {
        assert!(ground.host.is_at_rest(), "{what}");
        ground.platform.assert_no_faults();
        Outcome {
            life,
            end: ended,
            took,
            kept_bytes,
            lost_pages: lost.1,
            violations: ground.host.violations(),
        }
    })
}

impl Outcome {
    /// Checks that the life and its end took no longer than so many waits.
    fn took_at_most(&self, waits: u32, what: &str) {
        // What is not a wait takes microseconds of the model's time, and a host that is busy a few milliseconds.
        let limit = LONGEST_WAIT * waits + Duration::from_millis(10);
        assert!(self.took <= limit, "{what}: {self:?}");
    }
}

/// The steps of a life, and how many more its end has, without trouble.
fn steps() -> (Vec<Action>, usize) {
    let ground = Ground::new();
    ground.live().unwrap();
    let steps = ground.host.steps();
    let bus = ground.bus.lock().unwrap().clone().unwrap();
    end(&ground, bus).unwrap();
    ground.hypervisor.disable_hypercalls().unwrap();
    let at_end = ground.host.step_count() - steps.len();
    (steps, at_end)
}

const fn message_type(action: &Action) -> Option<u32> {
    match action {
        Action::Post { message_type, .. } => Some(*message_type),
        _ => None,
    }
}

/// What holds whatever the host did at one step.
fn check(what: &str, fault: Fault, message_type: Option<u32>, outcome: &Outcome) {
    assert_eq!(outcome.end, Ok(()), "{what}: {outcome:?}");
    // A wait that the host lets pass, and at most another one for what was not done because of it.
    outcome.took_at_most(2, what);
    let is_dead = matches!(fault, Fault::Dead);
    // The pages of a contact that nobody answered: the host may have taken them for what they are.
    let is_contact_lost = outcome.life.is_err() && (message_type == Some(14) || is_dead);
    let most_lost = if is_contact_lost { 3 } else { 0 };
    assert!(outcome.lost_pages <= most_lost, "{what}: {outcome:?}");
    // Memory stays lent until the end only if the host did not hear of, or did not answer, what concerns memory: a GPADL's
    // making and taking back, and the closing that has to come before.
    let may_keep = is_dead || matches!(message_type, Some(7 | 8 | 9 | 11));
    let most_kept = if may_keep { (40 + 10) * 4096 } else { 0 };
    assert!(outcome.kept_bytes <= most_kept, "{what}: {outcome:?}");
    // A host that does not do what it is told finds what follows wrong.
    let is_deaf = match fault {
        Fault::Dead => true,
        Fault::Answer(reply) => reply() == Reply::Ignore,
        Fault::Hypercalls(0x06, _) => message_type == Some(7),
        _ => false,
    };
    assert!(outcome.violations.is_empty() || is_deaf, "{what}: {outcome:?}");
}

#[test]
fn whatever_a_host_does_at_any_step_of_a_life_the_bus_carries_on() {
    let outcome = endure(&Ground::new(), "without trouble", Until::End, None);
    assert_eq!((outcome.life, outcome.end, outcome.lost_pages), (Ok(()), Ok(()), 0));
    let (steps, _) = steps();
    let posts: Vec<_> = steps.iter().filter_map(message_type).collect();
    assert_eq!(posts, [14, 3, 8, 5, 8, 9, 11, 7, 11], "{steps:?}");
    for (name, fault, expected) in FAULTS {
        let mut failed = 0;
        for (step, action) in steps.iter().enumerate().step_by(STEP_BY) {
            let what = format!("{name} at step {step}, {action:?}");
            let ground = Ground::new();
            ground.plan(step, fault);
            let outcome = endure(&ground, &what, Until::DeviceIsGivenUp, None);
            check(&what, fault, message_type(action), &outcome);
            failed += u32::from(outcome.life.is_err());
        }
        assert!(failed == expected || STEP_BY > 1, "{name}: {failed} lives failed");
    }
}

#[test]
fn whatever_a_host_does_at_the_end_of_a_life_it_ends() {
    let (_, steps) = steps();
    assert!(steps >= 5, "{steps}");
    for (name, fault, _) in FAULTS {
        for step in (0..steps).step_by(STEP_BY) {
            let what = format!("{name} at step {step} of the end");
            let outcome = endure(&Ground::new(), &what, Until::DeviceIsGivenUp, Some((step, fault)));
            assert_eq!((outcome.life, outcome.kept_bytes), (Ok(()), 0), "{what}");
            outcome.took_at_most(1, &what);
            assert!(outcome.violations.is_empty(), "{what}: {outcome:?}");
            // Only the first step asks the host for something. Without its word the pages of the contact are lost.
            let lost_pages = if outcome.end.is_err() { 3 } else { 0 };
            assert_eq!(outcome.lost_pages, lost_pages, "{what}: {outcome:?}");
            let is_unanswered = ["silence", "ignore", "too late", "refused", "dead"].contains(&name);
            assert_eq!(outcome.end.is_err(), step == 0 && is_unanswered, "{what}: {outcome:?}");
        }
    }
}

#[test]
fn from_any_step_on_a_host_that_is_dead_costs_only_time_and_what_it_holds() {
    let (steps, _) = steps();
    for step in (0..steps.len()).step_by(STEP_BY) {
        let what = format!("dead from step {step} to the end");
        let ground = Ground::new();
        ground.plan(step, Fault::Dead);
        let outcome = endure(&ground, &what, Until::End, None);
        outcome.took_at_most(3, &what);
        let kept_pages = usize::try_from(outcome.kept_bytes / 4096).unwrap();
        // The host has what a request lends, if it was still waiting, and has not said that it has closed the channel.
        let is_lent = outcome.life == Err(Failure::Channel(vmbus::kmcl::Error::Cancelled));
        let lent_pages = outcome.lost_pages - 3 - kept_pages;
        assert!(
            lent_pages == 0 || is_lent && lent_pages == LENT_PAGES,
            "{what}: {outcome:?}"
        );
        assert!(kept_pages <= 40 + 10, "{what}: {outcome:?}");
        let is_connected = !matches!(outcome.life, Err(Failure::Connect(_)));
        let end = if is_connected {
            Err(vmbus::bus::Error::TimedOut)
        } else {
            Ok(())
        };
        assert_eq!(outcome.end, end, "{what}: {outcome:?}");
    }
}

#[test]
fn however_a_device_answers_any_packet_the_bus_carries_on() {
    for (mood, expected) in MOODS {
        let mut failed = 0;
        // A request, a packet, a notice, a request.
        for packet in 0..4 {
            let what = format!("{mood:?} at packet {packet}");
            let ground = Ground::new();
            *ground.temper.mood.lock().unwrap() = mood;
            ground.temper.packets_left.store(packet, Ordering::SeqCst);
            let outcome = endure(&ground, &what, Until::DeviceIsGivenUp, None);
            assert_eq!(
                (outcome.end, outcome.lost_pages, outcome.kept_bytes),
                (Ok(()), 0, 0),
                "{what}"
            );
            outcome.took_at_most(1, &what);
            assert!(outcome.violations.is_empty(), "{what}: {outcome:?}");
            failed += u32::from(outcome.life.is_err());
        }
        assert_eq!(failed, expected, "{mood:?}");
    }
}
