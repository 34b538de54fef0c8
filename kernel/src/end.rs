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

/// Ends the machine in the way that the command line asks for; where it asks for nothing, as [`Last::of`] has it.
pub(crate) fn machine(outcome: Outcome) -> ! {
    let last = Last::of(crate::start::options().exit, outcome);
    if last == Last::Qemu {
        port::qemu_debug_exit(outcome as u32);
    }
    match last {
        Last::Reset(way) => crate::power::reset(way),
        Last::Halt => {}
        Last::Stay => print_by_force(
            Style::Plain,
            format_args!("The machine stays on, so that this can be read; exit=poweroff or exit=reset would end it.\n"),
        ),
        Last::Qemu | Last::Off => {
            crate::power::off();
            print_by_force(Style::Plain, format_args!("The machine can be switched off now.\n"));
        }
    }
    cpu::halt_forever()
}

/// The last that happens to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// QEMU's `isa-debug-exit`; if that is not there, power off.
    Qemu,
    /// Power off, or as near to it as this machine comes.
    Off,
    /// A reset.
    Reset(ResetWay),
    /// It halts, without a word.
    Halt,
    /// It halts, and what it has said stays on the screen.
    Stay,
}

impl Last {
    /// Decides by the command line, and without a wish there by the outcome: after a failure the framebuffer, which is all that a user
    /// of a Gen2 machine has, would go dark with the machine, and the reason with it.
    const fn of(exit: Option<Exit>, outcome: Outcome) -> Self {
        match (exit, outcome) {
            (Some(Exit::Qemu), _) => Self::Qemu,
            (Some(Exit::Reset(way)), _) => Self::Reset(way),
            (Some(Exit::Halt), _) => Self::Halt,
            (Some(Exit::PowerOff), _) | (None, Outcome::Pass) => Self::Off,
            (None, Outcome::Fail | Outcome::Panic | Outcome::NoHyperV) => Self::Stay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b4_without_a_wish_the_text_of_a_failure_stays_on_the_screen() {
        for outcome in [Outcome::Fail, Outcome::Panic, Outcome::NoHyperV] {
            assert_eq!(Last::of(None, outcome), Last::Stay, "{outcome:?}");
            assert_eq!(Last::of(Some(Exit::PowerOff), outcome), Last::Off, "{outcome:?}");
        }
        assert_eq!(Last::of(None, Outcome::Pass), Last::Off);
        let fault = ResetWay::Fault;
        assert_eq!(Last::of(Some(Exit::Reset(fault)), Outcome::Panic), Last::Reset(fault));
        assert_eq!(Last::of(Some(Exit::Qemu), Outcome::Panic), Last::Qemu);
        assert_eq!(Last::of(Some(Exit::Halt), Outcome::Pass), Last::Halt);
    }
}
