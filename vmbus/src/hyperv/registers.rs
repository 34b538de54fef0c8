//! The synthetic model-specific registers, by name and by kind.
//!
//! Registers that name a page of the guest's memory ([`PageRegister`]) are apart from those that do not ([`Register`]):
//! turning such a page on is a matter of memory safety, see [`super::overlay`].
#![expect(unsafe_code, reason = "reads and writes model-specific registers")]

use crate::hyperv::machine::Machine;
use crate::memory::{PAGE_SIZE, Pfn};

/// A synthetic register whose value names no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(u32);

impl Register {
    /// `HV_X64_MSR_GUEST_OS_ID`: must be set before the hypercall page is turned on; zero turns that page off.
    pub(super) const GUEST_OS_ID: Self = Self(0x4000_0000);
    /// `HV_X64_MSR_VP_INDEX`
    pub(super) const VP_INDEX: Self = Self(0x4000_0002);
    /// `HV_X64_MSR_RESET`
    pub(super) const RESET: Self = Self(0x4000_0003);
    /// `HV_X64_MSR_TIME_REF_COUNT`
    pub(super) const TIME_REF_COUNT: Self = Self(0x4000_0020);
    /// `HV_X64_MSR_TSC_FREQUENCY`
    pub(super) const TSC_FREQUENCY: Self = Self(0x4000_0022);
    /// `HV_X64_MSR_APIC_FREQUENCY`
    pub(super) const APIC_FREQUENCY: Self = Self(0x4000_0023);
    /// `HV_X64_MSR_SCONTROL`
    pub(super) const SCONTROL: Self = Self(0x4000_0080);
    /// `HV_X64_MSR_EOM`
    pub(super) const EOM: Self = Self(0x4000_0084);
    /// `HV_X64_MSR_CRASH_CTL`
    pub(super) const CRASH_CTL: Self = Self(0x4000_0105);

    /// Returns `HV_X64_MSR_SINTx`. There are 16.
    pub(super) const fn sint(sint: u8) -> Self {
        Self(0x4000_0090 | (sint & 0xf) as u32)
    }

    /// Returns `HV_X64_MSR_STIMERx_CONFIG`. There are 4.
    pub(super) const fn stimer_config(timer: u8) -> Self {
        Self(0x4000_00b0 | ((timer & 3) as u32) << 1)
    }

    /// Returns `HV_X64_MSR_STIMERx_COUNT`.
    pub(super) const fn stimer_count(timer: u8) -> Self {
        Self(0x4000_00b1 | ((timer & 3) as u32) << 1)
    }

    /// Returns `HV_X64_MSR_CRASH_Px` for its number from 0 to 4.
    pub(super) const fn crash_parameter(number: u8) -> Self {
        Self(0x4000_0100 | if number > 4 { 4 } else { number as u32 })
    }
}

/// A synthetic register that places a page of the hypervisor's over one of the guest's: bit 0 turns it on, bits 12 to 63
/// are the guest's page number, the rest is reserved and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRegister(u32);

impl PageRegister {
    /// `HV_X64_MSR_HYPERCALL`; its bit 1 locks it until the machine is reset.
    pub(super) const HYPERCALL: Self = Self(0x4000_0001);
    /// `HV_X64_MSR_REFERENCE_TSC`
    pub(super) const REFERENCE_TSC: Self = Self(0x4000_0021);
    /// `HV_X64_MSR_SIEFP`
    pub(super) const SIEFP: Self = Self(0x4000_0082);
    /// `HV_X64_MSR_SIMP`
    pub(super) const SIMP: Self = Self(0x4000_0083);
}

/// What a [`PageRegister`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRegisterValue(u64);

impl PageRegisterValue {
    const ENABLE: u64 = 1;
    const LOCKED: u64 = 1 << 1;
    const RESERVED: u64 = PAGE_SIZE as u64 - 2;

    pub(super) const fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    pub(super) const fn is_locked(self) -> bool {
        self.0 & Self::LOCKED != 0
    }

    pub(super) const fn page(self) -> Pfn {
        Pfn::new(self.0 >> PAGE_SIZE.trailing_zeros())
    }

    const fn enabled_at(self, page: Pfn) -> Self {
        // A page number that came from an address is below 2^52.
        Self(self.0 & Self::RESERVED | (page.get() << PAGE_SIZE.trailing_zeros()) | Self::ENABLE)
    }

    const fn disabled(self) -> Self {
        Self(self.0 & !Self::ENABLE)
    }
}

/// The registers of the processor that the code runs on.
#[derive(Clone, Copy)]
pub(super) struct Registers(&'static dyn Machine);

impl Registers {
    pub(super) const fn of(machine: &'static dyn Machine) -> Self {
        Self(machine)
    }

    pub(super) const fn machine(self) -> &'static dyn Machine {
        self.0
    }

    /// Reads a register. The caller has seen the privilege for it in the capabilities.
    pub(super) fn read(self, register: Register) -> u64 {
        // SAFETY: one of the registers above, whose reading has no effect; that it exists the caller has checked (were it
        // not so, the processor would raise an exception, and memory would be as it was).
        unsafe { self.0.read_msr(register.0) }
    }

    /// Writes a register. The caller has seen the privilege for it in the capabilities.
    pub(super) fn write(self, register: Register, value: u64) {
        // SAFETY: one of the registers above, none of which makes the hypervisor write to the guest's memory; as above.
        unsafe { self.0.write_msr(register.0, value) };
    }

    pub(super) fn read_page(self, register: PageRegister) -> PageRegisterValue {
        // SAFETY: as in `read`.
        PageRegisterValue(unsafe { self.0.read_msr(register.0) })
    }

    /// Turns the page off, whoever turned it on, and keeps the reserved bits.
    pub(super) fn disable_page(self, register: PageRegister) {
        let value = self.read_page(register);
        if value.is_enabled() {
            // SAFETY: as in `read`; this takes a page of the hypervisor's away from the guest's memory and adds none.
            unsafe { self.0.write_msr(register.0, value.disabled().0) };
        }
    }

    /// Places the register's page over `page`, and keeps the reserved bits.
    ///
    /// # Safety
    ///
    /// The page belongs to the caller, is reached only as memory that the host may write, and stays allocated until the
    /// register is turned off.
    pub(super) unsafe fn enable_page(self, register: PageRegister, page: Pfn) {
        let value = self.read_page(register).enabled_at(page);
        // SAFETY: as in `read`; the page is the caller's to give.
        unsafe { self.0.write_msr(register.0, value.0) };
    }
}
