//! [`Overlay`]: a page that a register places over memory of ours.
#![expect(
    unsafe_code,
    reason = "gives a page to the hypervisor for as long as its register says so"
)]

use core::mem::ManuallyDrop;

use super::registers::{PageRegister, PageRegisterValue, Registers};
use crate::Platform;
use crate::memory::{Pfn, SharedPages};
use crate::platform::{NotMapped, OutOfPages, PageUse, ProcessorIndex};
use crate::sync::DispatchSection;

/// Why a page could not be turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverlayError {
    OutOfPages(OutOfPages),
    NotMapped(NotMapped),
    /// The hypervisor did not keep the value.
    Refused,
}

/// Whose register it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Each processor has one: it is turned off where it was turned on.
    Processor,
    /// The machine has one.
    Machine,
}

/// A page of ours that a register has turned into one of the hypervisor's.
///
/// Dropped without [`Overlay::disable`], it leaks the page: the hypervisor may still write there.
#[derive(Debug)]
pub(super) struct Overlay {
    pages: ManuallyDrop<SharedPages>,
    register: PageRegister,
    processor: Option<ProcessorIndex>,
}

impl Overlay {
    /// Allocates a page and turns it on. For a register of [`Scope::Processor`] the caller is in a dispatch section.
    pub(super) fn enable(
        registers: Registers,
        register: PageRegister,
        scope: Scope,
        platform: &'static dyn Platform,
        page_use: PageUse,
    ) -> Result<Self, OverlayError> {
        let pages = SharedPages::allocate_for(platform, 1, page_use).map_err(OverlayError::OutOfPages)?;
        let page = pages.pfn(0).map_err(OverlayError::NotMapped)?;
        // SAFETY: the page is freshly allocated and moves into the result, which gives it back only after the register is
        // off or has been seen not to hold it. `SharedPages` is memory that the host may write.
        unsafe { registers.enable_page(register, page) };
        let after = registers.read_page(register);
        if !holds(after, page) {
            return Err(OverlayError::Refused);
        }
        Ok(Self {
            pages: ManuallyDrop::new(pages),
            register,
            processor: (scope == Scope::Processor).then(|| platform.current_processor()),
        })
    }

    pub(super) fn pages(&self) -> &SharedPages {
        &self.pages
    }

    /// Turns the page off and keeps it; what is read from then on is our own memory, as it was before. For a register of
    /// the whole machine.
    pub(super) fn turn_off(&self, registers: Registers) {
        if self
            .pages
            .pfn(0)
            .is_ok_and(|page| holds(registers.read_page(self.register), page))
        {
            registers.disable_page(self.register);
        }
    }

    /// Turns the page on again after [`Overlay::turn_off`]. Returns false if the hypervisor did not.
    pub(super) fn turn_on(&self, registers: Registers) -> bool {
        let Ok(page) = self.pages.pfn(0) else {
            return false;
        };
        if !holds(registers.read_page(self.register), page) {
            // SAFETY: the page belongs to this object, which gives it back only after the register is off.
            unsafe { registers.enable_page(self.register, page) };
        }
        holds(registers.read_page(self.register), page)
    }

    /// Turns the page off and gives it back to the platform. On another processor than the one that turned it on,
    /// nothing is done and the page is lost; the caller has checked.
    pub(super) fn disable(self, registers: Registers) {
        let platform = self.pages.platform();
        let _section = DispatchSection::enter(platform);
        if self
            .processor
            .is_some_and(|processor| processor != platform.current_processor())
        {
            return;
        }
        // A register that someone else has moved meanwhile is theirs.
        self.turn_off(registers);
        drop(ManuallyDrop::into_inner(self.pages));
    }
}

fn holds(value: PageRegisterValue, page: Pfn) -> bool {
    value.is_enabled() && value.page() == page
}
