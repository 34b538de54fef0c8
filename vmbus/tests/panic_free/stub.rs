//! What the programs stand on: a machine, a platform and a heap, each of whose answers may be any.

use core::alloc::{GlobalAlloc, Layout};
use core::hint::black_box;
use core::ptr::{self, NonNull};

use vmbus::hyperv::machine::{Cpuid, Machine};
use vmbus::memory::Gpa;
use vmbus::platform::{NotMapped, OutOfPages, PageUse, Platform, ProcessorIndex};

/// A machine and a platform of which the compiler knows nothing.
pub struct Stub;

// SAFETY: a program that is only linked.
unsafe impl Machine for Stub {
    fn cpuid(&self, leaf: u32, _: u32) -> Cpuid {
        let [eax, ebx, ecx, edx] = black_box([leaf; 4]);
        Cpuid { eax, ebx, ecx, edx }
    }
    fn timestamp(&self) -> u64 {
        black_box(1)
    }
    unsafe fn read_msr(&self, register: u32) -> u64 {
        black_box(register.into())
    }
    unsafe fn write_msr(&self, register: u32, value: u64) {
        black_box((register, value));
    }
    unsafe fn hypercall(&self, _: NonNull<u8>, control: u64, _: u64, _: u64) -> u64 {
        black_box(control)
    }
}

// SAFETY: as above.
unsafe impl Platform for Stub {
    fn allocate_pages(&self, page_count: usize, _: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        NonNull::new(black_box(ptr::null_mut())).ok_or(OutOfPages { page_count })
    }
    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        black_box((base, page_count));
    }
    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        Ok(Gpa::new(black_box(address.addr().get() as u64)))
    }
    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(black_box(0))
    }
    fn schedule_deferred(&self, processor: ProcessorIndex) {
        black_box(processor);
    }
}

pub static STUB: Stub = Stub;

/// The heap of a program that is only linked.
struct NoHeap;

// SAFETY: it has nothing to give.
unsafe impl GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        black_box(ptr::without_provenance_mut(layout.size()))
    }
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        black_box(block);
    }
}

#[global_allocator]
static HEAP: NoHeap = NoHeap;
