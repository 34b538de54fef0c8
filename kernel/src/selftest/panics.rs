//! Panics in each of the three contexts. They pass if the machine ends as a panic should: the runner sees that.

use super::Verdict;
use crate::arch::{apic, interrupts};
use crate::task::{self, deferred};
use crate::time::Deadline;

fn survived() -> Verdict {
    task::wait_until(Deadline::after_ms(1000), || false);
    Err("the kernel survived".into())
}

pub(super) fn in_interrupt() -> Verdict {
    let handler = |_| forced("interrupt");
    let vector = interrupts::allocate(handler, interrupts::EndOfInterrupt::Written);
    apic::interrupt_self(vector.map_err(|error| alloc::format!("{error}"))?);
    survived()
}

pub(super) fn in_deferred_work() -> Verdict {
    let id = deferred::register(&|_| forced("deferred work")).map_err(|error| alloc::format!("{error}"))?;
    deferred::schedule(0, id).map_err(|error| alloc::format!("{error}"))?;
    survived()
}

pub(super) fn in_task() -> Verdict {
    task::spawn("doomed", || forced("task")).map_err(|error| alloc::format!("{error}"))?;
    survived()
}

#[expect(clippy::panic, reason = "it is the test")]
fn forced(place: &str) {
    panic!("forced by the self-test, in {place}");
}
