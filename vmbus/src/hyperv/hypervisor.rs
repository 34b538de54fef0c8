//! [`Hypervisor`]: what was detected, and everything of which there is one in a machine.

use core::time::Duration;

use super::clock::{Clock, ClockSource, ReferenceTscError};
use super::cpuid::{Capabilities, NotHyperV, Privileges};
use super::hypercall::{CallsInFlight, EnableError, GuestId, HypercallError, HypercallPage, MessageInput};
use super::machine::Machine;
use super::registers::{Register, Registers};
use super::synic;
use crate::protocol::{ConnectionId, VpIndex};
use crate::{Instant, Platform};

/// The hypervisor does not offer something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hypervisor does not offer this: {what}")]
pub struct NotOffered {
    /// What it does not offer.
    pub what: &'static str,
}

/// The hypervisor that this system runs under. An operating system keeps one, in a `static`.
#[derive(Debug)]
pub struct Hypervisor {
    machine: ShownMachine,
    capabilities: Capabilities,
    hypercalls: HypercallPage,
    clock: Clock,
}

impl Hypervisor {
    /// Looks whether this machine runs under Hyper-V. Executes `CPUID` only, so it may be called anywhere, at any time.
    ///
    /// # Errors
    ///
    /// [`NotHyperV`] with what was found instead.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Result<Self, NotHyperV> {
        static NATIVE: super::machine::Native = super::machine::Native;
        Self::detect_on(&NATIVE)
    }

    /// Like [`Hypervisor::detect`], for a machine of the caller's.
    ///
    /// # Errors
    ///
    /// [`NotHyperV`] with what was found instead.
    pub fn detect_on(machine: &'static dyn Machine) -> Result<Self, NotHyperV> {
        let capabilities = Capabilities::detect_on(machine)?;
        Ok(Self {
            machine: ShownMachine(machine),
            capabilities,
            hypercalls: HypercallPage::new(),
            clock: Clock::new(&capabilities),
        })
    }

    /// Returns what the hypervisor says of itself.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Returns the machine.
    #[must_use]
    pub const fn machine(&self) -> &'static dyn Machine {
        self.machine.0
    }

    pub(super) const fn registers(&self) -> Registers {
        Registers::of(self.machine.0)
    }

    const fn has(&self, privilege: Privileges) -> bool {
        self.capabilities.privileges.contains(privilege)
    }

    /// Returns the time: from the reference TSC page if it is on and valid, else from the reference counter register,
    /// else from the TSC and its frequency. Context: any.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now(self.machine()).0
    }

    /// Returns the hypervisor's reference time: as [`Hypervisor::now`], but `None` where neither the page nor the register tells it.
    /// The two count from the same zero, so that a clock goes on evenly when a migration makes the page invalid; the TSC, which
    /// `now` would take instead, has another. Context: any.
    #[must_use]
    pub fn reference_time(&self) -> Option<Instant> {
        self.clock.reference_time(self.machine()).map(|(instant, _)| instant)
    }

    /// Returns where the time comes from at this moment. Context: any.
    #[must_use]
    pub fn clock_source(&self) -> ClockSource {
        self.clock.now(self.machine()).1
    }

    /// Turns the reference TSC page on, so that [`Hypervisor::now`] needs no exit. Again is nothing. Context: task.
    ///
    /// # Errors
    ///
    /// [`ReferenceTscError`]; the clock works without the page.
    pub fn enable_reference_tsc(&self, platform: &'static dyn Platform) -> Result<(), ReferenceTscError> {
        if !self.has(Privileges::REFERENCE_TSC) {
            return Err(ReferenceTscError::NotOffered);
        }
        self.clock.enable_page(self.registers(), platform)
    }

    /// Turns the reference TSC page off. The page of memory stays with this object. Context: any.
    pub fn disable_reference_tsc(&self) {
        self.clock.disable_page(self.registers());
    }

    /// Returns the TSC's frequency in hertz, from the hypervisor or else from the processor; `None` if neither tells it.
    /// Context: any.
    #[must_use]
    pub fn tsc_frequency_hz(&self) -> Option<u64> {
        let (hz, is_told) = self.clock.tsc_frequency(self.machine());
        is_told.then_some(hz)
    }

    /// Returns the local APIC timer's frequency in hertz, before its divider; `None` if the hypervisor does not tell it.
    /// Context: any.
    #[must_use]
    pub fn apic_frequency_hz(&self) -> Option<u64> {
        if !self.capabilities.has_frequency_registers() {
            return None;
        }
        Some(self.registers().read(Register::APIC_FREQUENCY)).filter(|hz| *hz != 0)
    }

    /// Returns the number that the hypervisor gives to the processor that this code runs on. It is neither the APIC's nor
    /// the operating system's. Context: any.
    ///
    /// Where the hypervisor does not tell (none is known to), this is 0, the processor that booted.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the index has 32 bits")]
    pub fn vp_index(&self) -> VpIndex {
        if !self.has(Privileges::VP_INDEX) {
            return VpIndex(0);
        }
        VpIndex(self.registers().read(Register::VP_INDEX) as u32)
    }

    /// Tells the hypervisor who this guest is and turns the hypercall page on. An earlier owner's page (of firmware, a
    /// loader or another kernel) is replaced; one of this program's is not, since it may be in use. Again is nothing. Context: task.
    ///
    /// # Errors
    ///
    /// [`EnableError`]; nothing is left on then.
    pub fn enable_hypercalls(&self, platform: &'static dyn Platform, guest: GuestId) -> Result<(), EnableError> {
        if !self.has(Privileges::HYPERCALLS) {
            return Err(EnableError::NotOffered);
        }
        self.hypercalls.enable(self.registers(), platform, guest)
    }

    /// Returns true if hypercalls are turned on.
    #[must_use]
    pub fn has_hypercalls(&self) -> bool {
        self.hypercalls.is_enabled()
    }

    /// Turns the hypercall page off, gives it back to the platform and withdraws the guest's id. The last step of a
    /// teardown, after every processor's [`Synic`](super::Synic). Context: task.
    ///
    /// # Errors
    ///
    /// [`CallsInFlight`] if another processor stays in a hypercall; everything is left on then.
    pub fn disable_hypercalls(&self) -> Result<(), CallsInFlight> {
        self.hypercalls.disable(self.registers())
    }

    /// Posts a message of up to 240 bytes to `connection`: one attempt. Context: any, the interrupt entry included.
    ///
    /// # Errors
    ///
    /// [`HypercallError`]: [`HypercallError::is_transient`] says whether to try again.
    ///
    /// # Safety
    ///
    /// A message may have the host read and write the guest's memory: those of the VMBus lend it pages by their numbers. What this one
    /// lends is memory that the host may write to until it has given it up, and that this program reaches only as such. So there is no
    /// posting without a word for that:
    ///
    /// ```compile_fail,E0133
    /// # use vmbus::{hyperv::*, protocol::ConnectionId};
    /// # fn lend(hypervisor: &Hypervisor, input: &MessageInput, any_page: &[u8]) {
    /// let _ = hypervisor.post_message(input, ConnectionId(4), 1, any_page);
    /// # }
    /// ```
    #[expect(unsafe_code, reason = "whoever calls it vouches for what the message lends")]
    pub unsafe fn post_message(
        &self,
        input: &MessageInput,
        connection: ConnectionId,
        message_type: u32,
        payload: &[u8],
    ) -> Result<(), HypercallError> {
        self.hypercalls
            .post_message(self.machine(), input, connection, message_type, payload)
    }

    /// Signals event `flag` of `connection`. Context: any, the interrupt entry included.
    ///
    /// # Errors
    ///
    /// [`HypercallError`].
    pub fn signal_event(&self, connection: ConnectionId, flag: u16) -> Result<(), HypercallError> {
        self.hypercalls.signal_event(self.machine(), connection, flag)
    }

    /// Turns off everything synthetic on the processor that this code runs on, whoever turned it on: timers first, then
    /// the interrupt sources, then the message and event pages. Context: any; takes no lock, allocates nothing and gives
    /// nothing back.
    ///
    /// Two uses: at the start of a system whose loader may have left something running, on each processor and before
    /// anything else of this crate; and at the end of one that crashes.
    pub fn silence_processor(&self) {
        synic::silence(self.registers(), &self.capabilities, synic::TimersToStop::All);
    }

    /// Turns the reference TSC page and the hypercall page off and withdraws the guest's id, for a system that ends.
    /// Context: any; takes no lock and gives nothing back. Afterwards every hypercall fails. A page that a call is in, of another processor
    /// or of what the crash has interrupted, stays on.
    pub fn shut_down_in_emergency(&self) {
        self.disable_reference_tsc();
        self.hypercalls.disable_in_emergency(self.registers());
    }

    /// Resets the machine. Returns only if that did not work. Context: any.
    ///
    /// # Errors
    ///
    /// [`NotOffered`] if the hypervisor has no reset register, or if this code still runs after writing it.
    pub fn reset(&self) -> Result<(), NotOffered> {
        const RESET: u64 = 1;
        if self.has(Privileges::RESET) {
            self.registers().write(Register::RESET, RESET);
        }
        Err(NotOffered { what: "reset" })
    }

    /// Returns how long ago `earlier` was.
    #[must_use]
    pub fn elapsed_since(&self, earlier: Instant) -> Duration {
        self.now().saturating_duration_since(earlier)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        let registers = self.registers();
        self.clock.shut_down(registers);
        // A call in flight borrows this object, so there is none.
        let _ = self.disable_hypercalls();
    }
}

/// The machine, which has nothing to show.
#[derive(Clone, Copy)]
struct ShownMachine(&'static dyn Machine);

impl core::fmt::Debug for ShownMachine {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str("Machine")
    }
}
