//! The hypercall page, posting messages, signalling events.

use std::boxed::Box;
use std::format;
use std::sync::atomic::Ordering;
use std::thread;
use std::vec::Vec;

use super::fake::{Event, FakeMachine, HYPER_V, OPENVMM, QEMU, qemu, registers_after_reset};
use super::post;
use crate::hyperv::{EnableError, GuestId, HypercallError, HypercallStatus, Hypervisor, MessageInput};
use crate::memory::Pfn;
use crate::platform::{OutOfPages, PageUse};
use crate::protocol::{ConnectionId, VpIndex};

#[test]
fn the_guest_says_who_it_is_and_that_it_is_no_one_else() {
    let id = GuestId::new(0x12, 0x0003_0405, 0x6789).get();
    assert_eq!(id, 0xf612_0003_0405_6789);
    assert_eq!(id >> 63, 1, "open source");
    assert!(!(1..=4).contains(&(id >> 56 & 0x7f)), "an assigned type");
    assert_eq!(GuestId::with_type(0xff, 0, 0, 0).get(), 0xff00_0000_0000_0000);
    assert_ne!(GuestId::with_type(0, 0, 0, 0).get(), 0);
}

#[test]
fn the_guest_id_comes_before_the_page_and_reserved_bits_stay() {
    let (machine, hypervisor) = qemu();
    assert!(!hypervisor.has_hypercalls());
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::new(1, 2, 3))
        .unwrap();
    assert!(hypervisor.has_hypercalls());
    assert_eq!(
        machine.take_writes(),
        [(0x4000_0000, 0xf601_0000_0002_0003), (0x4000_0001, 0x1_0000_00f5)]
    );
    assert_eq!(machine.platform.uses(), [PageUse::HypercallCode]);
    // Again is nothing.
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    assert_eq!(machine.take_writes(), []);
    assert_eq!(machine.platform.dispatch_depth.load(Ordering::Relaxed), 0);
}

#[test]
fn b7_the_page_goes_before_the_guest_id_and_memory_comes_back() {
    let (machine, hypervisor) = qemu();
    hypervisor.disable_hypercalls().unwrap();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    machine.take_events();
    hypervisor.disable_hypercalls().unwrap();
    assert_eq!(machine.take_writes(), [(0x4000_0001, 0x1_0000_00f4), (0x4000_0000, 0)]);
    assert_eq!(machine.platform.pages_in_use(), 0);
    assert_eq!(
        hypervisor.signal_event(ConnectionId(1), 0),
        Err(HypercallError::Disabled)
    );
    hypervisor.disable_hypercalls().unwrap();
    assert_eq!(machine.take_writes(), []);
    // And on again.
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    hypervisor.signal_event(ConnectionId(1), 0).unwrap();
}

#[test]
fn b1_an_earlier_owners_page_is_replaced() {
    let (machine, hypervisor) = qemu();
    machine.set(0x4000_0000, 0x8100_0605_0000_0000);
    machine.set(0x4000_0001, 0x7777_7001);
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::new(0, 1, 0))
        .unwrap();
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_0001, 0x7777_7000),
            (0x4000_0000, 0xf600_0000_0001_0000),
            (0x4000_0001, 0x1_0000_0001)
        ]
    );
}

#[test]
fn b1_a_locked_page_is_reported_and_left_alone() {
    let (machine, hypervisor) = qemu();
    machine.set(0x4000_0001, 0x7777_7003);
    let error = hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap_err();
    assert_eq!(
        error,
        EnableError::Locked {
            page: Pfn::new(0x7_7777)
        }
    );
    assert_eq!(machine.take_writes(), []);
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
fn a_failure_leaves_nothing_on() {
    let (machine, hypervisor) = qemu();
    *machine.platform.pages_left.lock().unwrap() = Some(0);
    let error = hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap_err();
    assert_eq!(error, EnableError::OutOfPages(OutOfPages { page_count: 1 }));
    assert_eq!(machine.get(0x4000_0000), 0);
    *machine.platform.pages_left.lock().unwrap() = None;

    machine.stuck.lock().unwrap().push(0x4000_0001);
    let error = hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap_err();
    assert_eq!(error, EnableError::Refused);
    assert_eq!(machine.get(0x4000_0000), 0);
    assert_eq!(machine.platform.pages_in_use(), 0);
    assert!(!hypervisor.has_hypercalls());
}

#[test]
fn without_the_privilege_no_register_is_touched() {
    let mut leaves = QEMU.to_vec();
    leaves[5].1[0] = 0;
    let machine = FakeMachine::leak(&leaves, &[]);
    let hypervisor = machine.hypervisor();
    assert_eq!(
        hypervisor.enable_hypercalls(machine.platform, GuestId::default()),
        Err(EnableError::NotOffered)
    );
    assert_eq!(hypervisor.vp_index(), VpIndex(0));
    assert_eq!(machine.take_events(), []);
}

#[test]
fn a_message_is_posted_from_memory_with_the_rest_zeroed() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    let input = MessageInput::allocate(machine.platform).unwrap();
    let gpa = 0x1_0010_0000;
    machine.take_events();
    // A long one first: nothing of it may be left behind (M13).
    post(hypervisor, &input, 4, 9, &[0xee; 240]).unwrap();
    machine.take_events();
    post(hypervisor, &input, 0x0403_0201, 0x8765_4321, b"hello").unwrap();
    let mut wire = Vec::from(*b"\x01\x02\x03\x04\0\0\0\0\x21\x43\x65\x87\x05\0\0\0hello");
    wire.resize(256, 0);
    assert_eq!(
        machine.take_events(),
        [
            Event::Call {
                control: 0x5c,
                input: gpa,
                output: 0
            },
            Event::Message(wire)
        ]
    );
}

#[test]
fn a_message_too_long_is_refused_before_the_host_sees_it() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    let input = MessageInput::allocate(machine.platform).unwrap();
    machine.take_events();
    assert_eq!(
        post(hypervisor, &input, 1, 1, &[0; 241]),
        Err(HypercallError::TooLong { len: 241 })
    );
    assert_eq!(machine.take_events(), []);
    // The input area is free again.
    post(hypervisor, &input, 1, 1, &[]).unwrap();
}

#[test]
fn an_event_is_signalled_in_registers() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    machine.take_events();
    hypervisor.signal_event(ConnectionId(0x0001_0021), 0x7ff).unwrap();
    assert_eq!(
        machine.take_events(),
        [Event::Call {
            control: 0x1_005d,
            input: 0x7ff_0001_0021,
            output: 0
        }]
    );
}

#[test]
fn m6_each_status_has_its_class() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    let input = MessageInput::allocate(machine.platform).unwrap();
    for status in 0..=u16::MAX {
        if cfg!(miri) && status > 0x80 {
            break;
        }
        // The upper bits of the result are not the status.
        machine
            .results
            .lock()
            .unwrap()
            .push(0xabcd_0000_0000 | u64::from(status));
        machine.events.lock().unwrap().clear();
        let result = post(hypervisor, &input, 1, 1, &[1]);
        let expected = match status {
            0 => Ok(()),
            0x12 => Err(HypercallError::InvalidConnection),
            0x0b | 0x13 | 0x14 | 0x1d | 0x78 => Err(HypercallError::Retry(HypercallStatus(status))),
            _ => Err(HypercallError::Failed(HypercallStatus(status))),
        };
        assert_eq!(result, expected);
        assert_eq!(
            result.is_err_and(HypercallError::is_transient),
            matches!(status, 0x0b | 0x13 | 0x14 | 0x1d | 0x78)
        );
    }
}

#[test]
fn a_status_tells_its_name() {
    assert_eq!(format!("{}", HypercallStatus(0x13)), "INSUFFICIENT_BUFFERS (0x13)");
    assert_eq!(format!("{}", HypercallStatus(0xfffe)), "hypercall status 0xfffe");
}

#[test]
fn openvmm_takes_messages_without_the_privilege_bit() {
    let machine = FakeMachine::leak(OPENVMM, &registers_after_reset());
    let hypervisor = machine.hypervisor();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    let input = MessageInput::allocate(machine.platform).unwrap();
    post(hypervisor, &input, 4, 1, &[]).unwrap();
    assert_eq!(hypervisor.vp_index(), VpIndex(3));
}

#[test]
fn calls_on_one_processor_never_meet_a_page_that_is_turned_off_on_another() {
    let machine = FakeMachine::leak(HYPER_V, &registers_after_reset());
    let hypervisor = machine.hypervisor();
    let rounds = if cfg!(miri) { 5 } else { 300 };
    thread::scope(|scope| {
        for _ in 0..2 {
            // The fake panics on a call into a page that is off or elsewhere.
            scope.spawn(|| {
                for _ in 0..rounds * 20 {
                    let result = hypervisor.signal_event(ConnectionId(1), 0);
                    assert!(matches!(result, Ok(()) | Err(HypercallError::Disabled)), "{result:?}");
                }
            });
        }
        for _ in 0..rounds {
            hypervisor
                .enable_hypercalls(machine.platform, GuestId::default())
                .unwrap();
            hypervisor.disable_hypercalls().unwrap();
        }
    });
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
#[cfg(not(miri))]
fn a_page_with_a_call_in_it_stays_on() {
    use crate::hyperv::CallsInFlight;
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    *machine.on_call.lock().unwrap() = Some(Box::new(|| {
        assert_eq!(hypervisor.disable_hypercalls(), Err(CallsInFlight { count: 1 }));
    }));
    hypervisor.signal_event(ConnectionId(1), 0).unwrap();
    assert_eq!(machine.get(0x4000_0001) & 1, 1);
    hypervisor.signal_event(ConnectionId(1), 0).unwrap();
    hypervisor.disable_hypercalls().unwrap();
    assert_eq!(machine.get(0x4000_0001) & 1, 0);
}

#[test]
fn one_input_area_holds_one_message_at_a_time() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    let input: &'static _ = Box::leak(Box::new(MessageInput::allocate(machine.platform).unwrap()));
    *machine.on_call.lock().unwrap() = Some(Box::new(|| {
        let error = post(hypervisor, input, 1, 2, &[2]).unwrap_err();
        assert_eq!(error, HypercallError::InputInUse);
        assert!(error.is_transient());
    }));
    post(hypervisor, input, 1, 1, &[1]).unwrap();
    post(hypervisor, input, 1, 3, &[3]).unwrap();
}

#[test]
fn c9_the_crash_path_turns_everything_off_and_gives_nothing_back() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    machine.take_events();
    hypervisor.shut_down_in_emergency();
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_0021, 0x1_0010_0006),
            (0x4000_0001, 0x1_0000_00f4),
            (0x4000_0000, 0)
        ]
    );
    assert_eq!(machine.platform.pages_in_use(), 2);
    assert_eq!(
        hypervisor.signal_event(ConnectionId(1), 0),
        Err(HypercallError::Disabled)
    );
    hypervisor.shut_down_in_emergency();
    assert_eq!(machine.take_writes(), []);
}

#[test]
fn c9_the_crash_path_leaves_a_page_on_that_a_call_is_in() {
    let (machine, hypervisor) = qemu();
    hypervisor
        .enable_hypercalls(machine.platform, GuestId::default())
        .unwrap();
    // Another processor's call, as far as the page can tell: it would go on in whatever lies there when the page is gone.
    *machine.on_call.lock().unwrap() = Some(Box::new(|| {
        hypervisor.shut_down_in_emergency();
        assert_eq!(machine.get(0x4000_0001) & 1, 1, "the page was turned off under a call");
        assert_ne!(machine.get(0x4000_0000), 0, "and so it is without a guest's id");
    }));
    hypervisor.signal_event(ConnectionId(1), 0).unwrap();
    assert_eq!(
        hypervisor.signal_event(ConnectionId(1), 0),
        Err(HypercallError::Disabled)
    );
    // Nobody calls any more.
    hypervisor.disable_hypercalls().unwrap();
    assert_eq!((machine.get(0x4000_0001) & 1, machine.get(0x4000_0000)), (0, 0));
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
fn a_machine_has_one_hypercall_page_and_it_has_one_owner() {
    let (machine, first) = qemu();
    let second = machine.hypervisor();
    let enable = |hypervisor: &Hypervisor| hypervisor.enable_hypercalls(machine.platform, GuestId::default());
    enable(first).unwrap();
    // The fake panics on a call into a page that is off or elsewhere, as it would be for the first.
    assert_eq!(enable(second), Err(EnableError::InUse));
    first.signal_event(ConnectionId(1), 0).unwrap();
    second.disable_hypercalls().unwrap();
    first.signal_event(ConnectionId(1), 0).unwrap();
    first.disable_hypercalls().unwrap();

    enable(second).unwrap();
    second.signal_event(ConnectionId(1), 0).unwrap();
    assert_eq!(enable(first), Err(EnableError::InUse));
    // One that fails to turn it on does not keep it.
    second.disable_hypercalls().unwrap();
    *machine.platform.pages_left.lock().unwrap() = Some(0);
    assert_eq!(
        enable(first),
        Err(EnableError::OutOfPages(OutOfPages { page_count: 1 }))
    );
    *machine.platform.pages_left.lock().unwrap() = None;
    enable(second).unwrap();
    // After an emergency another system may begin, and the end of the earlier one takes nothing from it.
    second.shut_down_in_emergency();
    enable(first).unwrap();
    second.disable_hypercalls().unwrap();
    first.signal_event(ConnectionId(1), 0).unwrap();
    first.disable_hypercalls().unwrap();
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
fn a_page_that_an_emergency_has_turned_off_can_be_turned_on_again() {
    let (machine, hypervisor) = qemu();
    let enable = || hypervisor.enable_hypercalls(machine.platform, GuestId::default());
    enable().unwrap();
    hypervisor.shut_down_in_emergency();
    enable().unwrap();
    hypervisor.signal_event(ConnectionId(1), 0).unwrap();
    assert_eq!(machine.platform.pages_in_use(), 1, "the earlier page is given back");
}
