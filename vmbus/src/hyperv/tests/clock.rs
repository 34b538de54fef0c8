//! Reference time from each of its sources.

use std::boxed::Box;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fake::{FakeMachine, HYPER_V, OPENVMM, QEMU, qemu, registers_after_reset};
use crate::Instant;
use crate::hyperv::{ClockSource, Hypervisor, ReferenceTscError};
use crate::platform::OutOfPages;

/// The first block that the fake platform gives.
const PAGE: u64 = 0x1_0000_0000;

fn fill(machine: &FakeMachine, sequence: u32, scale: u64, offset: i64) {
    machine.platform.word64(PAGE + 8).store(scale, Ordering::Relaxed);
    machine
        .platform
        .word64(PAGE + 16)
        .store(offset.cast_unsigned(), Ordering::Relaxed);
    machine.platform.word32(PAGE).store(sequence, Ordering::Release);
}

fn timestamps(machine: &FakeMachine, value: u64) {
    *machine.on_timestamp.lock().unwrap() = Some(Box::new(move |_| value));
}

#[test]
fn b3_the_page_gives_known_values() {
    let (machine, hypervisor) = qemu();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    assert_eq!(
        machine.take_writes(),
        [(0x4000_0021, 0x1_0000_0007)],
        "reserved bits stay"
    );
    for (timestamp, scale, offset, expected) in [
        // 2.5 GHz: 10^7 * 2^64 / 2.5 * 10^9. A second is ten million units but for the rounding of the scale.
        (2_500_000_000, 73_786_976_294_838_206, 0, 9_999_999),
        (2_500_000_001, 73_786_976_294_838_207, 0, 10_000_000),
        (2_500_000_000, 73_786_976_294_838_207, 1_000, 10_001_000),
        (2_500_000_000, 73_786_976_294_838_207, -9_000_000, 1_000_000),
        // The product needs all of its 128 bits.
        (u64::MAX, u64::MAX, 0, u64::MAX - 1),
        (1 << 63, 1 << 63, 5, (1 << 62) + 5),
        (u64::MAX, 2, -1, 0),
        (0, u64::MAX, 42, 42),
    ] {
        fill(machine, 1, scale, offset);
        timestamps(machine, timestamp);
        assert_eq!(
            hypervisor.now(),
            Instant::from_reference_units(expected),
            "{timestamp} {scale} {offset}"
        );
        assert_eq!(hypervisor.clock_source(), ClockSource::ReferencePage);
    }
    assert!(!machine.reads.lock().unwrap().contains(&0x4000_0020), "no exit");
}

#[test]
fn b3_sequence_zero_means_the_counter() {
    let (machine, hypervisor) = qemu();
    assert_eq!(hypervisor.clock_source(), ClockSource::ReferenceCounter);
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    assert_eq!(hypervisor.now(), Instant::from_reference_units(123_456));
    fill(machine, 7, 1 << 63, 0);
    timestamps(machine, 20);
    assert_eq!(hypervisor.now(), Instant::from_reference_units(10));
    // A migration makes the page invalid while we run.
    fill(machine, 0, 1 << 63, 0);
    assert_eq!(hypervisor.now(), Instant::from_reference_units(123_456));
    assert_eq!(
        hypervisor.reference_time(),
        Some(Instant::from_reference_units(123_456))
    );
    assert_eq!(hypervisor.clock_source(), ClockSource::ReferenceCounter);
}

#[test]
fn b3_a_torn_read_is_repeated() {
    let (machine, hypervisor) = qemu();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    fill(machine, 1, 1 << 63, 0);
    // The hypervisor changes the page between our reading of the scale and of the sequence, once.
    let mut is_first = true;
    *machine.on_timestamp.lock().unwrap() = Some(Box::new(move |machine| {
        if std::mem::replace(&mut is_first, false) {
            fill(machine, 2, 1 << 62, 1_000_000);
        }
        400
    }));
    assert_eq!(hypervisor.now(), Instant::from_reference_units(1_000_100));
}

#[test]
fn b3_a_page_that_never_holds_still_ends_in_the_counter() {
    let (machine, hypervisor) = qemu();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    fill(machine, 1, 1 << 63, 0);
    let mut sequence = 1;
    let looks: &'static AtomicU64 = Box::leak(Box::default());
    *machine.on_timestamp.lock().unwrap() = Some(Box::new(move |machine| {
        sequence += 1;
        looks.fetch_add(1, Ordering::Relaxed);
        machine.platform.word32(PAGE).store(sequence, Ordering::Relaxed);
        400
    }));
    assert_eq!(hypervisor.now(), Instant::from_reference_units(123_456));
    assert_eq!(looks.load(Ordering::Relaxed), 16);
}

#[test]
fn b3_the_last_resort_is_the_timestamp_counter_and_its_frequency() {
    // Frequencies (bit 11), but no reference counter (bit 1) and no page (bit 9).
    let mut leaves = HYPER_V.to_vec();
    leaves[5].1[0] = 0x800;
    let machine = FakeMachine::leak(&leaves, &[(0x4000_0022, 2_500_000_000)]);
    let hypervisor = machine.hypervisor();
    timestamps(machine, 25_000_000_000);
    assert_eq!(hypervisor.now(), Instant::from_reference_units(100_000_000));
    assert_eq!(hypervisor.clock_source(), ClockSource::TimestampCounter);
    assert_eq!(hypervisor.reference_time(), None, "its zero is another");
    assert_eq!(hypervisor.tsc_frequency_hz(), Some(2_500_000_000));
    assert_eq!(*machine.reads.lock().unwrap(), [0x4000_0022], "asked once");
    // No multiplication of 64 bits would do.
    timestamps(machine, u64::MAX);
    assert_eq!(hypervisor.now(), Instant::from_reference_units(73_786_976_294_838_206));
}

fn without_any_privilege(basic: &[(u32, [u32; 4])]) -> (&'static FakeMachine, &'static Hypervisor) {
    let mut leaves = HYPER_V.to_vec();
    leaves[5].1[0] = 0;
    leaves.retain(|(leaf, _)| *leaf != 0);
    leaves.extend(basic);
    let machine = FakeMachine::leak(&leaves, &[]);
    (machine, machine.hypervisor())
}

#[test]
fn b3_the_processor_is_asked_when_the_hypervisor_tells_no_frequency() {
    let (machine, hypervisor) = without_any_privilege(&[(0, [0x16, 0, 0, 0]), (0x15, [2, 216, 24_000_000, 0])]);
    timestamps(machine, 2_592_000_000);
    assert_eq!(hypervisor.tsc_frequency_hz(), Some(2_592_000_000));
    assert_eq!(hypervisor.now(), Instant::from_reference_units(10_000_000));

    let base = (0x16, [3_100, 0, 0, 0]);
    let (_, hypervisor) = without_any_privilege(&[(0, [0x16, 0, 0, 0]), (0x15, [2, 216, 0, 0]), base]);
    assert_eq!(hypervisor.tsc_frequency_hz(), Some(3_100_000_000));
    let (_, hypervisor) = without_any_privilege(&[(0, [0x16, 0, 0, 0]), (0x15, [0, 216, 24, 0]), base]);
    assert_eq!(hypervisor.tsc_frequency_hz(), Some(3_100_000_000));
}

#[test]
fn b3_an_unknown_frequency_is_guessed_high_and_said_to_be_unknown() {
    for basic in [
        &[(0, [0xd, 0, 0, 0])][..],
        &[(0, [0x16, 0, 0, 0]), (0x15, [0, 0, 0, 0]), (0x16, [0, 0, 0, 0])],
    ] {
        // Whether the frequency is asked for before the time or after it.
        let (_, hypervisor) = without_any_privilege(basic);
        assert_eq!(hypervisor.tsc_frequency_hz(), None);
        let (machine, hypervisor) = without_any_privilege(basic);
        timestamps(machine, 5_000_000_000);
        assert_eq!(hypervisor.now(), Instant::from_reference_units(10_000_000));
        assert_eq!(hypervisor.tsc_frequency_hz(), None);
        assert_eq!(hypervisor.tsc_frequency_hz(), None);
        assert_eq!(hypervisor.apic_frequency_hz(), None);
    }
}

#[test]
fn b3_a_hypervisor_that_tells_nonsense_does_not_divide_us_by_zero() {
    let mut leaves = OPENVMM.to_vec();
    leaves[5].1[0] = 0x800;
    let machine = FakeMachine::leak(&leaves, &[(0x4000_0022, 0), (0x4000_0023, 0)]);
    let hypervisor = machine.hypervisor();
    timestamps(machine, u64::MAX);
    assert!(hypervisor.now() > Instant::default());
    assert_eq!(hypervisor.tsc_frequency_hz(), None);
    assert_eq!(hypervisor.apic_frequency_hz(), None);
}

#[test]
fn the_apic_frequency_is_told() {
    let machine = FakeMachine::leak(HYPER_V, &registers_after_reset());
    assert_eq!(machine.hypervisor().apic_frequency_hz(), Some(200_000_000));
}

#[test]
fn b3_frequencies_that_may_be_read_but_do_not_exist_are_not_read() {
    let mut leaves = HYPER_V.to_vec();
    leaves[5].1[3] &= !(1 << 8);
    let machine = FakeMachine::leak(&leaves, &registers_after_reset());
    let hypervisor = machine.hypervisor();
    assert_eq!(hypervisor.apic_frequency_hz(), None);
    assert_ne!(
        hypervisor.tsc_frequency_hz(),
        Some(2_500_000_000),
        "the processor is asked"
    );
    assert_eq!(*machine.reads.lock().unwrap(), []);
}

#[test]
fn the_page_is_not_turned_on_where_it_is_not_offered() {
    let machine = FakeMachine::leak(OPENVMM, &registers_after_reset());
    let hypervisor = machine.hypervisor();
    assert_eq!(
        hypervisor.enable_reference_tsc(machine.platform),
        Err(ReferenceTscError::NotOffered)
    );
    assert_eq!(machine.take_writes(), []);
    assert_eq!(hypervisor.clock_source(), ClockSource::ReferenceCounter);
}

#[test]
fn without_a_page_the_counter_goes_on() {
    let (machine, hypervisor) = qemu();
    *machine.platform.pages_left.lock().unwrap() = Some(0);
    assert_eq!(
        hypervisor.enable_reference_tsc(machine.platform),
        Err(ReferenceTscError::OutOfPages(OutOfPages { page_count: 1 }))
    );
    *machine.platform.pages_left.lock().unwrap() = None;
    machine.stuck.lock().unwrap().push(0x4000_0021);
    assert_eq!(
        hypervisor.enable_reference_tsc(machine.platform),
        Err(ReferenceTscError::Refused)
    );
    assert_eq!(machine.platform.pages_in_use(), 0);
    assert_eq!(hypervisor.now(), Instant::from_reference_units(123_456));
    // It may work later.
    machine.stuck.lock().unwrap().clear();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
}

#[test]
fn the_page_goes_off_and_on_and_back_at_the_end() {
    let machine = FakeMachine::leak(QEMU, &registers_after_reset());
    let hypervisor = Hypervisor::detect_on(machine).unwrap();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    assert_eq!(machine.take_writes(), [(0x4000_0021, 0x1_0000_0007)]);
    fill(machine, 1, 1 << 63, 0);
    hypervisor.disable_reference_tsc();
    assert_eq!(machine.take_writes(), [(0x4000_0021, 0x1_0000_0006)]);
    assert_eq!(hypervisor.clock_source(), ClockSource::ReferenceCounter);
    hypervisor.enable_reference_tsc(machine.platform).unwrap();
    assert_eq!(machine.take_writes(), [(0x4000_0021, 0x1_0000_0007)]);
    assert_eq!(hypervisor.clock_source(), ClockSource::ReferencePage);
    assert_eq!(machine.platform.pages_in_use(), 1);
    drop(hypervisor);
    assert_eq!(machine.take_writes(), [(0x4000_0021, 0x1_0000_0006)]);
    assert_eq!(machine.platform.pages_in_use(), 0);
}

#[test]
fn b3_a_frequency_that_is_told_stays_told_also_if_it_is_the_one_that_would_be_assumed() {
    let machine = FakeMachine::leak(HYPER_V, &registers_after_reset());
    machine.set(0x4000_0022, 5_000_000_000);
    let hypervisor = machine.hypervisor();
    assert_eq!(hypervisor.tsc_frequency_hz(), Some(5_000_000_000));
    assert_eq!(hypervisor.tsc_frequency_hz(), Some(5_000_000_000));
}
