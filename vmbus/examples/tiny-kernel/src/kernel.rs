//! The kernel itself: a heap, a main function, and an end.
#![expect(unsafe_code, reason = "the heap's memory, and the port that ends QEMU")]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::error::Error;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use linked_list_allocator::LockedHeap;
use vmbus::device::dynamic_memory::{Engine, PageRange, State};
use vmbus::memory::{Gpa, PAGE_SIZE};
use x86_64::instructions::{hlt, interrupts, port::PortWriteOnly};

use crate::boot::{self, Machine};
use crate::hyperv::platform::Tiny;
use crate::hyperv::pool::Spare;
use crate::hyperv::run;
use crate::serial::{self, println};

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

const HEAP_BYTES: u64 = 8 << 20;

static PLATFORM: Tiny = Tiny;

/// How the machine ends, as numbers for QEMU's `isa-debug-exit`.
#[derive(Clone, Copy)]
enum End {
    Pass = 0x10,
    Fail = 0x11,
    Panic = 0x12,
}

/// The main function.
pub(crate) fn main(machine: Machine) -> ! {
    serial::start();
    println!("tiny kernel");
    let kernel_end = start_heap();
    if machine
        .command_line()
        .split_whitespace()
        .any(|word| word == "exit=qemu")
    {
        ENDS_QEMU.store(true, Ordering::Relaxed);
    }
    match become_guest(&machine, kernel_end) {
        Ok(()) => {
            println!("@@ verdict pass");
            end(End::Pass)
        }
        Err(error) => {
            println!("@@ verdict fail {error}");
            end(End::Fail)
        }
    }
}

fn become_guest(machine: &Machine, kernel_end: u64) -> Result<(), Box<dyn Error>> {
    // The host may have whatever lies behind the heap; nobody here touches it.
    let page = PAGE_SIZE as u64;
    let spare: Vec<PageRange> = machine
        .memory()
        .filter_map(|(start, end)| {
            let start = start.max(kernel_end).next_multiple_of(page);
            PageRange::new(Gpa::new(start).page(), end.saturating_sub(start) / page)
        })
        .collect();
    let total_bytes: u64 = machine.memory().map(|(start, end)| end - start).sum();
    // In a test the way is what counts; else the host may come back with its wishes for ever.
    let is_test = ENDS_QEMU.load(Ordering::Relaxed);
    let mut last = State::Closed;
    run::run(
        run::hypervisor()?,
        &PLATFORM,
        Spare::new(spare, total_bytes / page),
        |engine: &Engine<Spare>| {
            if engine.state() != last {
                last = engine.state();
                println!("dynamic memory: {last:?}");
            }
            match last {
                State::Faulted(_) => false,
                State::Running { .. } => !is_test,
                _ => true,
            }
        },
    )?;
    match last {
        State::Faulted(fault) => Err(fault.into()),
        _ => Ok(()),
    }
}

/// Gives the memory behind the image to the heap, and returns where that ends.
fn start_heap() -> u64 {
    let start = boot::image_end().next_multiple_of(PAGE_SIZE as u64);
    let base = core::ptr::with_exposed_provenance_mut(start as usize);
    // SAFETY: the image lies in memory that goes on behind it (QEMU would not have loaded it otherwise, and `become_guest` takes none of
    // this for anything else), mapped writable.
    unsafe { HEAP.lock().init(base, HEAP_BYTES as usize) };
    start + HEAP_BYTES
}

/// Set if the command line says that there is an `isa-debug-exit`: a port that may be something else must not be touched.
static ENDS_QEMU: AtomicBool = AtomicBool::new(false);

fn end(how: End) -> ! {
    if ENDS_QEMU.load(Ordering::Relaxed) {
        let mut port = PortWriteOnly::<u32>::new(0xf4);
        // SAFETY: by the command line, this port ends QEMU.
        unsafe { port.write(how as u32) };
    }
    loop {
        interrupts::disable();
        hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    end(End::Panic)
}
