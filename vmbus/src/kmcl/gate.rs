//! One callback at a time: [`Gate`].
//!
//! Callbacks of one channel never run concurrently. Whoever wants to run them takes the gate; who finds it taken leaves a
//! note, and the holder looks again before it goes. The gate knows its holder, so that a driver that waits inside a callback
//! for that callback to end is told instead of waiting for ever.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::platform::{Callers, TaskId};
#[cfg(loom)]
use crate::sync::ModelWord as Word;
#[cfg(not(loom))]
use crate::sync::Word;

/// Which callback runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Inside {
    /// Opened, started, suspend, closed, or a packet callback: waiting for packets is a mistake here.
    Callback = 1,
    /// Post-started: waiting for completions is allowed.
    PostStarted = 2,
}

/// Somebody is inside.
const TAKEN: u8 = 1;
/// Somebody found work while the gate was taken, or left some.
const NOTE: u8 = 2;

#[derive(Debug)]
pub(crate) struct Gate {
    /// [`TAKEN`] and [`NOTE`], in one word: no note is left behind a holder's back.
    state: Word,
    /// Who holds it; only meaningful to the holder itself, which sees its own store.
    holder: AtomicUsize,
    inside: AtomicU8,
}

impl Gate {
    #[cfg_attr(
        not(loom),
        expect(clippy::missing_const_for_fn, reason = "a model's atomics are not made so")
    )]
    pub(crate) fn new(callers: Callers) -> Self {
        Self {
            state: Word::new(callers, 0),
            holder: AtomicUsize::new(usize::MAX),
            inside: AtomicU8::new(0),
        }
    }

    pub(crate) const fn callers(&self) -> Callers {
        self.state.callers()
    }

    /// Takes the gate if it is free, and takes the note away; otherwise leaves a note that there is work.
    #[inline]
    pub(crate) fn enter(&self, task: TaskId, inside: Inside) -> Option<Entered<'_>> {
        // As a rule it is free, and nobody has left a note.
        match self.state.compare_exchange(0, TAKEN) {
            Ok(()) => Some(self.entered(task, inside)),
            Err(found) => self.enter_where(found, task, inside),
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_where(&self, mut found: u8, task: TaskId, inside: Inside) -> Option<Entered<'_>> {
        loop {
            let wanted = if found & TAKEN == 0 { TAKEN } else { found | NOTE };
            match self.state.compare_exchange(found, wanted) {
                Ok(()) if found & TAKEN == 0 => return Some(self.entered(task, inside)),
                Ok(()) => return None,
                Err(now) => found = now,
            }
        }
    }

    /// Takes the gate if it is free, and leaves the note as it is.
    pub(crate) fn try_enter(&self, task: TaskId, inside: Inside) -> Option<Entered<'_>> {
        let mut found = 0;
        while found & TAKEN == 0 {
            match self.state.compare_exchange(found, found | TAKEN) {
                Ok(()) => return Some(self.entered(task, inside)),
                Err(now) => found = now,
            }
        }
        None
    }

    #[inline]
    fn entered(&self, task: TaskId, inside: Inside) -> Entered<'_> {
        self.holder.store(task.0, Ordering::Relaxed);
        self.inside.store(inside as u8, Ordering::Relaxed);
        Entered { gate: self }
    }

    /// Leaves a note that there is work: a holder looks again before it goes, and so does the next one.
    pub(crate) fn leave_note(&self) {
        self.state.set(NOTE);
    }

    #[cfg(test)]
    fn has_note(&self) -> bool {
        self.state.load() & NOTE != 0
    }

    #[inline]
    fn leave(&self) -> bool {
        self.holder.store(usize::MAX, Ordering::Relaxed);
        self.state.compare_exchange(TAKEN, 0).is_err() && self.leave_noted()
    }

    /// Leaves a gate in which a note may lie; the note stays.
    #[cold]
    #[inline(never)]
    fn leave_noted(&self) -> bool {
        self.state.clear(TAKEN) & NOTE != 0
    }

    /// Returns which callback this task is inside of, if it is.
    pub(crate) fn inside(&self, task: TaskId) -> Option<Inside> {
        // A holder sees its own stores; anyone else may read an old holder, but never its own number: it has left the gate
        // before, and cleared it.
        if self.state.load() & TAKEN != 0 && self.holder.load(Ordering::Relaxed) == task.0 {
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

    /// Leaves the gate; true if there is a note, and so a reason to enter again.
    #[inline]
    #[must_use]
    pub(crate) fn leave(self) -> bool {
        let gate = self.gate;
        // What its drop does, and tells.
        core::mem::forget(self);
        gate.leave()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn who_finds_it_taken_leaves_a_note_for_the_holder() {
        let gate = Gate::new(Callers::Anywhere);
        let entered = gate.enter(TaskId(1), Inside::Callback).unwrap();
        assert!(!gate.has_note());
        assert!(gate.enter(TaskId(2), Inside::Callback).is_none());
        drop(entered);
        assert!(gate.has_note());
        drop(gate.enter(TaskId(1), Inside::Callback).unwrap());
        assert!(!gate.has_note());
    }

    #[test]
    fn a_second_note_does_not_take_the_first_one_away() {
        let gate = Gate::new(Callers::Anywhere);
        let entered = gate.enter(TaskId(1), Inside::Callback).unwrap();
        for _ in 0..2 {
            assert!(gate.enter(TaskId(2), Inside::Callback).is_none());
            assert!(gate.has_note());
        }
        assert!(entered.leave());
    }

    #[test]
    fn a_note_makes_the_holder_look_again_and_stays_for_the_next_one() {
        let gate = Gate::new(Callers::Anywhere);
        let entered = gate.enter(TaskId(1), Inside::Callback).unwrap();
        gate.leave_note();
        assert!(entered.leave());
        // Whoever only passes through leaves it where it is.
        assert!(gate.try_enter(TaskId(1), Inside::Callback).unwrap().leave());
        assert!(!gate.enter(TaskId(1), Inside::Callback).unwrap().leave());
    }

    #[test]
    fn only_the_holder_is_inside() {
        let gate = Gate::new(Callers::Anywhere);
        let entered = gate.enter(TaskId(1), Inside::Callback).unwrap();
        assert_eq!(
            (gate.inside(TaskId(1)), gate.inside(TaskId(2))),
            (Some(Inside::Callback), None)
        );
        entered.now_inside(Inside::PostStarted);
        assert_eq!(gate.inside(TaskId(1)), Some(Inside::PostStarted));
        drop(entered);
        // Whatever the number of a task is, it is not inside of a gate that nobody holds.
        for task in [TaskId(1), TaskId(usize::MAX)] {
            assert_eq!(gate.inside(task), None);
        }
    }

    #[test]
    fn no_work_is_lost_and_none_runs_twice_at_a_time() {
        use std::sync::atomic::AtomicU32;
        let gate = Gate::new(Callers::Anywhere);
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
                            if !entered.leave() {
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
