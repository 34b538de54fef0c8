//! x86-64: the processor, its descriptor tables, exceptions and interrupts, its interrupt controller.
//!
//! Nothing here touches the PIC, the PIT, the PS/2 controller or CR8: a Gen2 machine has none of the former, and a host's bug with
//! the latter ends the machine. External interrupts of the old PIC are kept out by masking the APIC's own input for them.

pub mod apic;
pub mod backtrace;
pub mod cpu;
pub mod exceptions;
pub mod interrupts;
pub mod port;
pub mod register;
#[cfg(target_os = "none")]
pub mod tables;
