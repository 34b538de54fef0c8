//! Registers that ACPI names, and the steps to take with them.
#![expect(unsafe_code, reason = "port I/O and registers of devices")]

use core::ptr::NonNull;

use volatile::VolatilePtr;
use x86_64::instructions::port::Port;

use crate::acpi::fadt::{Register, Step};
use crate::memory;

/// How long a step waits for a bit, in nanoseconds.
const PATIENCE_NS: u64 = 10_000_000;

/// A register within reach.
#[derive(Debug, Clone, Copy)]
enum Reached {
    Port { port: u16, width: u8 },
    Memory { pointer: NonNull<u8>, width: u8 },
}

/// A step whose register is within reach: it is taken without memory and without a lock, so also at the end of a panic.
#[derive(Debug, Clone, Copy)]
pub struct PreparedStep {
    step: Step,
    register: Reached,
}

// SAFETY: the pointer is to a device's register, which is mapped for good on every processor.
unsafe impl Send for PreparedStep {}
// SAFETY: as above; what two callers at a time do to the register is what the register makes of it.
unsafe impl Sync for PreparedStep {}

impl PreparedStep {
    /// Brings a step's register within reach. `None` if it cannot be mapped.
    #[must_use]
    pub fn new(step: Step) -> Option<Self> {
        let (Step::Write { register, .. } | Step::Update { register, .. } | Step::Await { register, .. }) = step;
        let register = match register {
            Register::Port { port, width } => Reached::Port { port, width },
            Register::Memory { address, width } => {
                if !address.is_multiple_of(u64::from(width)) {
                    return None;
                }
                let pointer = NonNull::new(memory::map_device(address, u64::from(width)).ok()?)?;
                Reached::Memory { pointer, width }
            }
        };
        Some(Self { step, register })
    }

    /// Takes the step.
    ///
    /// # Safety
    ///
    /// The step is what firmware says is to be done, and what it does to the machine is wanted.
    pub unsafe fn take(&self) {
        match self.step {
            Step::Write { value, .. } => self.register.write(value),
            Step::Update { clear, set, .. } => self.register.write(self.register.read() & !clear | set),
            Step::Await { bits, .. } => {
                let end = crate::time::now_ns().saturating_add(PATIENCE_NS);
                while self.register.read() & bits == 0 && crate::time::now_ns() < end {
                    core::hint::spin_loop();
                }
            }
        }
    }
}

impl Reached {
    fn read(self) -> u32 {
        // SAFETY (all arms): firmware names the register, and reading it is part of the step that the caller of `take` wants;
        // memory is mapped for good and aligned.
        match self {
            // SAFETY: as above.
            Self::Port { port, width: 1 } => u32::from(unsafe { Port::<u8>::new(port).read() }),
            // SAFETY: as above.
            Self::Port { port, width: 2 } => u32::from(unsafe { Port::<u16>::new(port).read() }),
            // SAFETY: as above.
            Self::Port { port, .. } => unsafe { Port::<u32>::new(port).read() },
            // SAFETY: as above.
            Self::Memory { pointer, width: 1 } => u32::from(unsafe { VolatilePtr::new(pointer) }.read()),
            // SAFETY: as above.
            Self::Memory { pointer, width: 2 } => u32::from(unsafe { VolatilePtr::new(pointer.cast::<u16>()) }.read()),
            // SAFETY: as above.
            Self::Memory { pointer, .. } => unsafe { VolatilePtr::new(pointer.cast::<u32>()) }.read(),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the register has only so many bits")]
    fn write(self, value: u32) {
        match self {
            // SAFETY: as for reading.
            Self::Port { port, width: 1 } => unsafe { Port::<u8>::new(port).write(value as u8) },
            // SAFETY: as for reading.
            Self::Port { port, width: 2 } => unsafe { Port::<u16>::new(port).write(value as u16) },
            // SAFETY: as for reading.
            Self::Port { port, .. } => unsafe { Port::<u32>::new(port).write(value) },
            // SAFETY: as for reading.
            Self::Memory { pointer, width: 1 } => unsafe { VolatilePtr::new(pointer) }.write(value as u8),
            Self::Memory { pointer, width: 2 } => {
                // SAFETY: as for reading.
                unsafe { VolatilePtr::new(pointer.cast::<u16>()) }.write(value as u16);
            }
            // SAFETY: as for reading.
            Self::Memory { pointer, .. } => unsafe { VolatilePtr::new(pointer.cast::<u32>()) }.write(value),
        }
    }
}
