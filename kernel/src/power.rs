//! Power off and reset, in the ways that this machine has.
//!
//! What is to be written where comes from ACPI ([`crate::acpi::fadt`]) and is prepared while there is still time: the end itself,
//! which may be the end of a panic, takes no lock and no memory. A reset that has no effect is followed by the next way: ACPI's reset
//! register, the hypervisor's reset register, a triple fault.

use boot::command_line::ResetWay;
use spin::Once;

use crate::acpi::fadt::Fadt;
use crate::acpi::{self, aml};
use crate::arch::cpu;
use crate::arch::register::PreparedStep;
use crate::console::{Style, print_by_force};
use crate::memory::FirmwareMemory;
use crate::{hyperv, start};

/// Steps that a power-off may take.
const STEPS: usize = 4;
/// Longest AML program that is searched, in bytes.
const LONGEST_PROGRAM: usize = 256 << 10;

#[derive(Default)]
struct Ways {
    off: [Option<PreparedStep>; STEPS],
    reset: Option<PreparedStep>,
}

static WAYS: Once<Ways> = Once::new();

/// Why power off is not possible here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PowerError {
    /// No table.
    #[error("firmware has no FADT")]
    NoTable,
    /// The table is no good.
    #[error(transparent)]
    Table(#[from] acpi::fadt::FadtError),
    /// The DSDT does not say what to write.
    #[error("the DSDT has no sleep type for power off (\\_S5)")]
    NoSleepType,
    /// A register is out of reach.
    #[error("a power-off register cannot be mapped")]
    Unreachable,
}

/// There is no such way to reset this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the machine cannot be reset in this way")]
pub struct ResetRefused;

/// Finds out how this machine is switched off and reset. Context: task, once.
///
/// # Errors
///
/// [`PowerError`] if it cannot be switched off; it may still be reset.
pub fn prepare() -> Result<(), PowerError> {
    let mut ways = Ways::default();
    let result = find(&mut ways);
    WAYS.call_once(|| ways);
    result
}

fn find(ways: &mut Ways) -> Result<(), PowerError> {
    let rsdp = start::info().map_or(0, |info| info.rsdp);
    let table = acpi::find(&FirmwareMemory, rsdp, *b"FACP").ok_or(PowerError::NoTable)?;
    let mut bytes = [0; 276];
    let fadt = Fadt::parse(table.read(&FirmwareMemory, &mut bytes).ok_or(PowerError::NoTable)?)?;
    ways.reset = fadt.reset().and_then(PreparedStep::new);
    let sleep = acpi::Table::at(&FirmwareMemory, fadt.dsdt, *b"DSDT")
        .and_then(|dsdt| dsdt.read_whole(&FirmwareMemory, LONGEST_PROGRAM))
        .and_then(|program| aml::soft_off(&program))
        .ok_or(PowerError::NoSleepType)?;
    for (slot, step) in ways.off.iter_mut().zip(fadt.power_off(sleep)?) {
        *slot = Some(PreparedStep::new(step).ok_or(PowerError::Unreachable)?);
    }
    Ok(())
}

/// Switches the machine off. Returns if that had no effect.
pub fn off() {
    if let Some(ways) = WAYS.get() {
        take(ways.off.iter().flatten());
    }
}

/// Resets the machine: by `first`, or, if that has no effect, by the ways after it.
pub fn reset(first: ResetWay) -> ! {
    if first <= ResetWay::Acpi
        && let Some(step) = WAYS.get().and_then(|ways| ways.reset.as_ref())
    {
        say_reset("ACPI's register");
        take(core::iter::once(step));
    }
    if first <= ResetWay::Hypervisor && hyperv::hypervisor().is_some() {
        say_reset("the hypervisor's register");
        // If it returns, the next way is tried.
        let _refused = hyperv::reset();
    }
    say_reset("a triple fault");
    cpu::triple_fault()
}

/// The last words before a reset: after it nobody can say which way it was that worked.
fn say_reset(way: &str) {
    print_by_force(Style::Dim, format_args!("reset by {way}\n"));
}

#[expect(unsafe_code, reason = "ends the machine")]
fn take<'a>(steps: impl Iterator<Item = &'a PreparedStep>) {
    for step in steps {
        // SAFETY: this is what the FADT says, and the end of the machine is what the caller wants.
        unsafe { step.take() };
    }
    // The host may take a moment.
    let end = crate::time::now_ns().saturating_add(100_000_000);
    while crate::time::now_ns() < end {
        core::hint::spin_loop();
    }
}
