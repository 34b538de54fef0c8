//! [`Stack`]: a stack with an unmapped page below it, so that running over its end is a fault and not silent corruption.
#![expect(unsafe_code, reason = "gives frames back")]

use super::frames::FrameRange;
use super::layout::PAGE_SIZE;
use super::paging::Access;
use super::{MemoryError, RANGES};

/// Pages of a task's stack. Unoptimised code needs more.
pub const TASK_STACK_PAGES: u64 = if cfg!(debug_assertions) { 32 } else { 16 };

/// A stack, given back when dropped.
#[derive(Debug)]
pub struct Stack {
    /// The guard page, below the stack.
    guard: u64,
    pages: u64,
}

impl Stack {
    /// Makes a stack.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if there is no memory.
    pub fn new(pages: u64) -> Result<Self, MemoryError> {
        let length = (pages + 1) * PAGE_SIZE;
        let guard = RANGES.lock().allocate(length).ok_or(MemoryError::OutOfAddresses)?;
        let mut stack = Self { guard, pages: 0 };
        // `stack` counts what is mapped, so that giving up half-way gives back the right things.
        while stack.pages < pages {
            let frame = super::allocate_frame().ok_or(MemoryError::OutOfMemory)?;
            let at = guard + (stack.pages + 1) * PAGE_SIZE;
            let mapped =
                super::with_page_tables(|mapper| mapper.map(at, frame.address(), PAGE_SIZE, Access::ReadWrite));
            if let Err(error) = mapped {
                // SAFETY: The frame was taken above and is used by nobody.
                let given = unsafe { super::free_frames(FrameRange { first: frame, count: 1 }) };
                debug_assert!(given.is_ok());
                return Err(error.into());
            }
            stack.pages += 1;
        }
        Ok(stack)
    }

    /// The address above the stack's last byte, aligned to a page.
    #[must_use]
    pub const fn top(&self) -> u64 {
        self.guard + (self.pages + 1) * PAGE_SIZE
    }

    /// Whether an address lies in the guard page.
    #[must_use]
    pub const fn is_guard(&self, address: u64) -> bool {
        address >= self.guard && address < self.guard + PAGE_SIZE
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        super::unmap(self.guard + PAGE_SIZE, self.pages * PAGE_SIZE, |first| {
            // SAFETY: The frames were taken for this stack, on which nobody runs any more.
            let given = unsafe { super::free_frames(FrameRange { first, count: 1 }) };
            debug_assert!(given.is_ok());
        });
        RANGES.lock().free(self.guard, (self.pages + 1) * PAGE_SIZE);
    }
}
