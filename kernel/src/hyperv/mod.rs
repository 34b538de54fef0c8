//! The binding to `vmbus`: what an operating system has to write to be a Hyper-V guest, and the drivers that this one binds.
//!
//! - [`port`]: the platform trait of `vmbus`, over this kernel's memory, deferred work and tasks;
//! - [`clock`]: the reference clock and the synthetic timer take over from the processor's;
//! - [`bus`]: the connection, its interrupt, its end;
//! - [`dynamic_memory`]: one driver, one file: the frame allocator as a pool, and the task that runs the driver;
//! - [`storage`]: the disks, and the task that looks after their controllers;
//! - [`crash`]: what a panic does to the bus and tells the host;
//! - [`devices`]: the rows of the status table; [`offers`]: which offers are left alone;
//! - `local` (feature `selftest`): a host inside this kernel, so that its parts may offer channels to each other.
//!
//! The rest of the kernel knows of Hyper-V only what it finds here.

pub mod bus;
pub mod clock;
pub mod crash;
pub mod devices;
#[cfg(any(test, feature = "selftest"))]
pub(crate) mod doomed;
pub mod dynamic_memory;
#[cfg(any(test, feature = "selftest"))]
pub mod local;
pub mod offers;
pub mod port;
pub mod storage;

use core::fmt;

use spin::Once;
pub use vmbus::hyperv::{Hypervisor, NotHyperV};

use crate::power::ResetRefused;

/// Asks the processor which hypervisor there is; the first call does, the others remember.
pub fn found() -> &'static Result<Hypervisor, NotHyperV> {
    static FOUND: Once<Result<Hypervisor, NotHyperV>> = Once::new();
    FOUND.call_once(|| {
        if cfg!(target_os = "none") {
            detect()
        } else {
            Err(NotHyperV::NoHypervisor)
        }
    })
}

#[cfg(not(any(test, feature = "selftest")))]
fn detect() -> Result<Hypervisor, NotHyperV> {
    Hypervisor::detect()
}

/// On a machine in which the self-test can let a hypercall fail.
#[cfg(any(test, feature = "selftest"))]
fn detect() -> Result<Hypervisor, NotHyperV> {
    Hypervisor::detect_on(&doomed::MACHINE)
}

/// Returns the hypervisor, if it is Hyper-V.
#[must_use]
pub fn hypervisor() -> Option<&'static Hypervisor> {
    found().as_ref().ok()
}

/// What there is, for people: the hypervisor's name and version, or what was found instead.
#[derive(Debug, Clone, Copy)]
pub struct Description;

impl fmt::Display for Description {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match found() {
            Ok(hypervisor) => {
                let capabilities = hypervisor.capabilities();
                write!(formatter, "Hyper-V ({} {})", capabilities.vendor, capabilities.version)
            }
            Err(reason) => write!(formatter, "{reason}"),
        }
    }
}

/// Resets the machine by the hypervisor's register. Returns only if that is not possible or has no effect.
///
/// # Errors
///
/// [`ResetRefused`] if there is no such register.
pub fn reset() -> Result<(), ResetRefused> {
    hypervisor()
        .and_then(|hypervisor| hypervisor.reset().ok())
        .ok_or(ResetRefused)
}
