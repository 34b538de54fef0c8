//! The end of the machine: verdict, exit status, power off, halt.

use crate::arch::{cpu, port};
use crate::console::{Style, print_by_force};
use boot::command_line::{Exit, ResetWay};
use spin::Once;

/// How it ended. The numbers are what `isa-debug-exit` gets; QEMU's status is then `number << 1 | 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// All that was asked for was done.
    Pass = 0x10,
    /// Something that was asked for failed.
    Fail = 0x11,
    /// The kernel panicked.
    Panic = 0x12,
    /// There is no Hyper-V here, and the kernel has said what it found instead.
    NoHyperV = 0x13,
}

static LEAVE: Once<fn()> = Once::new();

/// Tells what is to be given back to the host before an orderly end: the bus, interrupts, the hypercall page.
pub fn set_leave(leave: fn()) {
    LEAVE.call_once(|| leave);
}

/// Says the verdict, leaves the host in order and ends the machine.
pub fn finish(outcome: Outcome, reason: &str) -> ! {
    if let Some(leave) = LEAVE.get() {
        leave();
    }
    say_verdict(outcome, reason);
    machine(outcome)
}

/// Leaves the host in order and starts the machine anew.
pub fn restart() -> ! {
    if let Some(leave) = LEAVE.get() {
        leave();
    }
    crate::power::reset(ResetWay::Acpi)
}

/// Says the verdict: the last line for machines.
pub(crate) fn say_verdict(outcome: Outcome, reason: &str) {
    match outcome {
        Outcome::Pass => print_by_force(Style::Plain, format_args!("@@ verdict pass\n")),
        Outcome::NoHyperV => print_by_force(Style::Plain, format_args!("@@ verdict fail no-hyper-v\n")),
        Outcome::Fail | Outcome::Panic => print_by_force(Style::Plain, format_args!("@@ verdict fail {reason}\n")),
    }
}

/// Ends the machine in the way that the command line asks for, by default by power off where that is known.
pub(crate) fn machine(outcome: Outcome) -> ! {
    let exit = crate::start::options().exit;
    if exit == Some(Exit::Qemu) {
        port::qemu_debug_exit(outcome as u32);
    }
    match exit {
        Some(Exit::Reset(way)) => crate::power::reset(way),
        Some(Exit::Halt) => {}
        _ => {
            crate::power::off();
            print_by_force(Style::Plain, format_args!("The machine can be switched off now.\n"));
        }
    }
    cpu::halt_forever()
}
