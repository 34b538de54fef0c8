//! Makes images, brings up hosts, runs the guest, and proves on any developer's machine that it works.
//!
//! What `cargo run` does is in [`cli`] and [`session`]; what `cargo test` does with virtual machines is in [`scenarios`] and [`harness`]. Both
//! stand on [`vm`] (one machine: [`qemu`], [`qmp`], [`guest`]) and on a [`host`]: this machine's KVM, or the [`nested`] host. [`tools`] finds
//! the programs or gets them, [`mod@build`] makes the kernel, [`pvh`] and [`linux64`] make small boot images;
//! [`image`] makes whole disks.

pub mod build;
pub mod cli;
pub mod guest;
pub mod harness;
pub mod host;
pub mod image;
pub mod linux64;
pub mod nested;
pub mod process;
pub mod progress;
pub mod pvh;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod scenarios;
pub mod session;
pub mod tools;
pub mod vm;
