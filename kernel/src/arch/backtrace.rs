//! Backtraces by frame pointers, as addresses; `addr2line -e kernel` turns them into names.

use crate::memory::layout;
use core::fmt;

/// Callers that are shown.
const DEPTH: usize = 12;

/// The return addresses on a stack.
#[derive(Debug, Clone, Copy)]
pub struct Backtrace {
    addresses: [u64; DEPTH],
    count: usize,
}

impl Backtrace {
    /// Follows a chain of frame pointers through memory that `read` can read.
    pub fn follow(mut frame: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Self {
        let mut trace = Self {
            addresses: [0; DEPTH],
            count: 0,
        };
        while let Some(slot) = trace.addresses.get_mut(trace.count) {
            let (Some(caller), Some(address)) = (read(frame), frame.checked_add(8).and_then(&mut read)) else {
                break;
            };
            if address == 0 {
                break;
            }
            *slot = address;
            trace.count += 1;
            // Callers lie higher on the stack; anything else is no chain.
            if caller <= frame {
                break;
            }
            frame = caller;
        }
        trace
    }

    /// The backtrace from a frame pointer of the kernel's.
    #[must_use]
    pub fn from(frame: u64) -> Self {
        Self::follow(frame, read_stack)
    }

    /// The backtrace of the caller.
    #[must_use]
    #[inline(always)]
    pub fn here() -> Self {
        Self::from(frame_pointer())
    }

    /// The addresses, innermost first.
    #[must_use]
    pub fn addresses(&self) -> &[u64] {
        self.addresses.get(..self.count).unwrap_or(&[])
    }
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for address in self.addresses() {
            write!(f, " {address:#x}")?;
        }
        Ok(())
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "reads the frame pointer")]
fn frame_pointer() -> u64 {
    let frame: u64;
    // SAFETY: Reads a register and nothing else.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    frame
}

/// Reads a word of kernel memory if it is certain to be mapped.
#[expect(unsafe_code, reason = "reads the stack")]
fn read_stack(address: u64) -> Option<u64> {
    if !address.is_multiple_of(8) || address < layout::DIRECT_MAP || !is_stack(address) {
        return None;
    }
    // SAFETY: The address is aligned and lies in mapped memory of the kernel's; any eight bytes are a number.
    Some(unsafe { core::ptr::with_exposed_provenance::<u64>(layout::to_usize(address)).read_volatile() })
}

fn is_stack(address: u64) -> bool {
    #[cfg(target_os = "none")]
    {
        // The image is mapped from the start on, except for the guard page.
        let image = layout::image();
        if image.contains(address) {
            return layout::page_down(address) != layout::boot_stack_guard();
        }
    }
    crate::memory::is_mapped_in_emergency(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(frame: u64, memory: &[(u64, u64)]) -> Vec<u64> {
        let read = |address| memory.iter().find(|(at, _)| *at == address).map(|(_, word)| *word);
        Backtrace::follow(frame, read).addresses().to_vec()
    }

    #[test]
    fn a_chain_is_followed_to_its_end() {
        let stack = [
            (0x100, 0x200),
            (0x108, 0xaa),
            (0x200, 0x300),
            (0x208, 0xbb),
            (0x300, 0),
            (0x308, 0),
        ];
        assert_eq!(trace(0x100, &stack), [0xaa, 0xbb]);
    }

    #[test]
    fn garbage_ends_the_chain() {
        assert_eq!(trace(0x100, &[]), []);
        assert_eq!(trace(u64::MAX, &[(u64::MAX, 1)]), []);
        assert_eq!(trace(0x100, &[(0x100, 0x100), (0x108, 0xaa)]), [0xaa], "a loop");
        assert_eq!(
            trace(0x100, &[(0x100, 0x50), (0x108, 0xaa), (0x50, 0x60), (0x58, 0xbb)]),
            [0xaa],
            "downwards"
        );
        let endless: Vec<_> = (1..100)
            .flat_map(|i| [(i * 16, i * 16 + 16), (i * 16 + 8, i)])
            .collect();
        assert_eq!(trace(16, &endless).len(), DEPTH);
    }
}
