//! Makes images, brings up hosts, runs the guest, and proves on any developer's machine that it works.
//!
//! What `cargo run` does is in [`cli`] and [`session`]; what `cargo test` does with virtual machines is in [`scenarios`] and [`harness`]. Both
//! stand on [`vm`] (one machine: [`qemu`], [`qmp`], [`guest`]) and on a [`host`]: this machine's KVM, or the [`nested`] host. [`tools`] finds
//! the programs or gets them, [`mod@build`] makes kernel and loader, [`pvh`] and [`linux64`] make small boot images; [`image`] makes whole
//! disks, [`uefi`] boots from them, [`screen`] reads what they show. [`openvmm`] is another monitor in QEMU's place.

pub mod build;
pub mod cli;
pub mod fuzz;
pub mod guest;
pub mod harness;
pub mod host;
pub mod image;
pub mod linux64;
pub mod logs;
pub mod nested;
pub mod openvmm;
pub mod process;
pub mod progress;
pub mod pvh;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod scenarios;
pub mod screen;
pub mod session;
pub mod terminal;
pub mod tools;
pub mod uefi;
pub mod vm;
