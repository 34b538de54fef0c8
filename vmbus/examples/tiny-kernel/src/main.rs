//! A tiny kernel, in the style of the well-known tutorials, that is a Hyper-V guest: one address space in which every address is
//! its own physical address, a heap, a serial port, no interrupts, no tasks.
//!
//! - [`hyperv`]: all that `vmbus` needs of it, and the loop that uses `vmbus`. The crate's README walks through this file.
//! - [`boot`]: the first instructions, the page tables, and what the machine says of its memory.
//! - [`kernel`]: heap, panic handler, the main function and the end.
//! - [`serial`]: `println!` and the log, on the first serial port.
//!
//! Build it with `cargo build --package tiny-kernel --target x86_64-unknown-none --release`, and boot it as QEMU's `-kernel`. On
//! any other target it is an empty program, so that a workspace builds everywhere.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod hyperv;
#[cfg(target_os = "none")]
mod kernel;
#[cfg(target_os = "none")]
#[macro_use]
mod serial;

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a kernel: build it for x86_64-unknown-none.");
}
