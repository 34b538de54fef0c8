//! Models of what the callback API stands on, by loom: the gate that lets one callback of a channel run at a time, and the table
//! of requests. The rest of that API is not built for models, so these are compiled here by themselves.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --package vmbus --lib models`

#![expect(unsafe_code, reason = "what loom watches is reached by pointers")]

#[path = "kmcl/gate.rs"]
mod gate;
#[path = "kmcl/slab.rs"]
mod slab;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use self::gate::{Gate, Inside};
use self::slab::Slab;
use crate::platform::{Callers, TaskId};

/// What callbacks share: loom reports two that reach it at a time, or one that does not see what the other did.
#[derive(Debug, Default)]
struct Context(UnsafeCell<u32>);

impl Context {
    fn add(&self, count: u32) -> u32 {
        self.0.with_mut(|value| {
            // SAFETY: loom ends the model where this is not the only access.
            unsafe { *value += count };
            // SAFETY: as above.
            unsafe { *value }
        })
    }
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(run);
}

fn work_at_the_gate(tasks: usize, bound: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let shared = Arc::new((Gate::new(Callers::Anywhere), AtomicU32::new(0), Context::default()));
        let run = |shared: &(Gate, AtomicU32, Context), task| {
            let (gate, work, done) = shared;
            work.fetch_add(1, Ordering::Relaxed);
            while let Some(entered) = gate.enter(TaskId(task), Inside::Callback) {
                // Relaxed: it is the gate that makes it seen.
                let taken = work.swap(0, Ordering::Relaxed);
                done.add(taken);
                if !entered.leave() {
                    break;
                }
            }
        };
        let others: Vec<_> = (1..tasks)
            .map(|task| {
                let shared = shared.clone();
                thread::spawn(move || run(&shared, task))
            })
            .collect();
        run(&shared, 0);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(shared.1.load(Ordering::SeqCst), 0, "forgotten");
        assert_eq!(shared.2.add(0) as usize, tasks);
    });
}

/// Whoever finds the gate taken leaves its work to the holder: all of it is done, and never by two at a time.
#[test]
fn no_work_that_was_left_at_the_gate_is_forgotten() {
    work_at_the_gate(2, 4);
}

/// The same with a third, whose note may be taken for another's.
#[test]
fn no_work_of_three_at_the_gate_is_forgotten() {
    work_at_the_gate(3, 2);
}

/// Pausing and disabling: the channel is marked, then the gate is taken; after that no callback runs, nor will one, and what the
/// callbacks did is seen.
#[test]
fn c2_after_the_gate_was_taken_for_the_end_no_callback_runs() {
    model(|| {
        let shared = Arc::new((Gate::new(Callers::Anywhere), AtomicBool::new(false), Context::default()));
        let runner = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (gate, is_ending, context) = &*shared;
                for _ in 0..2 {
                    let Some(entered) = gate.enter(TaskId(2), Inside::Callback) else {
                        continue;
                    };
                    if !is_ending.load(Ordering::SeqCst) {
                        assert_eq!(gate.inside(TaskId(2)), Some(Inside::Callback));
                        assert_eq!(gate.inside(TaskId(1)), None, "the other is not inside");
                        context.add(1);
                    }
                    drop(entered);
                }
            })
        };
        let (gate, is_ending, context) = &*shared;
        is_ending.store(true, Ordering::SeqCst);
        let entered = loop {
            match gate.try_enter(TaskId(1), Inside::Callback) {
                Some(entered) => break entered,
                None => thread::yield_now(),
            }
        };
        // From here on the driver's context is the caller's: loom reports a callback that still touches it.
        drop(entered);
        assert!(context.add(0) <= 2);
        runner.join().unwrap();
    });
}

/// A completion and a withdrawal both want the same request: one of them gets it, once.
#[test]
fn q1_a_request_that_two_want_to_end_ends_once() {
    model(|| {
        let slab = Arc::new(Mutex::new(Slab::new(1).unwrap()));
        let id = slab.lock().unwrap().insert(7).unwrap();
        let other = {
            let slab = slab.clone();
            thread::spawn(move || slab.lock().unwrap().take(id).is_some())
        };
        let ours = slab.lock().unwrap().take(id).is_some();
        // The place is used again: the old id does not find the new request.
        let again = slab.lock().unwrap().insert(8);
        let theirs = other.join().unwrap();
        assert!(ours != theirs);
        if let Ok(again) = again {
            let mut slab = slab.lock().unwrap();
            assert_eq!(slab.take(id), None);
            assert_eq!(slab.take(again), Some(8));
        }
    });
}
