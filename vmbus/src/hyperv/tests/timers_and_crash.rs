//! Synthetic timers, the crash report, and the reset.

use std::format;

use super::fake::{FakeMachine, HYPER_V, OPENVMM, QEMU, qemu, registers_after_reset};
use crate::Instant;
use crate::hyperv::{CrashMessage, Hypervisor, NotOffered, Timer, TimerDelivery, TimerError};
use crate::memory::Gpa;

const NOTIFY: u64 = 1 << 63;
const MESSAGE: u64 = 1 << 62;

#[test]
fn a_timer_with_an_interrupt_of_its_own_goes_off_once_per_setting() {
    let machine = FakeMachine::leak(HYPER_V, &registers_after_reset());
    let timer = Timer::enable(machine.hypervisor(), 1, TimerDelivery::Direct { vector: 0x51 }).unwrap();
    // Off before its configuration changes; direct (bit 12), vector, enabled by the count (bit 3), not periodic.
    assert_eq!(
        machine.take_writes(),
        [(0x4000_00b2, 0), (0x4000_00b3, 0), (0x4000_00b2, 0x1518)]
    );
    timer.set(Instant::from_reference_units(987_654_321));
    timer.set(Instant::from_reference_units(0));
    timer.cancel();
    assert_eq!(
        machine.take_writes(),
        [(0x4000_00b3, 987_654_321), (0x4000_00b3, 1), (0x4000_00b3, 0)],
        "the past is at once, not never"
    );
    timer.disable();
    assert_eq!(machine.take_writes(), [(0x4000_00b3, 0), (0x4000_00b2, 0)]);
}

#[test]
fn a_timer_in_message_mode_names_its_source() {
    let machine = FakeMachine::leak(OPENVMM, &registers_after_reset());
    let timer = Timer::enable(machine.hypervisor(), 0, TimerDelivery::Message { sint: 4 }).unwrap();
    assert_eq!(
        machine.take_writes(),
        [(0x4000_00b0, 0), (0x4000_00b1, 0), (0x4000_00b0, 0x4_0008)]
    );
    timer.disable();
}

#[test]
fn a_timer_that_cannot_be_is_refused_before_any_register_is_touched() {
    let (machine, qemu) = qemu();
    let direct = TimerDelivery::Direct { vector: 0x51 };
    assert_eq!(Timer::enable(qemu, 0, direct).unwrap_err(), TimerError::NoDirectMode);
    let message = TimerDelivery::Message { sint: 2 };
    assert_eq!(Timer::enable(qemu, 4, message).unwrap_err(), TimerError::NoSuchTimer(4));
    for sint in [0, 16] {
        let bad = TimerDelivery::Message { sint };
        assert_eq!(Timer::enable(qemu, 0, bad).unwrap_err(), TimerError::BadDelivery(bad));
    }
    assert_eq!(machine.take_writes(), []);

    let hyper_v = FakeMachine::leak(HYPER_V, &registers_after_reset());
    let bad = TimerDelivery::Direct { vector: 31 };
    let error = Timer::enable(hyper_v.hypervisor(), 0, bad).unwrap_err();
    assert_eq!(error, TimerError::BadDelivery(bad));
    assert_eq!(hyper_v.take_writes(), []);

    let mut leaves = QEMU.to_vec();
    leaves[5].1[0] &= !8;
    let machine = FakeMachine::leak(&leaves, &[]);
    let error = Timer::enable(machine.hypervisor(), 0, message).unwrap_err();
    assert_eq!(error, TimerError::NotOffered);
    // And silencing the processor does not touch what is not there.
    let mut leaves = QEMU.to_vec();
    leaves[5].1[0] &= !0xc;
    let machine = FakeMachine::leak(&leaves, &[]);
    machine.hypervisor().silence_processor();
}

fn crash_machine(control: u64) -> (&'static FakeMachine, &'static Hypervisor) {
    let (machine, hypervisor) = qemu();
    for parameter in 0x100..0x105 {
        machine.set(0x4000_0000 + parameter, 0);
    }
    machine.set(0x4000_0105, control);
    (machine, hypervisor)
}

const TEXT: Option<CrashMessage> = Some(CrashMessage {
    gpa: Gpa::new(0x12_3000),
    len_bytes: 77,
});

#[test]
fn c9_the_crash_report_ends_with_the_control_register() {
    let (machine, hypervisor) = crash_machine(NOTIFY | MESSAGE);
    hypervisor.report_crash([1, 2, 3, 4, 5], TEXT).unwrap();
    assert_eq!(
        machine.take_writes(),
        [
            (0x4000_0100, 1),
            (0x4000_0101, 2),
            (0x4000_0102, 3),
            (0x4000_0103, 0x12_3000),
            (0x4000_0104, 77),
            (0x4000_0105, NOTIFY | MESSAGE),
        ]
    );
}

#[test]
fn c9_without_a_text_all_five_numbers_are_the_callers() {
    for (control, text) in [(NOTIFY, TEXT), (NOTIFY | MESSAGE, None), (NOTIFY, None)] {
        let (machine, hypervisor) = crash_machine(control);
        hypervisor.report_crash([1, 2, 3, 4, 5], text).unwrap();
        let writes = machine.take_writes();
        assert_eq!(writes[3..], [(0x4000_0103, 4), (0x4000_0104, 5), (0x4000_0105, NOTIFY)]);
    }
}

#[test]
fn c9_a_host_that_takes_no_report_gets_none() {
    let refusal = Err(NotOffered { what: "crash report" });
    let (machine, hypervisor) = crash_machine(MESSAGE);
    assert_eq!(hypervisor.report_crash([0; 5], TEXT), refusal);
    assert_eq!(machine.take_writes(), []);

    // Without the feature bit, the control register is not even read.
    let mut leaves = QEMU.to_vec();
    leaves[5].1[3] = 0;
    let machine = FakeMachine::leak(&leaves, &[]);
    assert_eq!(machine.hypervisor().report_crash([0; 5], None), refusal);
}

#[test]
fn the_machine_is_reset_where_that_is_possible() {
    let mut leaves = QEMU.to_vec();
    leaves[5].1[0] |= 0x80;
    let machine = FakeMachine::leak(&leaves, &[(0x4000_0003, 0)]);
    let refusal = machine.hypervisor().reset().unwrap_err();
    assert_eq!(machine.take_writes(), [(0x4000_0003, 1)]);
    assert_eq!(format!("{refusal}"), "the hypervisor does not offer this: reset");

    let (machine, hypervisor) = qemu();
    assert!(hypervisor.reset().is_err());
    assert_eq!(machine.take_writes(), []);
}
