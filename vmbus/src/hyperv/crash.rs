//! The crash report: what the host writes to its log when this system ends in a panic.
//!
//! Source: TLFS, "Guest Crash Enlightenment". Some hosts end or pause the machine at the last write.

use super::cpuid::Features;
use super::hypervisor::{Hypervisor, NotOffered};
use super::registers::Register;
use crate::memory::Gpa;

/// The host can be told of a crash.
const CRASH_NOTIFY: u64 = 1 << 63;
/// The host can be given a text as well.
const CRASH_MESSAGE: u64 = 1 << 62;

/// A text for the host's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashMessage {
    /// Where it is; it does not cross a page.
    pub gpa: Gpa,
    /// How long it is.
    pub len_bytes: u32,
}

impl Hypervisor {
    /// Returns true if the host takes a text with a crash report. One register read. Context: any.
    #[must_use]
    pub fn takes_crash_message(&self) -> bool {
        self.capabilities().features.contains(Features::CRASH_REGISTERS)
            && self.registers().read(Register::CRASH_CTL) & CRASH_MESSAGE != 0
    }

    /// Reports a crash to the host: five numbers of the caller's choice and a text. The last act of a system: the host
    /// may end the machine here. Context: any; takes no lock and allocates nothing.
    ///
    /// Where the host takes a text and there is one, its place and length stand in the last two numbers, as the
    /// interface has it.
    ///
    /// # Errors
    ///
    /// [`NotOffered`] if the host does not take crash reports; nothing was written then.
    pub fn report_crash(&self, parameters: [u64; 5], message: Option<CrashMessage>) -> Result<(), NotOffered> {
        const REFUSAL: NotOffered = NotOffered { what: "crash report" };
        if !self.capabilities().features.contains(Features::CRASH_REGISTERS) {
            return Err(REFUSAL);
        }
        let registers = self.registers();
        // Read, the register says what may be written to it.
        let offered = registers.read(Register::CRASH_CTL);
        if offered & CRASH_NOTIFY == 0 {
            return Err(REFUSAL);
        }
        let [first, second, third, mut fourth, mut fifth] = parameters;
        let mut control = CRASH_NOTIFY;
        if let Some(message) = message
            && offered & CRASH_MESSAGE != 0
        {
            fourth = message.gpa.get();
            fifth = u64::from(message.len_bytes);
            control |= CRASH_MESSAGE;
        }
        for (number, value) in (0..).zip([first, second, third, fourth, fifth]) {
            registers.write(Register::crash_parameter(number), value);
        }
        registers.write(Register::CRASH_CTL, control);
        Ok(())
    }
}
