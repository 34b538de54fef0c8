//! Tasks: several threads of execution on one processor, each with its own stack, that take turns where they wait.
//!
//! A task runs until it waits, sleeps, yields or ends; nothing takes the processor from it but interrupts and
//! [deferred work](deferred). The one way to wait is [`wait_until`]: for a condition, until a deadline. Whatever may make a condition
//! true is an *event*: every interrupt, every run of deferred work, every call of [`notify`]. At an event all waiting tasks look
//! at their conditions again. There are only a few of them in a unikernel, and so a wake-up can never be lost by a driver that
//! forgot whom to wake. When no task can run, the one that waited last halts the processor on behalf of all.

pub mod deferred;
pub(crate) mod switch;

use crate::arch::{apic, cpu, interrupts};
use crate::memory::MemoryError;
use crate::memory::stack::{Stack, TASK_STACK_PAGES};
use crate::sync::IrqMutex;
use crate::time::{Deadline, timer};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Tasks that there can be at a time.
const CAPACITY: usize = 32;

/// A task. Numbers are not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskId(u64);

/// Why a task could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// There are too many.
    #[error("too many tasks")]
    TooMany,
    /// There is no memory for its stack.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Running,
    /// Waits for an event after the one with this number, or for a time.
    Waiting {
        seen: u64,
        deadline_ns: u64,
    },
    Finished,
}

type Entry = Box<dyn FnOnce() + Send>;

struct Task {
    id: TaskId,
    name: &'static str,
    state: State,
    /// None for the first task, which runs on the stack that the start left.
    _stack: Option<Stack>,
    entry: Option<Entry>,
}

struct Scheduler {
    tasks: [Option<Task>; CAPACITY],
    current: usize,
    next_id: u64,
}

static SCHEDULER: IrqMutex<Scheduler> = IrqMutex::new(Scheduler {
    tasks: [const { None }; CAPACITY],
    current: 0,
    next_id: 1,
});

/// Where the stacks of tasks that do not run stand.
static STACK_POINTERS: [AtomicU64; CAPACITY] = [const { AtomicU64::new(0) }; CAPACITY];

/// Events so far.
static EVENTS: AtomicU64 = AtomicU64::new(0);

static STARTED: AtomicBool = AtomicBool::new(false);

impl Scheduler {
    /// The next task in turn that can run, the current one last; and, if none can, the time at which one will.
    fn choose(&self, now_ns: impl FnOnce() -> u64) -> Result<usize, u64> {
        let events = EVENTS.load(Ordering::Acquire);
        let mut now = None;
        let mut now_ns = Some(now_ns);
        let mut wake_at = u64::MAX;
        for step in 1..=CAPACITY {
            let index = (self.current + step) % CAPACITY;
            let Some(task) = self.tasks.get(index).and_then(Option::as_ref) else {
                continue;
            };
            match task.state {
                State::Ready => return Ok(index),
                State::Waiting { seen, deadline_ns } => {
                    // The clock is read at most once, and only if somebody waits for a time.
                    let has_passed = deadline_ns != u64::MAX
                        && deadline_ns <= *now.get_or_insert_with(|| now_ns.take().map_or(0, |read| read()));
                    if seen != events || has_passed {
                        return Ok(index);
                    }
                    wake_at = wake_at.min(deadline_ns);
                }
                State::Running | State::Finished => (),
            }
        }
        Err(wake_at)
    }

    fn current(&mut self) -> Option<&mut Task> {
        self.tasks.get_mut(self.current).and_then(Option::as_mut)
    }

    fn insert(&mut self, name: &'static str, stack: Option<Stack>, entry: Option<Entry>) -> Option<usize> {
        let index = self.tasks.iter().position(Option::is_none)?;
        let id = TaskId(self.next_id);
        self.next_id += 1;
        let state = if stack.is_some() { State::Ready } else { State::Running };
        *self.tasks.get_mut(index)? = Some(Task {
            id,
            name,
            state,
            _stack: stack,
            entry,
        });
        Some(index)
    }

    /// Removes a task that has ended and whose stack nobody stands on.
    fn take_finished(&mut self) -> Option<Task> {
        let current = self.current;
        let mut tasks = self.tasks.iter_mut().enumerate();
        let is_over = |task: &Option<Task>| task.as_ref().is_some_and(|task| task.state == State::Finished);
        tasks
            .find(|(index, task)| *index != current && is_over(task))
            .and_then(|(_, slot)| slot.take())
    }
}

/// The number of the task that runs; 0 before there are any.
static CURRENT: AtomicU64 = AtomicU64::new(0);

/// What runs here, as a number: the task, or 0 for deferred work and for the time before there are tasks. No lock, any context.
#[must_use]
pub fn current_number() -> u64 {
    if deferred::is_running() {
        0
    } else {
        CURRENT.load(Ordering::Relaxed)
    }
}

/// Makes what runs now the first task.
pub fn start(name: &'static str) {
    let mut scheduler = SCHEDULER.lock();
    scheduler.insert(name, None, None);
    CURRENT.store(scheduler.current().map_or(0, |task| task.id.0), Ordering::Relaxed);
    drop(scheduler);
    STARTED.store(true, Ordering::Release);
}

/// Starts a task; it runs when the others wait.
///
/// # Errors
///
/// [`SpawnError`] if there is no room or memory.
pub fn spawn(name: &'static str, entry: impl FnOnce() + Send + 'static) -> Result<TaskId, SpawnError> {
    bury();
    let stack = Stack::new(TASK_STACK_PAGES)?;
    let pointer = switch::prepare(&stack, first_steps);
    let mut scheduler = SCHEDULER.lock();
    let index = scheduler
        .insert(name, Some(stack), Some(Box::new(entry)))
        .ok_or(SpawnError::TooMany)?;
    if let Some(slot) = STACK_POINTERS.get(index) {
        slot.store(pointer, Ordering::Relaxed);
    }
    let id = scheduler
        .tasks
        .get(index)
        .and_then(Option::as_ref)
        .map_or(TaskId(0), |task| task.id);
    drop(scheduler);
    notify();
    Ok(id)
}

/// Gives back what ended tasks had.
fn bury() {
    loop {
        // Dropped outside of the lock.
        let finished = SCHEDULER.lock().take_finished();
        if finished.is_none() {
            return;
        }
    }
}

/// Where every task begins.
extern "C" fn first_steps() -> ! {
    let entry = SCHEDULER.lock().current().and_then(|task| task.entry.take());
    cpu::enable_interrupts();
    if let Some(entry) = entry {
        entry();
    }
    if let Some(task) = SCHEDULER.lock().current() {
        task.state = State::Finished;
    }
    notify();
    loop {
        give_way();
    }
}

/// Whether a task has ended.
#[must_use]
pub fn is_finished(id: TaskId) -> bool {
    let scheduler = SCHEDULER.lock();
    !scheduler
        .tasks
        .iter()
        .flatten()
        .any(|task| task.id == id && task.state != State::Finished)
}

/// Tasks that have not ended.
#[must_use]
pub fn count() -> usize {
    SCHEDULER
        .lock()
        .tasks
        .iter()
        .flatten()
        .filter(|task| task.state != State::Finished)
        .count()
}

/// The name of the task that runs.
#[must_use]
pub fn current_name() -> &'static str {
    // A panic under the lock must still be told.
    SCHEDULER.try_lock().map_or("?", |mut scheduler| {
        scheduler.current().map_or("start", |task| task.name)
    })
}

/// Lets all waiting tasks look at their conditions again. Any context may call it.
pub fn notify() {
    EVENTS.fetch_add(1, Ordering::Release);
}

/// Waits until `condition` is true or the deadline has passed, and returns whether it is true. The condition is looked at
/// once more after the deadline.
///
/// In a task others run meanwhile, and the processor halts if none can. Anywhere else (at dispatch, in an interrupt, with
/// interrupts off, before there are tasks) it polls; then the condition has to bring about what it waits for.
pub fn wait_until(deadline: Deadline, mut condition: impl FnMut() -> bool) -> bool {
    loop {
        let seen = EVENTS.load(Ordering::Acquire);
        if condition() {
            return true;
        }
        if deadline.has_passed() {
            return condition();
        }
        if may_block() {
            if let Some(task) = SCHEDULER.lock().current() {
                task.state = State::Waiting {
                    seen,
                    deadline_ns: deadline.as_ns(),
                };
            }
            give_way();
        } else {
            core::hint::spin_loop();
        }
    }
}

/// Lets the other tasks have their turn.
pub fn yield_now() {
    if may_block() {
        if let Some(task) = SCHEDULER.lock().current() {
            task.state = State::Ready;
        }
        give_way();
    }
}

/// Whether this is a task that others may run instead of.
#[must_use]
pub fn may_block() -> bool {
    STARTED.load(Ordering::Acquire)
        && cpu::interrupts_enabled()
        && !interrupts::in_interrupt()
        && !deferred::at_dispatch()
}

/// Runs other tasks, or halts, until the current task can run.
fn give_way() {
    let interrupts = cpu::InterruptsOff::enter();
    loop {
        if deferred::run() {
            notify();
        }
        let mut scheduler = SCHEDULER.lock();
        match scheduler.choose(crate::time::now_ns) {
            Ok(next) => {
                let last = core::mem::replace(&mut scheduler.current, next);
                if let Some(task) = scheduler.current() {
                    task.state = State::Running;
                    CURRENT.store(task.id.0, Ordering::Relaxed);
                }
                // The lock is released with interrupts still off; nothing else touches the two stacks until they are on again.
                drop(scheduler);
                switch_between(last, next);
                break;
            }
            Err(wake_at) => {
                drop(scheduler);
                if apic::is_on() && timer::wake_at(wake_at) {
                    if deferred::is_pending() {
                        continue;
                    }
                    cpu::enable_interrupts_and_halt();
                    cpu::disable_interrupts();
                } else {
                    cpu::enable_interrupts();
                    core::hint::spin_loop();
                    cpu::disable_interrupts();
                }
            }
        }
    }
    drop(interrupts);
}

fn switch_between(last: usize, next: usize) {
    if last != next
        && let (Some(save), Some(load)) = (STACK_POINTERS.get(last), STACK_POINTERS.get(next))
    {
        switch::switch(save, load);
    }
}

/// The end of every interrupt: runs the deferred work that it asked for, unless it came in the middle of such work.
pub(crate) fn after_interrupt() {
    notify();
    if !interrupts::in_interrupt() && deferred::is_pending() && deferred::run() {
        notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(states: &[State]) -> Scheduler {
        let mut scheduler = Scheduler {
            tasks: [const { None }; CAPACITY],
            current: 0,
            next_id: 1,
        };
        for &state in states {
            let index = scheduler.insert("test", None, None).unwrap();
            scheduler.tasks[index].as_mut().unwrap().state = state;
        }
        scheduler
    }

    const fn waiting(seen: u64, deadline_ns: u64) -> State {
        State::Waiting { seen, deadline_ns }
    }

    #[test]
    fn tasks_take_turns() {
        let mut scheduler = scheduler(&[State::Ready, State::Ready, State::Ready]);
        let turns: Vec<_> = (0..4)
            .map(|_| {
                scheduler.current = scheduler.choose(|| 0).unwrap();
                scheduler.current
            })
            .collect();
        assert_eq!(turns, [1, 2, 0, 1]);
    }

    #[test]
    fn an_event_or_a_time_ends_a_wait() {
        // A number that no other test counts to.
        let now = EVENTS.load(Ordering::Relaxed);
        let far = now + 1_000_000;
        assert!(
            scheduler(&[waiting(far, u64::MAX)]).choose(|| 0).is_ok(),
            "an event that was not seen"
        );
        let quiet = |deadlines: &[u64]| {
            // Other tests may cause events at the same time: ask until none came in between.
            loop {
                let seen = EVENTS.load(Ordering::Relaxed);
                let states: Vec<_> = deadlines.iter().map(|&deadline| waiting(seen, deadline)).collect();
                let chosen = scheduler(&states).choose(|| 500);
                if EVENTS.load(Ordering::Relaxed) == seen {
                    return chosen;
                }
            }
        };
        assert_eq!(quiet(&[u64::MAX, u64::MAX]), Err(u64::MAX));
        assert_eq!(quiet(&[900, 700]), Err(700));
        assert_eq!(quiet(&[900, 500]), Ok(1));
    }

    #[test]
    fn ended_tasks_are_removed_but_not_the_one_whose_stack_is_in_use() {
        let mut scheduler = scheduler(&[State::Finished, State::Finished, State::Ready]);
        assert_eq!(scheduler.take_finished().unwrap().id, TaskId(2));
        assert!(scheduler.take_finished().is_none());
        scheduler.current = 2;
        assert_eq!(scheduler.take_finished().unwrap().id, TaskId(1));
    }

    #[test]
    fn without_tasks_a_wait_polls_until_its_deadline() {
        let mut looks = 0;
        assert!(wait_until(Deadline::Never, || {
            looks += 1;
            looks == 3
        }));
        assert!(!wait_until(Deadline::At(0), || false));
    }
}
