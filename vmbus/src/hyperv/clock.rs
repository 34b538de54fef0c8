//! The hypervisor's reference time: [`Clock`].
//!
//! Source: TLFS, "Timers", "Partition Reference Time Stamp Counter Page".

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use super::cpuid::{Capabilities, Privileges};
use super::machine::Machine;
use super::overlay::{Overlay, OverlayError, Scope};
use super::registers::{PageRegister, Register, Registers};
use crate::memory::{OutOfRange, SharedPages};
use crate::platform::{NotMapped, OutOfPages, PageUse};
use crate::{Instant, Platform};

/// `HV_REFERENCE_TSC_PAGE`: where its fields are.
const SEQUENCE: usize = 0;
const SCALE: usize = 8;
const OFFSET: usize = 16;
/// The sequence that means: the page does not hold, read the counter.
const SEQUENCE_INVALID: u32 = 0;
/// How often to read a page that changes under our hands.
const TRIES: u32 = 16;
/// The reference time's units in a second.
const UNITS_PER_SECOND: u64 = 10_000_000;
/// Taken for the TSC's frequency where nothing tells it. Faster than it is likely to be, so that no wait ends early.
const ASSUMED_TSC_HZ: u64 = 5_000_000_000;
/// A TSC slower than this is no TSC of an x86-64 processor.
const LEAST_TSC_HZ: u64 = 1_000_000;
/// Stands for a frequency that was asked for and that nobody tells.
const NOT_TOLD: u64 = u64::MAX;

/// Where the time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClockSource {
    /// The reference TSC page: no exit to the hypervisor.
    ReferencePage,
    /// The reference counter register: an exit at each look.
    ReferenceCounter,
    /// The TSC, scaled by its frequency. Its zero is the TSC's.
    TimestampCounter,
}

/// Why the reference TSC page could not be turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceTscError {
    /// The hypervisor does not offer it.
    #[error("the hypervisor offers no reference TSC page")]
    NotOffered,
    /// The platform has no page.
    #[error(transparent)]
    OutOfPages(#[from] OutOfPages),
    /// The platform does not know its own page.
    #[error(transparent)]
    NotMapped(#[from] NotMapped),
    /// The hypervisor did not turn the page on.
    #[error("the hypervisor did not turn the reference TSC page on")]
    Refused,
}

impl From<OverlayError> for ReferenceTscError {
    fn from(error: OverlayError) -> Self {
        match error {
            OverlayError::OutOfPages(error) => Self::OutOfPages(error),
            OverlayError::NotMapped(error) => Self::NotMapped(error),
            OverlayError::Refused => Self::Refused,
        }
    }
}

/// The clock.
#[derive(Debug)]
pub(super) struct Clock {
    /// Once on, the page stays until the hypervisor object is gone: readers take no lock and count nothing.
    page: spin::Once<Overlay>,
    /// The frequency of the TSC, asked for at the first need; 0: not yet.
    tsc_hz: AtomicU64,
    has_counter: bool,
    has_frequencies: bool,
    is_page_enabled: AtomicBool,
}

impl Clock {
    pub(super) const fn new(capabilities: &Capabilities) -> Self {
        Self {
            page: spin::Once::new(),
            tsc_hz: AtomicU64::new(0),
            has_counter: capabilities.privileges.contains(Privileges::REFERENCE_COUNTER),
            has_frequencies: capabilities.has_frequency_registers(),
            is_page_enabled: AtomicBool::new(false),
        }
    }

    pub(super) fn enable_page(
        &self,
        registers: Registers,
        platform: &'static dyn Platform,
    ) -> Result<(), ReferenceTscError> {
        let register = PageRegister::REFERENCE_TSC;
        let page = self
            .page
            .try_call_once(|| Overlay::enable(registers, register, Scope::Machine, platform, PageUse::Data))?;
        if !page.turn_on(registers) {
            return Err(ReferenceTscError::Refused);
        }
        // Release: pairs with the acquire in `now`.
        self.is_page_enabled.store(true, Ordering::Release);
        Ok(())
    }

    /// Turns the page off and keeps it: a reader that is in it finds zeros, and so an invalid sequence.
    pub(super) fn disable_page(&self, registers: Registers) {
        if self.is_page_enabled.swap(false, Ordering::AcqRel)
            && let Some(page) = self.page.get()
        {
            page.turn_off(registers);
        }
    }

    /// Turns the page off and gives it back. Nobody else can be reading it: the caller has the only reference.
    pub(super) fn shut_down(&mut self, registers: Registers) {
        *self.is_page_enabled.get_mut() = false;
        if let Some(page) = core::mem::take(&mut self.page).try_into_inner() {
            page.disable(registers);
        }
    }

    pub(super) fn now(&self, machine: &'static dyn Machine) -> (Instant, ClockSource) {
        if let Some(reference) = self.reference_time(machine) {
            return reference;
        }
        let (tsc_hz, _) = self.tsc_frequency(machine);
        let units = scale_by_frequency(machine.timestamp(), tsc_hz);
        (Instant::from_reference_units(units), ClockSource::TimestampCounter)
    }

    /// The partition's reference time, by the page or else by the counter: both count from the same zero.
    pub(super) fn reference_time(&self, machine: &'static dyn Machine) -> Option<(Instant, ClockSource)> {
        if let Some(units) = self.page_time(machine) {
            return Some((Instant::from_reference_units(units), ClockSource::ReferencePage));
        }
        if self.has_counter {
            let units = Registers::of(machine).read(Register::TIME_REF_COUNT);
            return Some((Instant::from_reference_units(units), ClockSource::ReferenceCounter));
        }
        None
    }

    fn page_time(&self, machine: &'static dyn Machine) -> Option<u64> {
        if !self.is_page_enabled.load(Ordering::Acquire) {
            return None;
        }
        // The words lie inside the page, so reading cannot fail; were it otherwise, the counter is there.
        read_page(self.page.get()?.pages(), machine).ok().flatten()
    }

    /// Returns the TSC's frequency in hertz, and true if somebody told it (false: it is assumed).
    pub(super) fn tsc_frequency(&self, machine: &'static dyn Machine) -> (u64, bool) {
        match self.tsc_hz.load(Ordering::Relaxed) {
            0 => {}
            NOT_TOLD => return (ASSUMED_TSC_HZ, false),
            told => return (told, true),
        }
        let told = self
            .has_frequencies
            .then(|| Registers::of(machine).read(Register::TSC_FREQUENCY))
            .filter(|hz| (LEAST_TSC_HZ..NOT_TOLD).contains(hz))
            .or_else(|| frequency_from_cpuid(machine));
        // Relaxed: every processor that comes here finds the same.
        self.tsc_hz.store(told.unwrap_or(NOT_TOLD), Ordering::Relaxed);
        (told.unwrap_or(ASSUMED_TSC_HZ), told.is_some())
    }
}

/// Reads the time by the page: `None` if the page does not hold, or changed each time we looked.
fn read_page(page: &SharedPages, machine: &'static dyn Machine) -> Result<Option<u64>, OutOfRange> {
    let sequence_word = page.word::<AtomicU32>(SEQUENCE)?;
    let scale_word = page.word::<AtomicU64>(SCALE)?;
    let offset_word = page.word::<AtomicU64>(OFFSET)?;
    for _ in 0..TRIES {
        // Acquire: pairs with the hypervisor's order: sequence last.
        let sequence = sequence_word.load(Ordering::Acquire);
        if sequence == SEQUENCE_INVALID {
            return Ok(None);
        }
        let scale = scale_word.load(Ordering::Relaxed);
        let offset = offset_word.load(Ordering::Relaxed);
        let timestamp = machine.timestamp();
        // The reads above are done before the sequence is read again.
        fence(Ordering::Acquire);
        if sequence_word.load(Ordering::Relaxed) == sequence {
            return Ok(Some(reference_time(timestamp, scale, offset)));
        }
    }
    Ok(None)
}

/// `((timestamp * scale) >> 64) + offset`, where the product has 128 bits and the offset is signed.
const fn reference_time(timestamp: u64, scale: u64, offset: u64) -> u64 {
    let scaled = ((timestamp as u128).wrapping_mul(scale as u128) >> 64) as u64;
    // Two's complement: adding a negative offset and wrapping is subtracting.
    scaled.wrapping_add(offset)
}

/// Turns ticks of a counter into units of 100 ns; the last representable instant if there are too many.
fn scale_by_frequency(timestamp: u64, hz: u64) -> u64 {
    let units = u128::from(timestamp)
        .wrapping_mul(u128::from(UNITS_PER_SECOND))
        .checked_div(u128::from(hz.max(1)))
        .unwrap_or(u128::MAX);
    u64::try_from(units).unwrap_or(u64::MAX)
}

/// Asks the processor: leaf 0x15 (ratio and crystal), or the base frequency of leaf 0x16.
fn frequency_from_cpuid(machine: &'static dyn Machine) -> Option<u64> {
    let max_leaf = machine.cpuid(0, 0).eax;
    if max_leaf >= 0x15 {
        let ratio = machine.cpuid(0x15, 0);
        let product = u64::from(ratio.ecx).wrapping_mul(u64::from(ratio.ebx));
        if let Some(hz) = product
            .checked_div(u64::from(ratio.eax))
            .filter(|hz| *hz >= LEAST_TSC_HZ)
        {
            return Some(hz);
        }
    }
    if max_leaf >= 0x16 {
        let base_mhz = machine.cpuid(0x16, 0).eax & 0xffff;
        return Some(u64::from(base_mhz) * 1_000_000).filter(|hz| *hz >= LEAST_TSC_HZ);
    }
    None
}
