//! The UEFI loader: brings the kernel from the EFI system partition into memory and starts it.
//!
//! On any other target this program does nothing; the logic that needs no firmware is in the library.
#![cfg_attr(target_os = "uefi", no_main, no_std)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod loader;

#[cfg(not(target_os = "uefi"))]
fn main() {
    eprintln!("This is the UEFI loader; build it with --target x86_64-unknown-uefi. `cargo run` at the root does so.");
}
