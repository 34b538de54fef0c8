//! A storm of signals: the other end of a channel signals again and again, without news and with some.
//!
//! It blows from a task, where each signal is delivered at once, and from deferred work that asks for itself, where there is one in
//! each round at the end of an interrupt. Requests on that channel and on another are answered meanwhile, and no memory is lost.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmbus::host::{Host, Misbehaviour};
use vmbus::protocol::ChannelId;

use super::kmcl::{Pair, echo_once};
use super::{Verdict, ensure};
use crate::hyperv::local;
use crate::memory::heap;
use crate::task::{self, deferred};
use crate::time::{self, Deadline};

/// Storms, one after the other.
const STORMS: usize = 5;
/// Requests on each channel in one storm.
const REQUESTS: u32 = 100;
/// Signals between two looks of the storm's task.
const GUST: u32 = 20;
/// Gusts between two notices.
const CALM: u32 = 5;

static BLOWS: AtomicBool = AtomicBool::new(false);
/// Signals of the task.
static BY_TASK: AtomicU32 = AtomicU32::new(0);
/// Signals of the deferred work.
static BY_WORK: AtomicU32 = AtomicU32::new(0);
static NOTICES: AtomicU32 = AtomicU32::new(0);
static CHANNEL: AtomicU32 = AtomicU32::new(0);
static WORK: AtomicU32 = AtomicU32::new(u32::MAX);

fn signal(host: &Host) -> Result<(), vmbus::kmcl::Error> {
    host.misbehave(ChannelId(CHANNEL.load(Ordering::Relaxed)), Misbehaviour::Signal)
}

/// The storm's deferred work: it asks for itself as long as the storm blows.
fn blow(_: crate::arch::cpu::Processor) {
    if BLOWS.load(Ordering::Relaxed)
        && let Some(host) = local::host()
        && signal(host).is_ok()
    {
        BY_WORK.fetch_add(1, Ordering::Relaxed);
        again();
    }
}

fn again() {
    if let Some(work) = deferred::DeferredId::of(WORK.load(Ordering::Relaxed)) {
        let scheduled = deferred::schedule(0, work);
        debug_assert!(scheduled.is_ok());
    }
}

/// The test.
pub(super) fn run() -> Verdict {
    let host = local::host().ok_or("there is no host inside this kernel")?;
    let work = deferred::register(&blow).map_err(|error| alloc::format!("{error}"))?;
    WORK.store(work.number(), Ordering::Relaxed);
    let stormy = Pair::open(host)?;
    let calm = Pair::open(host)?;
    let mut free = [0; STORMS];
    for free in &mut free {
        storm(host, &stormy, &calm)?;
        *free = heap::free_in_all();
    }
    // The first ones find out what memory they take, the others take no more.
    let [.., before, _, after] = free;
    ensure!(before == after, "bytes that were free after each storm: {free:?}");
    calm.dispose()?;
    stormy.dispose()
}

fn storm(host: &'static Host, stormy: &Pair, calm: &Pair) -> Verdict {
    for counter in [&BY_TASK, &BY_WORK, &NOTICES] {
        counter.store(0, Ordering::Relaxed);
    }
    CHANNEL.store(stormy.channel().0, Ordering::Relaxed);
    let (signals, notices) = (stormy.counters().signals_received, stormy.notices());
    let begin = time::now_ns();
    BLOWS.store(true, Ordering::Relaxed);
    let service = stormy.service();
    let task = task::spawn("storm", move || {
        let mut gusts = 0;
        while BLOWS.load(Ordering::Relaxed) {
            for _ in 0..GUST {
                if signal(host).is_err() {
                    log::error!("the storm has lost its channel");
                    return;
                }
                BY_TASK.fetch_add(1, Ordering::Relaxed);
                // What is asked for runs where this ends.
                drop(deferred::enter_dispatch());
            }
            gusts += 1;
            if gusts % CALM == 0 && service.send(b"notice").is_ok() {
                NOTICES.fetch_add(1, Ordering::Relaxed);
            }
            task::yield_now();
        }
    });
    let task = task.map_err(|error| alloc::format!("{error}"))?;
    again();
    let answered: Verdict = (0..REQUESTS).try_for_each(|number| {
        echo_once(stormy, number)?;
        echo_once(calm, number)?;
        task::yield_now();
        Ok(())
    });
    BLOWS.store(false, Ordering::Relaxed);
    ensure!(
        task::wait_until(Deadline::after_ms(5000), || task::is_finished(task)),
        "the storm does not end"
    );
    answered?;
    let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    let sent = count(&NOTICES);
    ensure!(
        task::wait_until(Deadline::after_ms(5000), || stormy.notices() - notices == sent),
        "{sent} notices were sent, {} came",
        stormy.notices() - notices
    );
    let delivered = stormy.counters().signals_received - signals;
    let took = (time::now_ns() - begin) / 1_000_000;
    log::info!(
        "{} signals without news by a task, {} by deferred work, {delivered} met the client; {sent} notices and {} requests \
         meanwhile, in {took} ms",
        count(&BY_TASK),
        count(&BY_WORK),
        2 * REQUESTS
    );
    ensure!(
        count(&BY_TASK) >= REQUESTS * GUST && count(&BY_WORK) >= REQUESTS && sent > 0,
        "this is no storm"
    );
    ensure!(
        delivered >= u64::from(count(&BY_TASK)),
        "only {delivered} signals met the client"
    );
    ensure!(
        stormy.counters().unknown_completions == 0 && stormy.counters().outgoing_outstanding == 0,
        "the client's counters: {:?}",
        stormy.counters()
    );
    Ok(())
}
