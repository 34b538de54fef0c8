//! Exceptions, told so that a person can read them.

use super::backtrace::Backtrace;
use super::interrupts::Frame;
use crate::console::{Style, print_by_force, print_if_free};
use core::fmt;

/// The names of the exceptions (Intel SDM volume 3, table 6-1; AMD APM volume 2, chapter 8).
const NAMES: [&str; 32] = [
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "device not available",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack segment fault",
    "general protection fault",
    "page fault",
    "reserved (15)",
    "x87 floating point error",
    "alignment check",
    "machine check",
    "SIMD floating point error",
    "virtualization",
    "control protection",
    "reserved (22)",
    "reserved (23)",
    "reserved (24)",
    "reserved (25)",
    "reserved (26)",
    "reserved (27)",
    "hypervisor injection",
    "VMM communication",
    "security",
    "reserved (31)",
];

/// The name of an exception.
#[must_use]
pub fn name(vector: u64) -> &'static str {
    usize::try_from(vector)
        .ok()
        .and_then(|vector| NAMES.get(vector).copied())
        .unwrap_or("unknown exception")
}

/// An error code, decoded as the vector says.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode {
    /// The exception.
    pub vector: u64,
    /// What the processor pushed.
    pub code: u64,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |number: u32| self.code & 1 << number != 0;
        match self.vector {
            14 => {
                f.write_str(if bit(4) {
                    "execution of"
                } else if bit(1) {
                    "write to"
                } else {
                    "read of"
                })?;
                f.write_str(if bit(3) {
                    " a page with reserved bits set"
                } else if bit(0) {
                    " a page that does not allow it"
                } else {
                    " a page that is not mapped"
                })
            }
            10..=13 if self.code != 0 => {
                let table = match self.code >> 1 & 3 {
                    0 => "GDT",
                    2 => "LDT",
                    _ => "IDT",
                };
                write!(f, "{table} entry {}", self.code >> 3 & 0x1fff)
            }
            _ => write!(f, "error code {:#x}", self.code),
        }
    }
}

/// A report about an exception.
struct Report<'a> {
    frame: &'a Frame,
    address: Option<u64>,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.frame;
        let code = ErrorCode {
            vector: frame.vector,
            code: frame.error_code,
        };
        writeln!(
            f,
            "EXCEPTION {}: {} at {:#x}",
            frame.vector,
            name(frame.vector),
            frame.rip
        )?;
        match self.address {
            Some(address) => writeln!(f, "  {code}, address {address:#x}")?,
            None => writeln!(f, "  {code}")?,
        }
        let rows = [
            [
                ("rax", frame.rax),
                ("rbx", frame.rbx),
                ("rcx", frame.rcx),
                ("rdx", frame.rdx),
            ],
            [
                ("rsi", frame.rsi),
                ("rdi", frame.rdi),
                ("rbp", frame.rbp),
                ("rsp", frame.rsp),
            ],
            [
                ("r8 ", frame.r8),
                ("r9 ", frame.r9),
                ("r10", frame.r10),
                ("r11", frame.r11),
            ],
            [
                ("r12", frame.r12),
                ("r13", frame.r13),
                ("r14", frame.r14),
                ("r15", frame.r15),
            ],
        ];
        for row in rows {
            for (name, value) in row {
                write!(f, "  {name} {value:016x}")?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "  cs {:#x}  ss {:#x}  rflags {:#x}",
            frame.cs, frame.ss, frame.rflags
        )
    }
}

/// Tells of an exception and ends in a panic; a breakpoint is told and passed over.
pub fn handle(frame: &Frame) {
    let address = (frame.vector == 14).then(fault_address);
    let report = Report { frame, address };
    if frame.vector == 3 {
        // Not by force: whoever was interrupted goes on, and may hold the consoles. Then nothing is said.
        print_if_free(Style::Warning, format_args!("{report}"));
        return;
    }
    if crate::panic::is_panicking() {
        // The panic's own report failed. One line, and the end.
        print_by_force(
            Style::Error,
            format_args!(
                "\nEXCEPTION {} ({}) at {:#x} during a panic\n",
                frame.vector,
                name(frame.vector),
                frame.rip
            ),
        );
        crate::panic::end_after_failed_panic();
    }
    print_by_force(
        Style::Error,
        format_args!(
            "\n{report}  backtrace: {:#x}{}\n",
            frame.rip,
            Backtrace::from(frame.rbp)
        ),
    );
    crate::panic::exception(frame, address.unwrap_or(0));
}

#[cfg(target_os = "none")]
fn fault_address() -> u64 {
    x86_64::registers::control::Cr2::read_raw()
}

#[cfg(not(target_os = "none"))]
const fn fault_address() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(vector: u64, code: u64) -> String {
        ErrorCode { vector, code }.to_string()
    }

    #[test]
    fn error_codes_are_decoded() {
        assert_eq!(code(14, 0), "read of a page that is not mapped");
        assert_eq!(code(14, 3), "write to a page that does not allow it");
        assert_eq!(code(14, 0x11), "execution of a page that does not allow it");
        assert_eq!(code(14, 9), "read of a page with reserved bits set");
        assert_eq!(code(13, 0x1a), "IDT entry 3");
        assert_eq!(code(13, 0x18), "GDT entry 3");
        assert_eq!(code(13, 0), "error code 0x0");
    }

    #[test]
    fn a_report_names_everything() {
        let frame = Frame {
            r15: 15,
            r14: 14,
            r13: 13,
            r12: 12,
            r11: 11,
            r10: 10,
            r9: 9,
            r8: 8,
            rbp: 7,
            rdi: 6,
            rsi: 5,
            rdx: 4,
            rcx: 3,
            rbx: 2,
            rax: 0xdead_beef,
            vector: 14,
            error_code: 2,
            rip: 0xffff_ffff_8020_0123,
            cs: 8,
            rflags: 0x246,
            rsp: 0x1000,
            ss: 16,
        };
        let text = Report {
            frame: &frame,
            address: Some(0x10),
        }
        .to_string();
        assert!(text.starts_with(
            "EXCEPTION 14: page fault at 0xffffffff80200123\n  write to a page that is not mapped, address 0x10\n"
        ));
        assert!(text.contains("rax 00000000deadbeef"));
        assert!(text.contains("r15 000000000000000f"));
        assert!(text.lines().all(|line| line.len() < 100));
    }
}
