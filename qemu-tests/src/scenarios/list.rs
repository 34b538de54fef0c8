//! The list of scenarios.

use super::gen2::{Complaint, Reboots, Says, Screen};
use super::hostile::{Backtraced, BrokenRings, BusyReboots};
use super::scripts::{
    Balloon, BootTime, Connect, DYNAMIC_MEMORY, HotAdd, Nothing, OldApic, Once, OneDisk, Pressure, Speed,
};
use super::{Expect, Image, KernelFile, Scenario, Script};
use crate::image::Format;
use crate::nested::Clock;
use crate::qemu::Accelerator;

const BALLOON: &[&str] = &["-device", "hv-balloon,status-report=on"];
/// The later of two descriptions of the processor counts.
const OLD_APIC: &[&str] = &["-device", "hv-balloon,status-report=on", "-cpu", OLD_CPU];
const OLD_CPU: &str =
    "host,kvm=off,-x2apic,hv-relaxed,hv-vpindex,hv-time,hv-synic,hv-stimer,hv-vapic,hv-runtime,hv-crash";
const HOT_ADD: &[&str] = &[
    "-object",
    "memory-backend-ram,id=added,size=256M",
    "-device",
    "hv-balloon,memdev=added,status-report=on",
];

fn nothing() -> Box<dyn Script> {
    Box::new(Nothing)
}

/// What most scenarios have in common.
const COMMON: Scenario = Scenario {
    name: "",
    image: Image::Kernel,
    accelerator: Accelerator::Hyperv,
    clock: Clock::Deterministic,
    cmdline: "",
    once: true,
    reboots: false,
    memory: "128",
    cpus: 1,
    extra: BALLOON,
    expect: Expect::Pass,
    seconds: 30,
    script: nothing,
};

/// Our kernel from a disk, as most tests of the loader want it.
const DISK: Image = disk(Format::Raw, KernelFile::Whole);

const fn disk(format: Format, kernel: KernelFile) -> Image {
    Image::Uefi {
        format,
        kernel,
        graphics: true,
    }
}

/// UEFI under plain emulation: for tests that need no Hyper-V.
const UEFI_PLAIN: Scenario = Scenario {
    image: DISK,
    accelerator: Accelerator::Plain,
    memory: "256",
    extra: &[],
    expect: Expect::NoHyperv,
    seconds: 120,
    ..COMMON
};

/// Every scenario, in the order in which they run.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let mut all = direct();
    all.extend(gen2());
    all
}

/// The Gen2 way, and the ends of a machine.
fn gen2() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "uefi_plain",
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_vhdx",
            image: disk(Format::Vhdx, KernelFile::Whole),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_vhd",
            image: disk(Format::Vhd, KernelFile::Whole),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_low_memory_taken",
            cmdline: "loader.take=1-16",
            script: || Box::new(Says("free pages in 1 to 16 MiB, as loader.take says")),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_no_graphics",
            image: Image::Uefi {
                format: Format::Raw,
                kernel: KernelFile::Whole,
                graphics: false,
            },
            script: || {
                Box::new(Says(
                    "this machine has no graphics output; the kernel will talk on the serial port only",
                ))
            },
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_no_kernel",
            image: disk(Format::Raw, KernelFile::Missing),
            expect: Expect::NoKernel,
            script: || Complaint::script(r"there is no kernel: put it at \EFI\vmbus\kernel.elf"),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_truncated_kernel",
            image: disk(Format::Raw, KernelFile::Truncated),
            expect: Expect::NoKernel,
            script: || Complaint::script("it is cut off"),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_other_machine",
            image: disk(Format::Raw, KernelFile::OtherMachine),
            expect: Expect::NoKernel,
            script: || Complaint::script("it is a program for another machine"),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_too_little_memory",
            image: disk(Format::Raw, KernelFile::TooLarge),
            expect: Expect::NoKernel,
            script: || Complaint::script("not enough memory for the kernel"),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_power_off",
            cmdline: "exit=poweroff",
            expect: Expect::PowerOff,
            ..UEFI_PLAIN
        },
        Scenario {
            name: "uefi_reset",
            cmdline: "exit=reset",
            expect: Expect::Reset("ACPI's register"),
            ..UEFI_PLAIN
        },
        Scenario {
            name: "power_off",
            cmdline: "exit=poweroff",
            expect: Expect::PowerOff,
            ..COMMON
        },
        Scenario {
            name: "reset_acpi",
            cmdline: "exit=reset",
            expect: Expect::Reset("ACPI's register"),
            ..COMMON
        },
        Scenario {
            name: "reset_hypervisor",
            cmdline: "exit=reset-hypervisor",
            expect: Expect::Reset("the hypervisor's register"),
            ..COMMON
        },
        Scenario {
            name: "reset_triple_fault",
            cmdline: "exit=reset-fault",
            expect: Expect::Reset("a triple fault"),
            ..COMMON
        },
        Scenario {
            name: "reboots",
            cmdline: "exit=reset",
            reboots: true,
            expect: Expect::Script,
            script: || Box::new(Reboots::default()),
            seconds: 60,
            ..COMMON
        },
        Scenario {
            name: "uefi_nested",
            image: DISK,
            cmdline: "log=warn gen2.test",
            once: false,
            memory: "256",
            seconds: 240,
            script: || Box::new(Screen::default()),
            ..COMMON
        },
    ]
}

/// By direct boot.
fn direct() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "ground",
            image: Image::Hello,
            memory: "32",
            ..COMMON
        },
        Scenario {
            name: "ground_linux_entry",
            image: Image::HelloLinuxEntry,
            memory: "32",
            ..COMMON
        },
        Scenario {
            name: "ground_real_time",
            image: Image::Hello,
            clock: Clock::Real,
            memory: "32",
            ..COMMON
        },
        Scenario {
            name: "ground_plain",
            image: Image::Hello,
            accelerator: Accelerator::Plain,
            memory: "32",
            extra: &[],
            ..COMMON
        },
        Scenario {
            name: "plain_emulation",
            accelerator: Accelerator::Plain,
            extra: &[],
            expect: Expect::NoHyperv,
            ..COMMON
        },
        Scenario {
            name: "memory",
            cmdline: "selftest=memory",
            ..COMMON
        },
        Scenario {
            name: "tasks",
            cmdline: "selftest=tasks",
            ..COMMON
        },
        Scenario {
            name: "kmcl",
            cmdline: "selftest=kmcl",
            ..COMMON
        },
        Scenario {
            name: "storage",
            cmdline: "selftest=storage",
            script: || Box::new(OneDisk),
            ..COMMON
        },
        Scenario {
            name: "speed",
            cmdline: "selftest=speed log=warn",
            script: || Box::new(Speed::default()),
            ..COMMON
        },
        Scenario {
            name: "page_fault",
            cmdline: "selftest=page-fault",
            expect: Expect::Panic,
            ..COMMON
        },
        Scenario {
            name: "stack_overflow",
            cmdline: "selftest=stack-overflow",
            expect: Expect::Panic,
            ..COMMON
        },
        Scenario {
            name: "connect_4_0",
            cmdline: "selftest=connect vmbus.max_version=4.0",
            script: || Connect::script("4.0"),
            ..COMMON
        },
        Scenario {
            name: "connect_3_0",
            cmdline: "selftest=connect vmbus.max_version=3.0",
            script: || Connect::script("3.0"),
            ..COMMON
        },
        Scenario {
            name: "connect_2_4",
            cmdline: "selftest=connect vmbus.max_version=2.4",
            script: || Connect::script("2.4"),
            ..COMMON
        },
        Scenario {
            name: "full_ladder",
            cmdline: "selftest=connect",
            script: || Connect::script("4.0"),
            ..COMMON
        },
        Scenario {
            name: "small_memory",
            cmdline: "selftest=connect",
            memory: "32",
            script: || Connect::script("4.0"),
            ..COMMON
        },
        Scenario {
            name: "two_processors",
            cmdline: "selftest=connect,smp",
            cpus: 2,
            script: || Connect::script("4.0"),
            ..COMMON
        },
        Scenario {
            name: "old_apic",
            cmdline: "selftest=connect",
            extra: OLD_APIC,
            script: || Box::new(OldApic),
            ..COMMON
        },
        Scenario {
            name: "no_uart",
            cmdline: "selftest=connect",
            expect: Expect::SilentPass,
            ..COMMON
        },
        Scenario {
            name: "tiny_kernel",
            image: Image::TinyKernel,
            memory: "32",
            // It has no report: the offer is on the console, and the verdict says that dynamic memory runs.
            script: || Box::new(Says(DYNAMIC_MEMORY)),
            ..COMMON
        },
        Scenario {
            name: "linux_entry",
            image: Image::LinuxEntry,
            cmdline: "selftest=connect",
            script: || Connect::script("4.0"),
            ..COMMON
        },
        Scenario {
            name: "reopen",
            cmdline: "selftest=reopen",
            seconds: 60,
            ..COMMON
        },
        Scenario {
            name: "reconnect",
            cmdline: "selftest=reconnect",
            seconds: 60,
            ..COMMON
        },
        Scenario {
            name: "takeover",
            cmdline: "selftest=takeover",
            seconds: 60,
            ..COMMON
        },
        Scenario {
            name: "reconnect_2_4",
            cmdline: "selftest=reconnect vmbus.max_version=2.4",
            seconds: 60,
            ..COMMON
        },
        Scenario {
            name: "panic_interrupt",
            cmdline: "selftest=panic-interrupt",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_deferred",
            cmdline: "selftest=panic-deferred",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_task",
            cmdline: "selftest=panic-task",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_power_off",
            cmdline: "selftest=panic-task exit=poweroff",
            expect: Expect::PanicOff,
            ..COMMON
        },
        Scenario {
            name: "panic_bus_lock",
            cmdline: "selftest=panic-bus-lock",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_heap_lock",
            cmdline: "selftest=panic-heap-lock",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_memory_locks",
            cmdline: "selftest=panic-memory-locks",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_console_lock",
            cmdline: "selftest=panic-console-lock",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "panic_posting",
            cmdline: "selftest=panic-posting",
            expect: Expect::Panic,
            script: || Box::new(Backtraced),
            ..COMMON
        },
        Scenario {
            name: "storage_dies",
            cmdline: "selftest=storage-dies",
            script: || {
                Once::script(
                    "storage 5e1f7e57-0000-4000-8000-00000000dead: the controller has gone, and its disks with it",
                )
            },
            ..COMMON
        },
        Scenario {
            name: "interrupt_storm",
            cmdline: "selftest=storm",
            script: || Box::new(Says("interrupts without news")),
            ..COMMON
        },
        Scenario {
            name: "signal_storm",
            cmdline: "selftest=signals",
            script: || Box::new(Says("signals without news by a task")),
            ..COMMON
        },
        Scenario {
            name: "broken_ring",
            cmdline: "selftest=broken-ring,faulted",
            // Dynamic memory is offered by the guest to itself.
            extra: &[],
            script: || Box::new(BrokenRings::default()),
            ..COMMON
        },
        Scenario {
            name: "reset_busy",
            cmdline: "selftest=reset-busy",
            reboots: true,
            expect: Expect::Script,
            script: || Box::new(BusyReboots::default()),
            seconds: 60,
            ..COMMON
        },
        Scenario {
            name: "balloon",
            cmdline: "selftest=balloon",
            memory: "256",
            seconds: 180,
            script: || Box::new(Balloon::default()),
            ..COMMON
        },
        Scenario {
            name: "pressure",
            cmdline: "selftest=pressure",
            memory: "64",
            seconds: 240,
            script: || Box::new(Pressure::default()),
            ..COMMON
        },
        Scenario {
            name: "hot_add",
            cmdline: "selftest=hotadd",
            memory: "64,maxmem=33G",
            extra: HOT_ADD,
            seconds: 180,
            script: || Box::new(HotAdd::default()),
            ..COMMON
        },
        Scenario {
            name: "boot_time",
            cmdline: "log=warn",
            script: || Box::new(BootTime),
            ..COMMON
        },
    ]
}

/// The scenario called `name`.
#[must_use]
pub fn find(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = all().iter().map(|scenario| scenario.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(find("balloon").is_some() && find("no such").is_none());
    }
}
