//! The nested host: this same runner inside an emulated Linux that has KVM.
//!
//! QEMU's emulator implements AMD's virtualisation, so a Linux inside it has a real `/dev/kvm` with Hyper-V, on any machine. Outside,
//! [`middle`] starts that Linux with an initramfs ([`initramfs`]); inside, this program is its init ([`inside`]), runs the runner again as if
//! on a machine with KVM, and sends everything out over a serial port ([`wire`]). Deadlines and QMP live inside, on that machine's clock.

pub mod initramfs;
pub mod inside;
pub mod middle;
pub mod wire;

use serde::{Deserialize, Serialize};

/// How time passes in the nested host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Time is real, several processors work at once: for people.
    Real,
    /// Idle time is real, but one processor works at a time, and busy time is the number of executed instructions: for people, where UEFI
    /// firmware would bring down a QEMU whose processors work at once (its emulation of `mov cr8` in a nested guest).
    Steady,
    /// Time is the number of executed instructions and idle time is skipped: the same run takes the same time, on any machine.
    Deterministic,
}

/// A run of the runner inside the middle Linux.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Whether it gets what the user types.
    pub input: bool,
}

/// What init finds in `/job.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The runs, one after the other.
    pub jobs: Vec<Job>,
    /// Modules to load, in order.
    pub modules: Vec<String>,
}

/// Where things are inside the middle Linux.
pub mod paths {
    /// This program.
    pub const RUNNER: &str = "/init";
    /// The [`Plan`](super::Plan).
    pub const PLAN: &str = "/job.json";
    /// The folder of kernel modules.
    pub const MODULES: &str = "/modules";
    /// The description of QEMU.
    pub const QEMU: &str = "/qemu/qemu.json";
    /// Where a job leaves files that are to cross to the outside.
    pub const OUT: &str = "/out";
    /// Files that came with the plan, e.g. the guest's kernel.
    pub const FILES: &str = "/files";
}
