//! Every interleaving of a hypervisor that delivers messages and a guest that takes them, by loom: none is lost, none is torn,
//! and none comes twice.
//!
//! The hypervisor is as TLFS has it: it writes to the slot if it is free; else it sets the pending flag and looks once more, and
//! after that it waits for the guest to write the end-of-message register.

use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::Message;
use super::slot::{MESSAGE_PENDING, Release, Words, take};

/// Type, size and flags, and one word of payload.
struct Slot([AtomicU32; 3]);

impl Words for Slot {
    fn load(&self, index: usize, ordering: Ordering) -> u32 {
        match index {
            0 | 1 => self.0[index].load(ordering),
            // Where the payload begins.
            4 => self.0[2].load(ordering),
            _ => 0,
        }
    }

    fn store_free(&self, ordering: Ordering) {
        self.0[0].store(0, ordering);
    }

    fn free_if(&self, message_type: u32, ordering: Ordering) {
        let _ = self.0[0].compare_exchange(message_type, 0, ordering, Ordering::Relaxed);
    }
}

struct Machine {
    slot: Slot,
    /// What is still to be delivered. The hypervisor's own lock: its processors do not deliver at the same time.
    queue: Mutex<Vec<u32>>,
}

impl Machine {
    fn new(queue: &[u32]) -> Arc<Self> {
        Arc::new(Self {
            slot: Slot(core::array::from_fn(|_| AtomicU32::new(0))),
            queue: Mutex::new(queue.iter().rev().copied().collect()),
        })
    }

    /// Delivers what fits: the hypervisor's side, of its own accord or at the guest's end of message.
    fn deliver(&self) {
        let mut queue = self.queue.lock().unwrap();
        let Some(&number) = queue.last() else { return };
        let [message_type, flags, payload] = &self.slot.0;
        if message_type.load(Ordering::Acquire) != 0 {
            flags.store(4 | MESSAGE_PENDING, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if message_type.load(Ordering::Acquire) != 0 {
                return;
            }
        }
        queue.pop();
        let pending = if queue.is_empty() { 0 } else { MESSAGE_PENDING };
        payload.store(number, Ordering::Relaxed);
        flags.store(4 | pending, Ordering::Relaxed);
        message_type.store(1, Ordering::Release);
    }

    /// A further message comes: the hypervisor's side.
    fn post(&self, number: u32) {
        self.queue.lock().unwrap().insert(0, number);
        self.deliver();
    }

    /// The guest's side: what its interrupt handler's work does, until the slot is empty.
    fn drain(&self, release: Release, taken: &mut Vec<u32>) {
        while let Some(message) = take(&self.slot, release, || self.deliver()) {
            taken.push(number_of(&message));
        }
    }
}

fn number_of(message: &Message) -> u32 {
    u32::from_le_bytes(*message.payload().first_chunk().unwrap())
}

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(run);
}

/// However the two meet, what the hypervisor did not deliver by itself was asked for.
#[test]
fn m3_no_message_is_lost_between_hypervisor_and_guest() {
    model(|| {
        let machine = Machine::new(&[1, 2, 3]);
        // The first interrupt: there is something to take.
        machine.deliver();
        let hypervisor = {
            let machine = machine.clone();
            // The next message is posted while the guest empties the slot.
            thread::spawn(move || machine.deliver())
        };
        let mut taken = Vec::new();
        machine.drain(Release::Always, &mut taken);
        hypervisor.join().unwrap();
        // What was delivered last came with an interrupt of its own.
        machine.drain(Release::Always, &mut taken);
        assert_eq!(taken, [1, 2, 3]);
        assert!(machine.queue.lock().unwrap().is_empty(), "nobody asked for the rest");
    });
}

/// The flag is not set when the first message is delivered, so that it is the fence between freeing the slot and looking at the flag
/// that counts: either the hypervisor sees the slot free, or the guest sees the flag.
#[test]
fn m3_a_message_that_is_posted_while_the_slot_is_emptied_is_delivered_or_asked_for() {
    for release in [Release::Always, Release::IfUnchanged] {
        model(move || {
            let machine = Machine::new(&[1]);
            machine.deliver();
            let hypervisor = {
                let machine = machine.clone();
                thread::spawn(move || machine.post(2))
            };
            let mut taken = Vec::new();
            machine.drain(release, &mut taken);
            hypervisor.join().unwrap();
            // What was delivered last came with an interrupt of its own.
            machine.drain(release, &mut taken);
            assert_eq!(taken, [1, 2]);
        });
    }
}

/// In a crash the slot is emptied by another processor while its own may have stopped half-way: none is taken that was not
/// there, and none is left behind.
#[test]
fn m3_two_processors_in_a_crash_leave_no_message_behind() {
    model(|| {
        let machine = Machine::new(&[1, 2]);
        machine.deliver();
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                let mut taken = Vec::new();
                machine.drain(Release::IfUnchanged, &mut taken);
                taken
            })
        };
        let mut taken = Vec::new();
        machine.drain(Release::IfUnchanged, &mut taken);
        taken.extend(other.join().unwrap());
        machine.drain(Release::IfUnchanged, &mut taken);
        taken.sort_unstable();
        taken.dedup();
        // A message may be seen by both, but never none by either.
        assert!(taken.contains(&1), "{taken:?}");
        assert!(machine.queue.lock().unwrap().is_empty(), "nobody asked for the rest");
    });
}
