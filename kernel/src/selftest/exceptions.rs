//! Exceptions: a page fault is told, and running over the end of a stack is a double fault on a stack of its own, not silence.
//! They pass if the machine ends as a panic should.
#![expect(unsafe_code, reason = "does what must not be done")]

use super::Verdict;

pub(super) fn page_fault() -> Verdict {
    let nowhere = core::ptr::without_provenance::<u64>(0x1008);
    // SAFETY: None: the address is not mapped, and the fault is what is tested. Nothing is done with the value.
    let value = unsafe { nowhere.read_volatile() };
    Err(alloc::format!("page 1 is mapped and holds {value:#x}"))
}

pub(super) fn stack_overflow() -> Verdict {
    Err(alloc::format!("the stack has no end: {}", deeper(1)))
}

fn deeper(depth: u64) -> u64 {
    let mut room = [depth; 64];
    let room = core::hint::black_box(&mut room);
    if depth == u64::MAX {
        return 0;
    }
    deeper(depth + 1).wrapping_add(room[usize::try_from(depth % 64).unwrap_or(0)])
}
