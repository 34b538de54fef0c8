//! Panics in each of the three contexts, with each lock held, and in the middle of posting a message. They pass if the machine ends as a panic should: the runner sees that.

use super::Verdict;
use crate::arch::{apic, interrupts};
use crate::console;
use crate::hyperv::dynamic_memory::{self, Wish};
use crate::hyperv::{bus, doomed};
use crate::memory::{self, heap};
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

pub(super) fn with_bus_lock() -> Verdict {
    bus::with_lock_held(|| forced("the bus's lock"));
    survived()
}

pub(super) fn with_heap_lock() -> Verdict {
    heap::with_lock_held(|| forced("the heap's lock"));
    survived()
}

pub(super) fn with_memory_locks() -> Verdict {
    memory::with_locks_held(|| forced("the locks of memory"));
    survived()
}

pub(super) fn with_console_lock() -> Verdict {
    console::with_lock_held(|| forced("the consoles' lock"));
    survived()
}

/// Opening a channel posts messages: the first of them does not get out.
pub(super) fn while_posting() -> Verdict {
    doomed::next_hypercall();
    dynamic_memory::wish(Wish::Open);
    survived()
}

#[expect(clippy::panic, reason = "it is the test")]
fn forced(place: &str) {
    panic!("forced by the self-test, in {place}");
}
