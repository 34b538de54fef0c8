//! The panic: first what people see, then the bus, last what the host sees, then the end of the machine.
//!
//! 1. Interrupts off. The console: where, why, in which context, a backtrace; the verdict line.
//! 2. The bus is unloaded by a hook that takes no lock and no memory: [`set_emergency_unload`].
//! 3. The host is told through its crash registers: [`set_crash_report`]. Last, because a host may end the machine at that write.
//! 4. The end, as the command line asks for.
//!
//! A panic in one of these steps goes on with the last two: what failed is not tried again, and neither is what comes between. A
//! panic in these ends the machine at once.

use crate::arch::backtrace::Backtrace;
use crate::arch::interrupts::{self, Frame};
use crate::arch::{cpu, exceptions};
use crate::console::{Style, print_by_force};
use crate::end::{self, Outcome};
use crate::task;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Once;

/// What the host is told, as numbers and as text.
#[derive(Debug, Clone, Copy)]
pub struct CrashReport<'a> {
    /// What kind of end: [`CRASH_PANIC`] or [`CRASH_EXCEPTION`] plus the vector.
    pub code: u64,
    /// Instruction address: of the exception, or of the caller of the panic.
    pub instruction: u64,
    /// Stack pointer or frame pointer.
    pub stack: u64,
    /// The address of a page fault, else 0.
    pub address: u64,
    /// 0: task, 1: deferred work, 2: interrupt.
    pub context: u64,
    /// The message, cut to what fits.
    pub message: &'a [u8],
}

/// [`CrashReport::code`] of a panic: "PANIC" in ASCII.
pub const CRASH_PANIC: u64 = 0x50_414e_4943;

/// [`CrashReport::code`] of an exception: "EXC" in ASCII, then a byte with the vector.
pub const CRASH_EXCEPTION: u64 = 0x4558_4300;

/// Longest message that is told to the host.
const MESSAGE: usize = 512;

static STEP: AtomicU32 = AtomicU32::new(0);
static EMERGENCY_UNLOAD: Once<fn()> = Once::new();
static CRASH_REPORT: Once<fn(&CrashReport<'_>)> = Once::new();

/// Tells how the bus is unloaded without locks and memory.
pub fn set_emergency_unload(unload: fn()) {
    EMERGENCY_UNLOAD.call_once(|| unload);
}

/// Tells how the host is told of a crash.
pub fn set_crash_report(report: fn(&CrashReport<'_>)) {
    CRASH_REPORT.call_once(|| report);
}

/// Whether the kernel is panicking.
#[must_use]
pub fn is_panicking() -> bool {
    STEP.load(Ordering::Relaxed) != 0
}

/// Text of limited length.
struct Message {
    bytes: [u8; MESSAGE],
    used: usize,
}

impl Message {
    fn of(text: impl fmt::Display) -> Self {
        let mut message = Self {
            bytes: [0; MESSAGE],
            used: 0,
        };
        // It is cut where it does not fit.
        let _ = write!(message, "{text}");
        message
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or(&[])
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            *self.bytes.get_mut(self.used).ok_or(fmt::Error)? = byte;
            self.used += 1;
        }
        Ok(())
    }
}

const fn context_number(in_interrupt: bool, in_deferred: bool) -> u64 {
    match (in_interrupt, in_deferred) {
        (true, _) => 2,
        (false, true) => 1,
        (false, false) => 0,
    }
}

/// An exception that the kernel does not survive; it has been told on the console already.
pub(crate) fn exception(frame: &Frame, address: u64) -> ! {
    let report = CrashReport {
        code: CRASH_EXCEPTION + frame.vector,
        instruction: frame.rip,
        stack: frame.rsp,
        address,
        context: 0,
        message: &[],
    };
    die(
        &report,
        format_args!(
            "exception {} ({}) at {:#x}",
            frame.vector,
            exceptions::name(frame.vector),
            frame.rip
        ),
        None,
    )
}

/// The panic handler.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let trace = Backtrace::here();
    let caller = trace.addresses().first().copied().unwrap_or(0);
    let report = CrashReport {
        code: CRASH_PANIC,
        instruction: caller,
        stack: 0,
        address: 0,
        context: 0,
        message: &[],
    };
    match info.location() {
        Some(place) => {
            die(
                &report,
                format_args!("{} at {}:{}", info.message(), place.file(), place.line()),
                Some(&trace),
            );
        }
        None => die(&report, format_args!("{}", info.message()), Some(&trace)),
    }
}

fn die(report: &CrashReport<'_>, what: fmt::Arguments<'_>, trace: Option<&Backtrace>) -> ! {
    cpu::disable_interrupts();
    let step = STEP.fetch_add(1, Ordering::Relaxed);
    match step {
        0 => {
            let context = context_number(interrupts::in_interrupt(), task::deferred::is_running());
            let place = ["task", "deferred work during task", "interrupt during task"];
            let place = place.get(usize::try_from(context).unwrap_or(0)).copied().unwrap_or("?");
            let name = task::current_name();
            print_by_force(Style::Error, format_args!("\nPANIC in {place} \"{name}\": {what}\n"));
            if let Some(trace) = trace {
                print_by_force(Style::Error, format_args!("  backtrace:{trace}\n"));
            }
            end::say_verdict(Outcome::Panic, "panic");
            let message = Message::of(what);
            tell_host(&CrashReport {
                context,
                message: message.as_bytes(),
                ..*report
            })
        }
        // The panic came from the console, from the unload hook, or from the report to the host: what is left is the end.
        1..=3 => {
            print_by_force(Style::Error, format_args!("\nPANIC during a panic: {what}\n"));
            end_after_failed_panic()
        }
        _ => end::machine(Outcome::Panic),
    }
}

fn tell_host(report: &CrashReport<'_>) -> ! {
    if let Some(unload) = EMERGENCY_UNLOAD.get() {
        unload();
    }
    if let Some(tell) = CRASH_REPORT.get() {
        tell(report);
    }
    end::machine(Outcome::Panic)
}

/// A panic's own report failed. The host is still told, once.
pub(crate) fn end_after_failed_panic() -> ! {
    if STEP.fetch_add(2, Ordering::Relaxed) < 4
        && let Some(tell) = CRASH_REPORT.get()
    {
        let report = CrashReport {
            code: CRASH_PANIC,
            instruction: 0,
            stack: 0,
            address: 0,
            context: 0,
            message: b"panic during a panic",
        };
        tell(&report);
    }
    end::machine(Outcome::Panic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut() {
        assert_eq!(Message::of("short").as_bytes(), b"short");
        assert_eq!(Message::of("x".repeat(1000)).as_bytes(), "x".repeat(MESSAGE).as_bytes());
    }

    #[test]
    fn contexts_are_numbered() {
        assert_eq!(
            [
                context_number(false, false),
                context_number(false, true),
                context_number(true, true)
            ],
            [0, 1, 2]
        );
    }
}
