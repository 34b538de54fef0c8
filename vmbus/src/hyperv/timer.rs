//! Synthetic timers: four on each processor, on the hypervisor's reference time.
//!
//! Source: TLFS, "Synthetic Timers".

use super::cpuid::{Features, Privileges};
use super::hypervisor::Hypervisor;
use super::registers::{Register, Registers};
use crate::Instant;

/// How many timers a processor has.
pub(super) const TIMER_COUNT: u8 = 4;

// `HV_X64_MSR_STIMER_CONFIG`. Bit 0 (enabled) is set by the hypervisor as the count is written.
const AUTO_ENABLE: u64 = 1 << 3;
const VECTOR_SHIFT: u32 = 4;
pub(super) const DIRECT: u64 = 1 << 12;
const SINT_SHIFT: u32 = 16;
/// The first vector that is not the processor's own.
const FIRST_VECTOR: u8 = 32;

/// How a timer tells that its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerDelivery {
    /// By an interrupt of its own, which needs an end-of-interrupt as any other. Newer hosts.
    Direct {
        /// The vector, at least 32.
        vector: u8,
    },
    /// By a message ([`Message::timer_expiry`](super::Message::timer_expiry)) from a synthetic interrupt source that a
    /// [`Synic`](super::Synic) has turned on.
    Message {
        /// The source, from 1 to 15.
        sint: u8,
    },
}

/// Why a timer could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimerError {
    /// The hypervisor has no synthetic timers.
    #[error("the hypervisor offers no synthetic timers")]
    NotOffered,
    /// The hypervisor's timers cannot raise an interrupt of their own.
    #[error("the hypervisor offers no synthetic timers with an interrupt of their own")]
    NoDirectMode,
    /// A processor has four timers, numbered from 0.
    #[error("there is no synthetic timer {0}")]
    NoSuchTimer(u8),
    /// The vector belongs to the processor's exceptions, or the source does not exist.
    #[error("a timer cannot be delivered by {0:?}")]
    BadDelivery(TimerDelivery),
}

/// A synthetic timer in one-shot mode, on the processor that [`Timer::enable`] ran on: all its functions are called there.
#[derive(Debug)]
pub struct Timer {
    registers: ShownRegisters,
    index: u8,
    configuration: u64,
}

impl Timer {
    /// Takes timer `index` (0 to 3) of the current processor; whatever it did before ends. Context: task.
    ///
    /// # Errors
    ///
    /// [`TimerError`]; nothing was changed then.
    pub fn enable(hypervisor: &'static Hypervisor, index: u8, delivery: TimerDelivery) -> Result<Self, TimerError> {
        let capabilities = hypervisor.capabilities();
        if !capabilities.privileges.contains(Privileges::SYNTHETIC_TIMERS) {
            return Err(TimerError::NotOffered);
        }
        if index >= TIMER_COUNT {
            return Err(TimerError::NoSuchTimer(index));
        }
        let mode = match delivery {
            TimerDelivery::Direct { .. } if !capabilities.features.contains(Features::DIRECT_TIMERS) => {
                return Err(TimerError::NoDirectMode);
            }
            TimerDelivery::Direct { vector } if vector >= FIRST_VECTOR => DIRECT | u64::from(vector) << VECTOR_SHIFT,
            TimerDelivery::Message { sint: sint @ 1..=15 } => u64::from(sint) << SINT_SHIFT,
            TimerDelivery::Direct { .. } | TimerDelivery::Message { .. } => {
                return Err(TimerError::BadDelivery(delivery));
            }
        };
        let timer = Self {
            registers: ShownRegisters(hypervisor.registers()),
            index,
            configuration: mode | AUTO_ENABLE,
        };
        timer.write_configuration(0);
        timer.cancel();
        timer.write_configuration(timer.configuration);
        Ok(timer)
    }

    /// Lets the timer go off at `instant`, or at once if that has passed; an earlier setting is forgotten. One register
    /// write. Context: any, the interrupt entry included.
    pub fn set(&self, instant: Instant) {
        // Zero means "never" to the hypervisor.
        self.write_count(instant.reference_units().max(1));
    }

    /// Stops the timer. An interrupt or message that is on its way still comes. Context: any.
    pub fn cancel(&self) {
        self.write_count(0);
    }

    /// Stops the timer and gives it up.
    pub fn disable(self) {
        self.cancel();
        self.write_configuration(0);
    }

    fn write_count(&self, count: u64) {
        self.registers.0.write(Register::stimer_count(self.index), count);
    }

    fn write_configuration(&self, configuration: u64) {
        self.registers
            .0
            .write(Register::stimer_config(self.index), configuration);
    }
}

/// The registers, which have nothing to show.
struct ShownRegisters(Registers);

impl core::fmt::Debug for ShownRegisters {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str("Registers")
    }
}
