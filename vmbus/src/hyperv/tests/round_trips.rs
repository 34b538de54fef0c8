//! Messages as any bytes: what lies in a slot is what is read, and what is posted is what the hypervisor finds.

use core::sync::atomic::Ordering;
use proptest::prelude::*;
use std::cell::Cell;
use std::vec::Vec;

use super::fake::{Event, qemu};
use super::post;
use crate::hyperv::slot::{self, Release, Words};
use crate::hyperv::{GuestId, Message, MessageInput, MessageType, Signature, TimerExpiry};

/// A slot of which each word may be read once, and the second one once more for its flags.
struct Slot {
    words: Vec<u32>,
    reads: Vec<Cell<u32>>,
    is_free: Cell<bool>,
    /// The hypervisor finds the slot taken, and sets the flag, just before it is freed.
    is_queued_behind: Cell<bool>,
}

impl Slot {
    fn new(bytes: &[u8]) -> Self {
        let words: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        Self {
            reads: words.iter().map(|_| Cell::new(0)).collect(),
            words,
            is_free: Cell::new(false),
            is_queued_behind: Cell::new(false),
        }
    }
}

impl Words for Slot {
    fn load(&self, index: usize, _: Ordering) -> u32 {
        self.reads[index].set(self.reads[index].get() + 1);
        match index {
            // The flag is there from the moment on that it is set, and that is before the slot is free.
            1 if self.is_queued_behind.get() && self.is_free.get() => self.words[1] | 1 << 8,
            _ => self.words[index],
        }
    }

    fn store_free(&self, _: Ordering) {
        self.is_free.set(true);
    }

    fn free_if(&self, message_type: u32, _: Ordering) {
        self.is_free.set(message_type == self.words[0]);
    }
}

/// Takes the message out of a slot with these bytes.
fn take(bytes: &[u8], release: Release) -> Option<Message> {
    let slot = Slot::new(bytes);
    let mut is_asked = false;
    let message = slot::take(&slot, release, || is_asked = true);
    let is_there = bytes[..4] != [0; 4];
    assert_eq!((message.is_some(), slot.is_free.get()), (is_there, is_there));
    assert_eq!(
        is_asked,
        is_there && bytes[5] & 1 != 0,
        "the flag is bit 8 of the second word"
    );
    for (index, reads) in slot.reads.iter().enumerate() {
        let expected = match (is_there, index) {
            (true, 1) => 2,
            (true, _) | (false, 0) => 1,
            _ => 0,
        };
        assert_eq!(reads.get(), expected, "word {index}");
    }
    message
}

#[test]
fn m3_a_message_that_is_queued_just_before_the_slot_is_freed_is_asked_for() {
    for release in [Release::Always, Release::IfUnchanged] {
        let mut bytes = [0; 256];
        bytes[0] = 1;
        let slot = Slot::new(&bytes);
        slot.is_queued_behind.set(true);
        let mut asked = 0;
        assert!(slot::take(&slot, release, || asked += 1).is_some());
        assert_eq!(asked, 1);
    }
}

fn slot_bytes() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(any::<u8>(), 256), any::<u8>(), any::<bool>()).prop_map(|(mut bytes, kind, is_timer)| {
        if is_timer {
            bytes[..4].copy_from_slice(&[0x10, 0, 0, 0x80]);
        } else if kind < 32 {
            bytes[..4].fill(0);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn m1_any_bytes_of_a_slot_are_a_message_that_says_the_same(bytes in slot_bytes(), is_crash in any::<bool>()) {
        let release = if is_crash { Release::IfUnchanged } else { Release::Always };
        let Some(message) = take(&bytes, release) else {
            prop_assert_eq!(&bytes[..4], [0; 4]);
            return Ok(());
        };
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        prop_assert_eq!(&message.message_type().0.to_le_bytes(), &bytes[..4]);
        prop_assert_eq!(message.claimed_payload_len(), usize::from(bytes[4]));
        prop_assert_eq!(message.sender(), number(8));
        let len = usize::from(bytes[4]).min(240);
        prop_assert_eq!(message.payload(), &bytes[16..16 + len]);
        let is_expiry = message.message_type() == MessageType::TIMER_EXPIRED && bytes[4] >= 24;
        let expiry = TimerExpiry {
            timer: u32::from_le_bytes(bytes[16..20].try_into().unwrap()),
            due_at: number(24),
            delivered_at: number(32),
        };
        prop_assert_eq!(message.timer_expiry(), is_expiry.then_some(expiry));
    }

    #[test]
    fn m13_what_is_posted_is_what_the_hypervisor_finds_and_nothing_else(
        (connection, message_type) in any::<(u32, u32)>(),
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=240), 1..3),
    ) {
        let (machine, hypervisor) = qemu();
        hypervisor.enable_hypercalls(machine.platform, GuestId::default()).unwrap();
        let input = MessageInput::allocate(machine.platform).unwrap();
        for payload in payloads {
            machine.take_events();
            post(hypervisor, &input, connection, message_type, &payload).unwrap();
            let events = machine.take_events();
            let Some(Event::Message(wire)) = events.last() else { panic!("{events:?}") };
            let word = |at: usize| u32::from_le_bytes(wire[at..at + 4].try_into().unwrap());
            prop_assert_eq!([word(0), word(4), word(8)], [connection, 0, message_type]);
            prop_assert_eq!(word(12) as usize, payload.len());
            prop_assert_eq!(&wire[16..16 + payload.len()], payload.as_slice());
            prop_assert!(wire[16 + payload.len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn b2_any_bytes_are_a_signature_that_can_be_printed(bytes in any::<[u8; 12]>()) {
        let signature = Signature::new(bytes);
        prop_assert_eq!(signature.bytes(), &bytes);
        let text = std::format!("{signature}");
        prop_assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{text}");
    }
}
