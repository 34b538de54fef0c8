//! What the host does in the middle of traffic: interrupts without news, and a reset of the machine.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use boot::command_line::ResetWay;

use super::kmcl::{Pair, echo_once};
use super::{Verdict, ensure};
use crate::arch::{apic, interrupts};
use crate::hyperv::dynamic_memory::{self, Wish};
use crate::hyperv::{bus, local};
use crate::task;
use crate::time::{self, Deadline};

/// Requests that are answered in the storm.
const REQUESTS: u32 = 1000;
/// Interrupts between two looks of the storm's task.
const GUST: u32 = 20;

/// Requests that nobody has answered when the machine is reset.
const ON_THEIR_WAY: u32 = 4;

/// The bus's interrupt comes again and again without a message or a signal behind it, while requests are asked and answered.
pub(super) fn storm() -> Verdict {
    static ENDS: AtomicBool = AtomicBool::new(false);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let vector = bus::vector().ok_or("the bus has no vector")?;
    let pair = Pair::open(local::host().ok_or("there is no host inside this kernel")?)?;
    dynamic_memory::wish(Wish::Open);
    let storm = task::spawn("storm", move || {
        while !ENDS.load(Ordering::Relaxed) {
            for _ in 0..GUST {
                apic::interrupt_self(vector);
                COUNT.fetch_add(1, Ordering::Relaxed);
            }
            task::yield_now();
        }
    });
    let storm = storm.map_err(|error| alloc::format!("{error}"))?;
    let begin = time::now_ns();
    for number in 0..REQUESTS {
        echo_once(&pair, number)?;
        // The storm blows between any two.
        apic::interrupt_self(vector);
        COUNT.fetch_add(1, Ordering::Relaxed);
        task::yield_now();
    }
    ensure!(
        dynamic_memory::await_wish(Deadline::after_ms(10_000)),
        "dynamic memory did not start in the storm but is {}",
        dynamic_memory::state()
    );
    ENDS.store(true, Ordering::Relaxed);
    ensure!(
        task::wait_until(Deadline::after_ms(5000), || task::is_finished(storm)),
        "the storm does not end"
    );
    let count = COUNT.load(Ordering::Relaxed);
    let took = (time::now_ns() - begin) / 1_000_000;
    log::info!("{count} interrupts without news, {REQUESTS} requests answered meanwhile, in {took} ms");
    log::info!("{} of them came while interrupts were off", interrupts::undue());
    ensure!(count >= REQUESTS * GUST, "there were only {count} interrupts");
    pair.revoke()
}

/// Resets the machine without a word to the host, with channels open and requests on their way. It passes if the machine comes up
/// again and finds the host as it was: the runner sees that.
pub(super) fn reset_busy() -> Verdict {
    let pair = Pair::open(local::host().ok_or("there is no host inside this kernel")?)?;
    dynamic_memory::wish(Wish::Open);
    ensure!(
        dynamic_memory::await_wish(Deadline::after_ms(10_000)),
        "dynamic memory does not run but is {}",
        dynamic_memory::state()
    );
    // These are on their way when the end comes, whatever the moment.
    pair.leave_open(ON_THEIR_WAY)?;
    let client = pair.client();
    let answered = alloc::sync::Arc::new(AtomicU32::new(0));
    let count = answered.clone();
    let traffic = move || {
        for number in 0.. {
            if echo_once(&pair, number).is_err() {
                log::error!("the traffic has stopped");
                return;
            }
            count.fetch_add(1, Ordering::Relaxed);
            // The answer may be there at once, and others have to come to their turn.
            task::yield_now();
        }
    };
    task::spawn("traffic", traffic).map_err(|error| alloc::format!("{error}"))?;
    // The host gets reports meanwhile.
    task::wait_until(Deadline::after_ms(1500), || false);
    let open = client.counters().outgoing_outstanding;
    crate::status::mark(
        "reset-busy",
        format_args!("{} {open}", answered.load(Ordering::Relaxed)),
    );
    log::info!("reset in the middle of traffic");
    crate::power::reset(ResetWay::Acpi)
}
