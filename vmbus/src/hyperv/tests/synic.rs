//! The synthetic interrupt controller: turning it on and off, messages, event flags.

use std::boxed::Box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::thread;
use std::vec::Vec;

use super::fake::{FakeMachine, FakePlatform, HYPER_V, QEMU, qemu, registers_after_reset};
use crate::hyperv::overlay::{Overlay, Scope};
use crate::hyperv::registers::PageRegister;
use crate::hyperv::slot::{self, Release};
use crate::hyperv::{
    EVENT_FLAG_COUNT, EndOfInterrupt, Hypervisor, LeftOn, Message, MessageType, Synic, SynicConfig, SynicError,
    TimerExpiry,
};
use crate::platform::{OutOfPages, PageUse, ProcessorIndex};
use crate::testing::wait_until;

const SIMP: u64 = 0x1_0000_0000;
const SIEFP: u64 = 0x1_0010_0000;
const EOM: u32 = 0x4000_0084;
/// Source 2's part of either page.
const SLOT: u64 = 0x200;

fn enable(machine: &'static FakeMachine, hypervisor: &'static Hypervisor) -> Synic {
    let synic = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap();
    machine.take_events();
    synic
}

fn synic() -> (&'static FakeMachine, Synic) {
    let (machine, hypervisor) = qemu();
    (machine, enable(machine, hypervisor))
}

/// Puts a message into source 2's slot as a host does: the type last.
fn deliver(platform: &FakePlatform, message_type: u32, size: u8, fill: u32) {
    for word in 4..64 {
        platform.word32(SIMP + SLOT + 4 * word).store(fill, Ordering::Relaxed);
    }
    platform
        .word32(SIMP + SLOT + 4)
        .store(u32::from(size), Ordering::Relaxed);
    platform.word32(SIMP + SLOT + 8).store(0x1122_3344, Ordering::Relaxed);
    platform.word32(SIMP + SLOT + 12).store(0x5566_7788, Ordering::Relaxed);
    platform.word32(SIMP + SLOT).store(message_type, Ordering::Release);
}

fn next_message(synic: &Synic) -> Message {
    let mut message = None;
    wait_until("the next message", || {
        message = synic.take_message(2);
        message.is_some()
    });
    message.unwrap()
}

fn set_pending(platform: &FakePlatform) {
    platform.word32(SIMP + SLOT + 4).fetch_or(0x100, Ordering::SeqCst);
}

#[test]
fn b5_auto_eoi_is_used_where_it_is_not_deprecated_and_pages_come_before_interrupts() {
    let (machine, hypervisor) = qemu();
    let synic = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap();
    assert_eq!(synic.end_of_interrupt(), EndOfInterrupt::Automatic);
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_0083, SIMP | 0x0cd),
            (0x4000_0082, SIEFP | 0x0ab),
            (0x4000_0080, 0x11),
            (0x4000_0092, 0x2_0030),
        ]
    );
    assert_eq!(machine.platform.uses(), [PageUse::Data; 2]);
    assert_eq!(machine.platform.dispatch_depth.load(Ordering::Relaxed), 0);
}

#[test]
fn b5_auto_eoi_is_not_used_where_it_is_deprecated() {
    let machine = FakeMachine::leak(HYPER_V, &registers_after_reset());
    machine.set(0x4000_0092, 0xabcd_0000_0005_ff13);
    let hypervisor = machine.hypervisor();
    let synic = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap();
    assert_eq!(synic.end_of_interrupt(), EndOfInterrupt::Explicit);
    // Vector, mask, AutoEOI and polling are ours; the rest is reserved and stays.
    assert_eq!(machine.get(0x4000_0092), 0xabcd_0000_0000_ff30);
}

#[test]
fn b5_auto_eoi_is_not_used_where_the_system_does_not_want_it() {
    let (machine, hypervisor) = qemu();
    let mut config = SynicConfig::vmbus(0xf0);
    config.end_of_interrupt = EndOfInterrupt::Explicit;
    let synic = Synic::enable(hypervisor, machine.platform, config).unwrap();
    assert_eq!(synic.end_of_interrupt(), EndOfInterrupt::Explicit);
    assert_eq!(machine.get(0x4000_0092), 0xf0);
}

#[test]
fn b7_timers_stop_then_sources_are_masked_then_pages_go() {
    let (machine, synic) = synic();
    synic.enable_sint(5, 0x31).unwrap();
    assert_eq!(machine.take_writes(), [(0x4000_0095, 0x2_0031)]);
    // Timer 1 in message mode, timer 2 in direct mode.
    machine.set(0x4000_00b2, 0x5_0009);
    machine.set(0x4000_00b4, 0x1_3219);
    synic.disable().unwrap();
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_00b2, 0),
            (0x4000_00b3, 0),
            (0x4000_0092, 0x3_0030),
            (0x4000_0095, 0x3_0031),
            (0x4000_0083, SIMP | 0x0cc),
            (0x4000_0082, SIEFP | 0x0aa),
            (0x4000_0080, 0x10),
        ]
    );
    assert_eq!(machine.platform.pages_in_use(), 0);
    assert_eq!(machine.platform.dispatch_depth.load(Ordering::Relaxed), 0);
}

#[test]
fn b7_another_processors_controller_stays_on_and_its_pages_are_not_given_back() {
    let (machine, synic) = synic();
    machine.platform.processor.store(1, Ordering::Relaxed);
    assert_eq!(synic.processor(), ProcessorIndex(0));
    assert_eq!(synic.disable(), Err(LeftOn(ProcessorIndex(0))));
    assert_eq!(machine.take_writes(), []);
    assert_eq!(
        machine.platform.pages_in_use(),
        2,
        "the hypervisor may still write there"
    );
    assert_eq!(machine.platform.dispatch_depth.load(Ordering::Relaxed), 0);
}

#[test]
fn b7_a_processors_page_is_never_given_back_on_another() {
    let (machine, hypervisor) = qemu();
    let registers = hypervisor.registers();
    let enable = || {
        Overlay::enable(
            registers,
            PageRegister::SIMP,
            Scope::Processor,
            machine.platform,
            PageUse::Data,
        )
        .unwrap()
    };
    let overlay = enable();
    machine.take_events();
    machine.platform.processor.store(1, Ordering::Relaxed);
    overlay.disable(registers);
    assert_eq!(machine.take_writes(), []);
    assert_eq!(machine.platform.pages_in_use(), 1);
    enable().disable(registers);
    assert_eq!(machine.platform.pages_in_use(), 1);
}

#[test]
fn b7_a_controller_that_is_dropped_keeps_its_pages() {
    let (machine, synic) = synic();
    let lose = |_: Synic| ();
    lose(synic);
    assert_eq!(machine.platform.pages_in_use(), 2);
}

#[test]
fn b1_an_earlier_owner_is_turned_off_before_our_pages_go_on() {
    let (machine, hypervisor) = qemu();
    machine.set(0x4000_0083, 0x5_5000_0001);
    machine.set(0x4000_0082, 0x5_6000_0001);
    machine.set(0x4000_0080, 1);
    machine.set(0x4000_0092, 0x2_00f3);
    machine.set(0x4000_0094, 0x0_00ec);
    // Its timer 0 sends messages; timer 3 is the kernel's own, in direct mode, and goes on.
    machine.set(0x4000_00b0, 0x4_0009);
    machine.set(0x4000_00b6, 0x1_3219);
    let synic = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap();
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_00b0, 0),
            (0x4000_00b1, 0),
            (0x4000_0092, 0x3_00f3),
            (0x4000_0094, 0x1_00ec),
            (0x4000_0083, 0x5_5000_0000),
            (0x4000_0082, 0x5_6000_0000),
            (0x4000_0080, 0),
            (0x4000_0083, SIMP | 1),
            (0x4000_0082, SIEFP | 1),
            (0x4000_0080, 1),
            (0x4000_0092, 0x2_0030),
        ]
    );
    synic.disable().unwrap();
}

#[test]
fn b1_an_earlier_owner_of_one_page_alone_is_turned_off_as_well() {
    for register in [0x4000_0083, 0x4000_0082] {
        let (machine, hypervisor) = qemu();
        machine.set(register, 0x5_5000_0001);
        machine.set(0x4000_0094, 0x0_00ec);
        let synic = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap();
        let writes = machine.take_writes();
        let off = writes.iter().position(|write| *write == (register, 0x5_5000_0000));
        let on = writes
            .iter()
            .position(|(other, value)| *other == register && value & 1 != 0);
        assert!(off.is_some() && off < on, "{writes:x?}");
        assert_eq!(machine.get(0x4000_0094), 0x1_00ec, "its source is masked");
        synic.disable().unwrap();
    }
}

#[test]
fn b1_a_processor_can_be_silenced_whoever_used_it() {
    let (machine, hypervisor) = qemu();
    let synic = enable(machine, hypervisor);
    machine.set(0x4000_00b6, 0x1_3219);
    hypervisor.silence_processor();
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_00b6, 0),
            (0x4000_00b7, 0),
            (0x4000_0092, 0x3_0030),
            (0x4000_0083, SIMP | 0x0cc),
            (0x4000_0082, SIEFP | 0x0aa),
            (0x4000_0080, 0x10),
        ]
    );
    // Its owner finds nothing left to turn off, and gives the pages back.
    synic.disable().unwrap();
    assert_eq!(machine.take_writes(), [(0x4000_0080, 0x10)]);
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
fn a_page_that_another_owner_has_taken_is_not_turned_off() {
    let (machine, synic) = synic();
    machine.set(0x4000_0083, 0x5_5000_0001);
    synic.disable().unwrap();
    assert_eq!(machine.get(0x4000_0083), 0x5_5000_0001);
    assert_eq!(machine.get(0x4000_0082), SIEFP | 0x0aa);
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
fn a_failure_leaves_nothing_on() {
    for pages in 0..2 {
        let (machine, hypervisor) = qemu();
        *machine.platform.pages_left.lock().unwrap() = Some(pages);
        let error = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap_err();
        assert_eq!(error, SynicError::OutOfPages(OutOfPages { page_count: 1 }));
        assert_eq!(machine.get(0x4000_0083), 0x0cc & !1 | if pages == 0 { 0 } else { SIMP });
        assert_eq!(machine.platform.pages_in_use(), 0);
    }
    for register in [0x4000_0082, 0x4000_0083] {
        let (machine, hypervisor) = qemu();
        machine.stuck.lock().unwrap().push(register);
        let error = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(0x30)).unwrap_err();
        assert_eq!(error, SynicError::Refused);
        assert_eq!(machine.get(0x4000_0083) & 1, 0);
        assert_eq!(machine.platform.pages_in_use(), 0);
        assert_eq!(machine.platform.dispatch_depth.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn sources_and_vectors_that_are_not_the_guests_are_refused() {
    let (machine, hypervisor) = qemu();
    for sint in [0, 16, 255] {
        let mut config = SynicConfig::vmbus(0x30);
        config.sint = sint;
        let error = Synic::enable(hypervisor, machine.platform, config).unwrap_err();
        assert_eq!(error, SynicError::BadSint(sint));
    }
    for vector in [0, 31] {
        let error = Synic::enable(hypervisor, machine.platform, SynicConfig::vmbus(vector)).unwrap_err();
        assert_eq!(error, SynicError::BadVector(vector));
    }
    assert_eq!(machine.take_writes(), []);
    let synic = enable(machine, hypervisor);
    assert_eq!(synic.enable_sint(16, 0x30), Err(SynicError::BadSint(16)));
    assert_eq!(synic.enable_sint(3, 3), Err(SynicError::BadVector(3)));
    synic.disable_sint(2);
    synic.disable_sint(2);
    assert_eq!(machine.take_writes(), [(0x4000_0092, 0x3_0030)]);

    let mut leaves = QEMU.to_vec();
    leaves[5].1[0] &= !4;
    let machine = FakeMachine::leak(&leaves, &[]);
    let error = Synic::enable(machine.hypervisor(), machine.platform, SynicConfig::vmbus(0x30)).unwrap_err();
    assert_eq!(error, SynicError::NotOffered);
}

#[test]
fn a_message_is_taken_with_all_that_belongs_to_it() {
    let (machine, synic) = synic();
    assert!(!synic.has_message(2));
    assert_eq!(synic.take_message(2), None);
    deliver(machine.platform, 1, 6, 0x6463_6261);
    assert!(synic.has_message(2));
    assert!(!synic.has_message(3));
    assert_eq!(synic.take_message(3), None);
    let message = synic.take_message(2).unwrap();
    assert_eq!(message.message_type(), MessageType::CHANNEL);
    assert_eq!(message.sender(), 0x5566_7788_1122_3344);
    assert_eq!(message.payload(), b"abcdab");
    assert!(!synic.has_message(2));
    assert_eq!(
        machine.take_events(),
        [],
        "nothing waits, so there is no end-of-message"
    );
}

#[test]
fn m2_a_size_beyond_the_slot_is_cut() {
    let (machine, synic) = synic();
    for size in [0, 1, 239, 240, 241, 255] {
        deliver(machine.platform, 1, size, 0x6161_6161);
        let message = synic.take_message(2).unwrap();
        assert_eq!(message.claimed_payload_len(), usize::from(size));
        assert_eq!(message.payload().len(), usize::from(size.min(240)));
        assert!(message.payload().iter().all(|byte| *byte == b'a'));
    }
}

#[test]
fn m1_what_the_host_writes_after_the_copy_changes_nothing() {
    let (machine, synic) = synic();
    deliver(machine.platform, 1, 4, 0x6161_6161);
    set_pending(machine.platform);
    // The host rewrites the slot while we are still in `take_message`.
    *machine.on_write.lock().unwrap() = Some(Box::new(|machine, register, _| {
        if register == EOM {
            deliver(machine.platform, 2, 200, 0x7a7a_7a7a);
        }
    }));
    let message = synic.take_message(2).unwrap();
    assert_eq!(message.message_type(), MessageType(1));
    assert_eq!(message.claimed_payload_len(), 4);
    assert_eq!(message.payload(), b"aaaa");
}

/// Ends the host's thread when the test does, failed or not.
struct EndsHost<'a>(&'a AtomicBool);

impl Drop for EndsHost<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn m1_a_message_agrees_with_itself_whatever_the_host_does_meanwhile() {
    let (machine, synic) = synic();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let platform = machine.platform;
            let mut value = 1_u32;
            while !is_done.load(Ordering::Relaxed) {
                value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                platform
                    .word32(SIMP + SLOT + 4)
                    .store(value & !0x100, Ordering::Relaxed);
                platform
                    .word32(SIMP + SLOT + 4 * u64::from(value >> 8 & 63).max(4))
                    .store(value, Ordering::Relaxed);
                platform.word32(SIMP + SLOT).store(value >> 16, Ordering::Relaxed);
            }
        });
        let _ends_host = EndsHost(&is_done);
        let wanted = if cfg!(miri) { 5 } else { 1000 };
        // On a busy machine the host's thread may not have begun: the messages count, not the looks.
        for _ in 0..wanted {
            let message = next_message(&synic);
            assert_ne!(message.message_type(), MessageType::NONE);
            let first = Vec::from(message.payload());
            assert_eq!(first.len(), message.claimed_payload_len().min(240));
            thread::yield_now();
            assert_eq!(first, message.payload());
        }
    });
}

#[test]
fn m3_the_slot_is_free_before_the_end_of_message_is_written_once() {
    let (machine, synic) = synic();
    deliver(machine.platform, 1, 4, 0x6161_6161);
    set_pending(machine.platform);
    *machine.on_write.lock().unwrap() = Some(Box::new(|machine, register, _| {
        assert_eq!(register, EOM);
        assert_eq!(machine.platform.word32(SIMP + SLOT).load(Ordering::Relaxed), 0);
        // The host delivers the waiting message at once.
        deliver(machine.platform, 1, 4, 0x6262_6262);
    }));
    assert_eq!(synic.take_message(2).unwrap().payload(), b"aaaa");
    assert_eq!(machine.take_writes(), [(EOM, 0)]);
    assert_eq!(synic.take_message(2).unwrap().payload(), b"bbbb");
    assert_eq!(machine.take_writes(), []);
    assert_eq!(synic.take_message(2), None);
}

#[test]
fn m3_the_crash_path_frees_the_slot_on_any_processor() {
    let (machine, synic) = synic();
    machine.platform.processor.store(1, Ordering::Relaxed);
    deliver(machine.platform, 1, 4, 0x6161_6161);
    set_pending(machine.platform);
    *machine.on_write.lock().unwrap() = Some(Box::new(|machine, _, _| {
        assert_eq!(machine.platform.word32(SIMP + SLOT).load(Ordering::Relaxed), 0);
    }));
    assert_eq!(synic.take_message_in_emergency(2).unwrap().payload(), b"aaaa");
    assert_eq!(machine.take_writes(), [(EOM, 0)]);
    assert_eq!(synic.take_message_in_emergency(2), None);
    // It takes no lock and allocates nothing: with a platform that has no pages left, too.
    *machine.platform.pages_left.lock().unwrap() = Some(0);
    deliver(machine.platform, 1, 1, 0x6161_6161);
    assert_eq!(synic.take_message_in_emergency(2).unwrap().payload(), b"a");
}

#[test]
fn m3_a_newer_message_is_not_freed_with_the_older_one_on_the_crash_path() {
    let (machine, synic) = synic();
    let state = || machine.platform.word32(SIMP + SLOT).load(Ordering::Relaxed);
    // Copied by us as type 1; meanwhile the processor that we stopped had freed the slot, and type 2 came.
    deliver(machine.platform, 2, 4, 0x6262_6262);
    slot::clear(&synic.message_slot(2).unwrap(), 1, Release::IfUnchanged);
    assert_eq!(state(), 2);
    assert_eq!(synic.take_message_in_emergency(2).unwrap().payload(), b"bbbb");
    assert_eq!(state(), 0);
    // The slot's only user frees it whatever a hostile host has made of the type, or it would see it for ever.
    deliver(machine.platform, 2, 4, 0x6262_6262);
    slot::clear(&synic.message_slot(2).unwrap(), 1, Release::Always);
    assert_eq!(state(), 0);
}

/// As the processor that we stopped may have got on: it frees the slot while we copy, and the next message comes.
#[test]
fn m3_a_message_that_comes_while_another_is_taken_in_a_crash_is_not_lost() {
    let (machine, synic) = synic();
    let slot = || machine.platform.word32(SIMP + SLOT);
    let rounds: u32 = if cfg!(miri) { 20 } else { 2_000 };
    let (begun, ended, came) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=rounds {
                wait_until("the next round", || begun.load(Ordering::Acquire) >= round);
                if slot()
                    .compare_exchange(1, 2, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
                {
                    came.store(round, Ordering::Relaxed);
                }
                ended.store(round, Ordering::Release);
            }
        });
        for round in 1..=rounds {
            deliver(machine.platform, 1, 4, 0x6161_6161);
            begun.store(round, Ordering::Release);
            let taken = synic.take_message_in_emergency(2).unwrap().message_type();
            wait_until("the end of the round", || ended.load(Ordering::Acquire) >= round);
            let has_come = came.load(Ordering::Relaxed) == round;
            let is_there = slot().swap(0, Ordering::SeqCst) == 2;
            // Not asserted: the other thread would wait for ever.
            if has_come && !is_there && taken.0 != 2 {
                begun.store(rounds, Ordering::Release);
                panic!("the message that came in round {round} is lost");
            }
        }
    });
}

/// The hypervisor's side of a slot: a message goes in when the slot is free; else the pending flag is set, the slot is
/// looked at again, and then only an end-of-message makes it look once more.
fn deliver_by_the_rules(machine: &FakeMachine, number: u32, is_done: &AtomicBool) {
    let platform = machine.platform;
    let slot_is_free = || platform.word32(SIMP + SLOT).load(Ordering::SeqCst) == 0;
    let seen = machine.end_of_message_count.load(Ordering::SeqCst);
    if !slot_is_free() {
        set_pending(platform);
        fence(Ordering::SeqCst);
        if !slot_is_free() {
            wait_until("an end-of-message", || {
                machine.end_of_message_count.load(Ordering::SeqCst) != seen || is_done.load(Ordering::Relaxed)
            });
        }
    }
    if slot_is_free() {
        deliver(platform, 1, 4, number);
    } else if !is_done.load(Ordering::Relaxed) {
        // An end-of-message for an earlier message may be late; the rules begin anew.
        deliver_by_the_rules(machine, number, is_done);
    }
}

#[test]
fn m3_no_message_is_lost_between_freeing_the_slot_and_looking_at_the_flag() {
    let (machine, synic) = synic();
    let message_count: u32 = if cfg!(miri) { 20 } else { 20_000 };
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..message_count {
                deliver_by_the_rules(machine, number, &is_done);
            }
        });
        let _ends_host = EndsHost(&is_done);
        for expected in 0..message_count {
            // If it does not come, the host waits for an end-of-message that never came.
            assert_eq!(next_message(&synic).payload(), expected.to_le_bytes());
        }
    });
}

#[test]
fn each_of_the_2048_event_flags_is_seen_once() {
    let (machine, synic) = synic();
    assert!(!synic.has_event_flags(2));
    let step = if cfg!(miri) { 341 } else { 1 };
    for flag in (0..u64::from(EVENT_FLAG_COUNT)).step_by(step) {
        machine
            .platform
            .word64(SIEFP + SLOT + flag / 64 * 8)
            .fetch_or(1 << (flag % 64), Ordering::Relaxed);
        assert!(synic.has_event_flags(2));
        assert!(!synic.has_event_flags(1) && !synic.has_event_flags(3));
        let mut seen = Vec::new();
        synic.take_event_flags(1, |flag| seen.push(flag));
        synic.take_event_flags(3, |flag| seen.push(flag));
        assert_eq!(seen, []);
        synic.take_event_flags(2, |flag| seen.push(flag));
        assert_eq!(seen, [u32::try_from(flag).unwrap()]);
        synic.take_event_flags(2, |_| panic!("taken already"));
    }
    for word in 0..32 {
        machine
            .platform
            .word64(SIEFP + SLOT + word * 8)
            .store(u64::MAX, Ordering::Relaxed);
    }
    let mut seen = Vec::new();
    synic.take_event_flags(2, |flag| seen.push(flag));
    assert_eq!(seen, (0..EVENT_FLAG_COUNT).collect::<Vec<_>>());
    assert_eq!(machine.take_events(), [], "no register is touched");
}

#[test]
fn flags_beyond_the_limit_wait_until_it_is_raised() {
    let (machine, synic) = synic();
    let set = |flag: u64| {
        let word = machine.platform.word64(SIEFP + SLOT + flag / 64 * 8);
        word.fetch_or(1 << (flag % 64), Ordering::Relaxed);
    };
    let take = || {
        let mut seen = Vec::new();
        synic.take_event_flags(2, |flag| seen.push(flag));
        seen
    };
    synic.set_flag_limit(65);
    set(63);
    set(64);
    set(127);
    set(128);
    assert_eq!(take(), [63, 64, 127], "rounded up to a whole word");
    assert!(!synic.has_event_flags(2));
    synic.set_flag_limit(0);
    set(1);
    assert_eq!(take(), []);
    synic.set_flag_limit(u32::MAX);
    set(2047);
    assert_eq!(take(), [1, 128, 2047]);
}

#[test]
fn no_flag_is_lost_while_the_host_sets_them() {
    let (machine, synic) = synic();
    let rounds: u32 = if cfg!(miri) { 20 } else { 20_000 };
    let (sent, received) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                // Like the hypervisor: an interrupt only if the flag was clear; here, a count.
                let word = machine.platform.word64(SIEFP + SLOT);
                let bit = 1 << (round % 64);
                if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for _ in 0..rounds {
            synic.take_event_flags(2, |_| {
                received.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    synic.take_event_flags(2, |_| {
        received.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(sent.into_inner(), received.into_inner());
}

#[test]
fn a_timers_message_is_understood_and_others_are_not() {
    let (machine, synic) = synic();
    let platform = machine.platform;
    let deliver_expiry = |message_type, size| {
        deliver(platform, message_type, size, 0);
        for (index, word) in [3_u32, 0, 0x9abc_def0, 0x1234_5678, 0x9abc_def1, 0x1234_5678]
            .into_iter()
            .enumerate()
        {
            platform
                .word32(SIMP + SLOT + 16 + 4 * index as u64)
                .store(word, Ordering::Relaxed);
        }
        synic.take_message(2).unwrap().timer_expiry()
    };
    assert_eq!(
        deliver_expiry(0x8000_0010, 24),
        Some(TimerExpiry {
            timer: 3,
            due_at: 0x1234_5678_9abc_def0,
            delivered_at: 0x1234_5678_9abc_def1,
        })
    );
    assert_eq!(deliver_expiry(0x8000_0010, 23), None);
    assert_eq!(deliver_expiry(1, 24), None);
}
