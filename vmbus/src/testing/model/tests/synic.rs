//! The hypervisor's part: hypercalls, slots, event flags, timers, time.

use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::RawGuest;
use super::protocol::offer;
use crate::hyperv::machine::Machine;
use crate::testing::model::{Action, Config, Personality, When};

#[test]
fn posts_are_checked_as_strict_hosts_do() {
    let guest = RawGuest::new(Config::new(Personality::OpenVmm));
    let (_, page) = guest.input_base();
    assert_eq!(guest.post_at(4, 1, &[3, 0, 0, 0, 0, 0, 0, 0]), 4, "not aligned");
    assert_eq!(guest.post_at(4000, 1, &[3, 0, 0, 0, 0, 0, 0, 0]), 4, "crosses the page");
    assert_eq!(guest.hypercall(0x1_005c, page), 3, "fast");
    assert_eq!(guest.hypercall(0x5c | 1 << 32, page), 3, "with a repetition count");
    assert_eq!(guest.post_at(0, 7, &[3, 0, 0, 0, 0, 0, 0, 0]), 0x12, "no such port");
    assert_eq!(guest.hypercall(0x5b, page), 2, "no such call");
    assert_eq!(
        guest.host.take_violations().len(),
        5,
        "all but the unknown port, which a contact may try"
    );
    guest.wrmsr(0x4000_0001, 0);
    assert_eq!(guest.hypercall(0x5d, page), 2, "the page is off");
    assert_eq!(guest.host.counters().refused_posts, 4);
}

#[test]
fn a_message_waits_for_its_slot_until_the_end_of_message() {
    let mut guest = RawGuest::new(Config::new(Personality::HyperV));
    for _ in 0..3 {
        guest.host.offer(offer());
    }
    guest.contact(0x5_0000, 4).unwrap();
    guest.post(&[3, 0]);
    assert_eq!(guest.host.waiting_messages(0), 3);
    let slot = guest.host.slot_address(0, 2).unwrap();
    let mut head = [0; 8];
    guest.platform.guest_read(slot, &mut head).unwrap();
    assert_eq!(
        head[..6],
        [1, 0, 0, 0, 196, 1],
        "type, length, and a message is pending"
    );
    // Without the end of message, nothing more comes.
    guest.platform.guest_write(slot, &[0; 4]).unwrap();
    assert_eq!(guest.host.waiting_messages(0), 3);
    guest.wrmsr(0x4000_0084, 0);
    assert_eq!(guest.host.waiting_messages(0), 2);
    guest.take_all();
    assert_eq!(guest.host.waiting_messages(0), 0);
}

#[test]
fn interrupts_run_the_guests_handler_on_the_right_processor() {
    let guest = RawGuest::new(Config::with_processors(Personality::HyperV, 3));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (there, platform) = (Arc::clone(&seen), guest.platform);
    guest.host.set_interrupt_handler(move |processor, vector| {
        there
            .lock()
            .unwrap()
            .push((processor.0, vector, crate::Platform::current_processor(platform).0));
    });
    let page = crate::memory::SharedPages::allocate(guest.platform, 1).unwrap();
    {
        let _there = guest.platform.on_processor(2);
        guest.wrmsr(0x4000_0082, page.gpa().unwrap().get() | 1);
        guest.wrmsr(0x4000_0095, 0x51);
        guest.wrmsr(0x4000_0080, 1);
        assert_eq!(guest.rdmsr(0x4000_0002), 1, "the numbers of processors differ");
    }
    guest.host.disable_interrupts();
    guest.host.set_event_flag(2, 5, 300);
    assert!(seen.lock().unwrap().is_empty());
    guest.host.enable_interrupts();
    guest.host.set_event_flag(2, 5, 300);
    assert_eq!(*seen.lock().unwrap(), [(2, 0x51, 2)], "once: the flag was set already");
    let mut flags = [0];
    page.read_at(5 * 256 + 300 / 8, &mut flags).unwrap();
    assert_eq!(flags[0], 1 << (300 % 8));
    let _there = guest.platform.on_processor(2);
    guest.wrmsr(0x4000_0095, 0x1_0051);
    guest.wrmsr(0x4000_0080, 0);
    guest.wrmsr(0x4000_0082, 0);
}

#[test]
fn timers_fire_when_their_time_comes() {
    let guest = RawGuest::new(Config::new(Personality::HyperV));
    let now = guest.rdmsr(0x4000_0020);
    guest.wrmsr(0x4000_00b0, 2 << 16 | 8);
    guest.wrmsr(0x4000_00b1, now + 10_000_000);
    guest.wrmsr(0x4000_00b2, 0x1000 | 0x77 << 4 | 8);
    guest.wrmsr(0x4000_00b3, now + 20_000_000);
    guest.host.run();
    assert!(guest.host.take_interrupts().is_empty());
    guest.platform.advance(core::time::Duration::from_secs(1));
    guest.host.run();
    let slot = guest.host.slot_address(0, 2).unwrap();
    let mut message = [0; 24];
    guest.platform.guest_read(slot, &mut message).unwrap();
    assert_eq!(message[..5], [0x10, 0, 0, 0x80, 24]);
    assert_eq!(guest.host.take_interrupts(), [(0, 0x30)]);
    guest.platform.advance(core::time::Duration::from_secs(1));
    guest.host.run();
    assert_eq!(
        guest.host.take_interrupts(),
        [(0, 0x77)],
        "the second one is of direct mode"
    );
    assert_eq!(guest.rdmsr(0x4000_00b2) & 1, 0, "a one-shot timer is off then");
    guest.platform.guest_write(slot, &[0; 4]).unwrap();
}

#[test]
fn the_page_the_counter_and_the_time_stamp_agree_on_the_time() {
    let guest = RawGuest::new(Config::new(Personality::HyperV));
    let page = crate::memory::SharedPages::allocate(guest.platform, 1).unwrap();
    guest.wrmsr(0x4000_0021, page.gpa().unwrap().get() | 1);
    let mut fields = [0; 24];
    page.read_at(0, &mut fields).unwrap();
    assert_eq!(fields[..4], [1, 0, 0, 0]);
    let number = |at: usize| u64::from_le_bytes(fields[at..at + 8].try_into().unwrap());
    let by_page = ((u128::from(guest.host.timestamp()) * u128::from(number(8))) >> 64) as u64 + number(16);
    let by_counter = guest.rdmsr(0x4000_0020);
    assert!(by_counter.abs_diff(by_page) < 100, "{by_page} and {by_counter}");
    let frequency = guest.rdmsr(0x4000_0022);
    assert!((guest.host.timestamp() / (frequency / 10_000_000)).abs_diff(by_counter) < 100);
    guest.host.set_tsc_sequence(0);
    page.read_at(0, &mut fields).unwrap();
    assert_eq!(fields[..4], [0; 4]);
    guest.wrmsr(0x4000_0021, 0);
}

#[test]
fn a_crash_and_a_reset_are_recorded() {
    let guest = RawGuest::new(Config::new(Personality::HyperV));
    assert_eq!((guest.host.crash(), guest.host.has_reset()), (None, false));
    for index in 0..5 {
        guest.wrmsr(0x4000_0100 + index, u64::from(index) + 7);
    }
    guest.wrmsr(0x4000_0105, 1 << 63);
    guest.wrmsr(0x4000_0003, 1);
    assert_eq!(guest.host.crash(), Some(([7, 8, 9, 10, 11], 1 << 63)));
    assert!(guest.host.has_reset());
}

#[test]
fn steps_are_counted_and_can_be_met_on_either_side() {
    let guest = RawGuest::new(Config::new(Personality::HyperV));
    let step = guest.host.step_count();
    assert_eq!(step, 6, "the six registers of the guest's beginning");
    let seen = Arc::new(Mutex::new(Vec::new()));
    for when in [When::Before, When::After] {
        let there = Arc::clone(&seen);
        guest.host.at_step(step, when, move |host, action| {
            there.lock().unwrap().push((when, action, host.counters().posts));
        });
    }
    guest.post(&[3, 0]);
    let action = Action::Post {
        connection: 1,
        message_type: 3,
    };
    assert_eq!(
        *seen.lock().unwrap(),
        [(When::Before, action, 0), (When::After, action, 1)]
    );
    assert_eq!(guest.host.steps().last(), Some(&action));
}

#[test]
fn leaves_are_those_of_the_personality() {
    for (personality, ebx_3) in [
        (Personality::HyperV, 0x30),
        (Personality::Qemu, 0x30),
        (Personality::OpenVmm, 0),
    ] {
        let guest = RawGuest::new(Config::new(personality));
        let vendor = guest.host.cpuid(0x4000_0000, 0);
        let name: Vec<u8> = [vendor.ebx, vendor.ecx, vendor.edx]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(name, b"Microsoft Hv");
        assert_eq!(guest.host.cpuid(0x4000_0001, 0).eax.to_le_bytes(), *b"Hv#1");
        assert_eq!(guest.host.cpuid(0x4000_0003, 0).ebx, ebx_3);
        assert_eq!(guest.host.cpuid(1, 0).ecx >> 31, 1);
    }
}
