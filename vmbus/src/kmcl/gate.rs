//! One callback at a time: [`Gate`].
//!
//! Callbacks of one channel never run concurrently. Whoever wants to run them takes the gate; who finds it taken leaves a
//! note, and the holder looks again before it goes. The gate knows its holder, so that a driver that waits inside a callback
//! for that callback to end is told instead of waiting for ever.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};

use crate::platform::TaskId;

/// Which callback runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Inside {
    /// Opened, started, suspend, closed, or a packet callback: waiting for packets is a mistake here.
    Callback = 1,
    /// Post-started: waiting for completions is allowed.
    PostStarted = 2,
}

#[derive(Debug, Default)]
pub(crate) struct Gate {
    taken: AtomicBool,
    /// Who holds it; only meaningful to the holder itself, which sees its own store.
    holder: AtomicUsize,
    inside: AtomicU8,
    again: AtomicBool,
}

impl Gate {
    /// Takes the gate if it is free; otherwise leaves a note that there is work.
    pub(crate) fn enter(&self, task: TaskId, inside: Inside) -> Option<Entered<'_>> {
        let entered = self.try_enter(task, inside).or_else(|| {
            // In front of the second look at the gate: the holder reads the note after it has left.
            exchange_then_look(&self.again, true);
            self.try_enter(task, inside)
        })?;
        // A note that is missed here is met after leaving. Acquire: the work of whoever left it is seen; read again as it is
        // taken away, since somebody else may just have left another.
        if self.again.load(Ordering::Relaxed) {
            let _ = self.again.swap(false, Ordering::AcqRel);
        }
        Some(entered)
    }

    /// Takes the gate if it is free, without a note.
    pub(crate) fn try_enter(&self, task: TaskId, inside: Inside) -> Option<Entered<'_>> {
        self.taken
            // A failure, too, is a look that must not be taken in front of the note.
            .compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst)
            .ok()?;
        self.holder.store(task.0, Ordering::Relaxed);
        self.inside.store(inside as u8, Ordering::Relaxed);
        Some(Entered { gate: self })
    }

    /// Leaves a note that there is work: a holder looks again before it goes, and so does the next one.
    pub(crate) fn leave_note(&self) {
        exchange_then_look(&self.again, true);
    }

    /// Returns true if somebody found the gate taken and left: whoever left the gate takes it again then.
    pub(crate) fn has_note(&self) -> bool {
        self.again.load(Ordering::SeqCst)
    }

    /// Returns which callback this task is inside of, if it is.
    pub(crate) fn inside(&self, task: TaskId) -> Option<Inside> {
        // A holder sees its own stores; anyone else may read an old holder, but never its own number: it has left the gate
        // before, and cleared it.
        if self.taken.load(Ordering::Relaxed) && self.holder.load(Ordering::Relaxed) == task.0 {
            Some(match self.inside.load(Ordering::Relaxed) {
                2 => Inside::PostStarted,
                _ => Inside::Callback,
            })
        } else {
            None
        }
    }
}

/// The gate is held; left when dropped.
#[derive(Debug)]
pub(crate) struct Entered<'a> {
    gate: &'a Gate,
}

impl Entered<'_> {
    /// Says which callback comes next.
    pub(crate) fn now_inside(&self, inside: Inside) {
        self.gate.inside.store(inside as u8, Ordering::Relaxed);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.gate.holder.store(usize::MAX, Ordering::Relaxed);
        exchange_then_look(&self.gate.taken, false);
    }
}

/// Stores `value`, and lets no later load overtake the store: of two that each store and then look at the other's, at least one
/// sees it. On x86-64 the locked exchange is the barrier as well.
///
/// An exchange everywhere: whoever takes a note away has then seen the work of all who left one. A plain store could be ordered
/// in front of another's note, and be taken away with it unseen.
fn exchange_then_look(word: &AtomicBool, value: bool) {
    let _ = word.swap(value, Ordering::SeqCst);
    if cfg!(any(not(target_arch = "x86_64"), loom)) {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn who_finds_it_taken_leaves_a_note_for_the_holder() {
        let gate = Gate::default();
        let entered = gate.enter(TaskId(1), Inside::Callback).unwrap();
        assert!(!gate.has_note());
        assert!(gate.enter(TaskId(2), Inside::Callback).is_none());
        drop(entered);
        assert!(gate.has_note());
        drop(gate.enter(TaskId(1), Inside::Callback).unwrap());
        assert!(!gate.has_note());
    }

    #[test]
    fn only_the_holder_is_inside() {
        let gate = Gate::default();
        let entered = gate.enter(TaskId(1), Inside::Callback).unwrap();
        assert_eq!(
            (gate.inside(TaskId(1)), gate.inside(TaskId(2))),
            (Some(Inside::Callback), None)
        );
        entered.now_inside(Inside::PostStarted);
        assert_eq!(gate.inside(TaskId(1)), Some(Inside::PostStarted));
        drop(entered);
        assert_eq!(gate.inside(TaskId(1)), None);
    }

    #[test]
    fn no_work_is_lost_and_none_runs_twice_at_a_time() {
        use std::sync::atomic::AtomicU32;
        let gate = Gate::default();
        let (work, done, running) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for task in 0..4 {
                let (gate, work, done, running) = (&gate, &work, &done, &running);
                scope.spawn(move || {
                    for _ in 0..2000 {
                        work.fetch_add(1, Ordering::SeqCst);
                        while let Some(entered) = gate.enter(TaskId(task), Inside::Callback) {
                            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                            done.fetch_add(work.swap(0, Ordering::SeqCst), Ordering::SeqCst);
                            running.fetch_sub(1, Ordering::SeqCst);
                            drop(entered);
                            if !gate.has_note() {
                                break;
                            }
                        }
                    }
                });
            }
        });
        assert_eq!((work.load(Ordering::SeqCst), done.load(Ordering::SeqCst)), (0, 8000));
    }
}
