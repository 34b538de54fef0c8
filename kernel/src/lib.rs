//! A unikernel that boots as a Hyper-V guest and uses all of `vmbus`.
//!
//! From the first instruction on: `entry` (machine code of the three entries) → [`start`] (boot information, console, memory) →
//! `first_task` (exceptions on their own stacks, interrupts, clock, tasks) → [`run`] (what the command line asks for).
//!
//! - [`arch`]: the processor, exceptions, interrupts; [`memory`]: frames, page tables, heap; [`console`]: text and log; [`time`]: clock,
//!   deadlines, timer; [`task`]: tasks and deferred work; [`sync`]: the lock that interrupts may take;
//! - [`files`]: partitions and files on disks;
//! - [`acpi`]: the tables that the kernel reads; [`hyperv`]: the binding to `vmbus`; [`power`]: power off and reset;
//! - [`status`]: the table and the report; `selftest` (feature): tests inside the guest; [`panic`](mod@panic) and [`end`]: the two ways to stop.
//!
//! What is logic runs in unit tests on the development machine; what only makes sense on the machine itself is compiled for it alone.
#![cfg_attr(not(test), no_std)]

#[cfg(all(target_os = "none", target_feature = "sse"))]
compile_error!("the kernel neither turns vector registers on nor saves them: build it for x86_64-unknown-none");

extern crate alloc;

pub mod acpi;
pub mod arch;
pub mod console;
pub mod end;
#[cfg(target_os = "none")]
pub mod entry;
pub mod files;
pub mod hyperv;
pub mod memory;
pub mod panic;
pub mod power;
pub mod run;
#[cfg(any(test, feature = "selftest"))]
pub mod selftest;
pub mod start;
pub mod status;
pub mod sync;
pub mod task;
pub mod time;

/// The first task: what is left of the start once there are memory and a stack with a guard page.
#[cfg(target_os = "none")]
extern "C" fn first_task() -> ! {
    use end::{Outcome, finish};

    task::start("main");
    if let Err(error) = arch::tables::load_stacks() {
        log::error!("no memory for the exceptions' stacks: {error}");
        finish(Outcome::Fail, "memory");
    }
    if let Err(error) = arch::apic::start() {
        log::warn!("no interrupts, everything polls: {error}");
    }
    arch::cpu::enable_interrupts();
    time::reached("interrupts");
    run::run()
}

#[cfg(test)]
mod tests {
    /// Built with vector registers all the same, by flags, the kernel is no kernel: the compiler says why.
    #[test]
    fn b8_a_kernel_with_vector_registers_is_not_compiled() {
        let is_refused = |flags: &[&str]| {
            let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
            // Without the crates that it needs there are other errors, too.
            let output = std::process::Command::new(compiler)
                .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "-o"])
                .arg(std::env::temp_dir().join("b8_no_kernel.rmeta"))
                .args(["--target", "x86_64-unknown-none"])
                .args(flags)
                .arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"))
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stderr).contains("error: the kernel neither turns vector registers on")
        };
        assert!(is_refused(&["-C", "target-feature=+sse"]));
        assert!(!is_refused(&[]), "nothing else is refused for it");
    }

    /// What is compiled for this target cannot contain vector instructions, in the early boot or anywhere else.
    #[test]
    fn b8_the_target_of_the_kernel_has_no_vector_registers() {
        let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let output = std::process::Command::new(compiler)
            .args(["--print", "cfg", "--target", "x86_64-unknown-none"])
            .output()
            .unwrap();
        let cfg = String::from_utf8(output.stdout).unwrap();
        assert!(cfg.contains("target_arch=\"x86_64\""), "{cfg}");
        for feature in ["mmx", "sse", "sse2", "avx", "x87"] {
            assert!(!cfg.contains(&format!("target_feature=\"{feature}\"")), "{cfg}");
        }
    }
}
