//! Tasks, deferred work and the timer: sleeping takes as long as it should, tasks wake each other, deferred work comes.

use super::{Verdict, ensure};
use crate::arch::{apic, interrupts};
use crate::task::{self, deferred};
use crate::time::{self, Deadline};
use alloc::string::ToString;
use core::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

pub(super) fn run() -> Verdict {
    sleep()?;
    tasks_take_turns()?;
    deferred_work()
}

/// A host that is busy may let the time pass before the processor halts; then no interrupt is needed, and it is tried again.
fn sleep() -> Verdict {
    let before = interrupts::total();
    for _ in 0..10 {
        let start = time::now_ns();
        time::sleep_ns(20_000_000);
        let slept = time::now_ns() - start;
        // How late it may be is the host's affair; too early it must never be.
        ensure!(slept >= 20_000_000, "slept {slept} ns instead of 20000000");
        log::info!("slept 20 ms in {slept} ns with the timer \"{}\"", time::timer::name());
        if interrupts::total() > before || !apic::is_on() {
            return Ok(());
        }
    }
    Err("no timer interrupt came".into())
}

fn tasks_take_turns() -> Verdict {
    COUNT.store(0, Ordering::Relaxed);
    let before = crate::memory::statistics().free;
    for round in 0..3u32 {
        let ids = [0, 1].map(|parity| {
            task::spawn("turn", move || {
                for step in 0..100 {
                    let mine = 200 * round + 2 * step + parity;
                    let my_turn = || COUNT.load(Ordering::Relaxed) == mine;
                    assert!(
                        task::wait_until(Deadline::after_ms(10_000), my_turn),
                        "turn {mine} never came"
                    );
                    COUNT.fetch_add(1, Ordering::Relaxed);
                    task::notify();
                }
            })
        });
        for id in ids {
            let id = id.map_err(|error| error.to_string())?;
            ensure!(
                task::wait_until(Deadline::after_ms(10_000), || task::is_finished(id)),
                "a task does not end"
            );
        }
    }
    let count = COUNT.load(Ordering::Relaxed);
    ensure!(count == 600, "counted {count}");
    // The next task that is started buries the last ones; then nothing but its own stack is missing.
    let last = task::spawn("last", || ()).map_err(|error| error.to_string())?;
    task::wait_until(Deadline::after_ms(1000), || task::is_finished(last));
    let lost = before.saturating_sub(crate::memory::statistics().free);
    ensure!(lost <= 4 * 32 * 4096, "{lost} bytes of stacks were lost");
    Ok(())
}

fn deferred_work() -> Verdict {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    static ID: spin::Once<Option<deferred::DeferredId>> = spin::Once::new();
    let id = ID.call_once(|| deferred::register(&|_| _ = SEEN.fetch_add(1, Ordering::Relaxed)).ok());
    let id = id.ok_or("no room for deferred work")?;
    let vector = interrupts::allocate(
        |processor| {
            if let Some(Some(id)) = ID.get() {
                // It fails on other processors only, and this is the one that runs.
                let _ = deferred::schedule(processor, *id);
            }
        },
        interrupts::EndOfInterrupt::Written,
    );
    let vector = vector.map_err(|error| alloc::format!("{error}"))?;
    SEEN.store(0, Ordering::Relaxed);
    apic::interrupt_self(vector);
    ensure!(
        task::wait_until(Deadline::after_ms(1000), || SEEN.load(Ordering::Relaxed) == 1),
        "deferred work does not come"
    );
    let token = deferred::enter_dispatch();
    apic::interrupt_self(vector);
    let came = task::wait_until(Deadline::after_ns(100_000), || SEEN.load(Ordering::Relaxed) == 2);
    ensure!(
        !came && deferred::is_pending(),
        "deferred work came while somebody held the processor"
    );
    drop(token);
    ensure!(
        SEEN.load(Ordering::Relaxed) == 2,
        "deferred work did not come when the processor was let go"
    );
    deferred::schedule(0, id).map_err(|error| error.to_string())?;
    ensure!(
        task::wait_until(Deadline::after_ms(1000), || SEEN.load(Ordering::Relaxed) == 3),
        "idle time does not run it"
    );
    interrupts::release(vector);
    Ok(())
}
