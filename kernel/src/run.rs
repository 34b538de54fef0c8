//! What the kernel does once it has started: what the command line asks for.

use alloc::format;
use alloc::vec::Vec;

use boot::command_line::Options;

use crate::end::{Outcome, finish, restart};
use crate::files::{self, FilePath, show::AnyDisk};
use crate::hyperv::bus::BusError;
use crate::hyperv::dynamic_memory::{self, Wish};
use crate::hyperv::{self, NotHyperV, bus, storage};
use crate::time::Deadline;
use crate::{console, memory, power, start, status, task, time};

/// How long the devices may take to start before the status table is shown all the same, in milliseconds.
const DEVICES_MS: u64 = 5000;

/// Does what the command line asks for and ends.
pub fn run() -> ! {
    let options = start::options();
    let statistics = memory::statistics();
    log::info!(
        "started by {}, {} KiB of memory, {} KiB free, {}, time stamp counter at {} Hz ({})",
        start::method().name(),
        statistics.total / 1024,
        statistics.free / 1024,
        crate::arch::apic::mode(),
        time::tsc_hertz(),
        time::rate_source().name(),
    );
    time::reached("kernel-ready");

    let connected = bus::start();
    match &connected {
        Ok(bus) => {
            log::info!("{}, VMBus {}", hyperv::Description, bus.version());
            for offer in bus.offers() {
                log::info!("{offer}");
            }
        }
        // Without Hyper-V tests of the kernel itself still make sense.
        Err(BusError::NotHyperV(_)) => {}
        Err(error) => log::error!("{error}"),
    }
    // Before anything else that may panic: a panic ends the machine as well, and cannot look for the way.
    if let Err(error) = power::prepare() {
        log::debug!("the machine cannot be switched off: {error}");
    }
    if let Err(error) = dynamic_memory::start() {
        log::error!("dynamic memory: {error}");
    }
    if let Err(error) = storage::start() {
        log::error!("storage: {error}");
    }

    if options.selftests().next().is_some() {
        self_test(&options);
    }

    if connected.is_ok() {
        dynamic_memory::wish(Wish::Open);
        dynamic_memory::await_wish(Deadline::after_ms(DEVICES_MS));
        storage::await_disks(Deadline::after_ms(DEVICES_MS));
    }
    if let Some(path) = options.show {
        show(path);
    }
    crate::println!("{}", status::Report::collect());
    time::reached("status-table");
    report();
    match connected {
        Ok(_) if options.once => finish(Outcome::Pass, ""),
        Ok(_) => converse(),
        Err(BusError::NotHyperV(reason)) => {
            crate::println!("This is no Hyper-V: {reason}. There is nothing to connect to.");
            if matches!(reason, NotHyperV::Other { vendor, .. } if vendor.bytes().starts_with(b"KVM")) {
                crate::println!(
                    "QEMU's KVM can be one: -cpu host,kvm=off,hv-relaxed,hv-vpindex,hv-time,hv-synic,hv-stimer,hv-vapic"
                );
                crate::println!("and -device vmbus-bridge -device hv-balloon.");
            }
            finish(Outcome::NoHyperV, "")
        }
        Err(error) => finish(Outcome::Fail, &format!("{error}")),
    }
}

/// Prints what is at `path` on the disks that there are.
fn show(path: &str) {
    let parsed = match FilePath::parse(path) {
        Ok(parsed) => parsed,
        Err(error) => return log::warn!("show={path}: {error}"),
    };
    let mut disks = storage::disks();
    let mut disks: Vec<&mut AnyDisk<'_>> = disks.iter_mut().map(|disk| disk as &mut AnyDisk<'_>).collect();
    match files::show::show(&mut disks, &parsed) {
        Ok(shown) => crate::println!("{parsed}:\n{shown}"),
        Err(error) => log::warn!("{parsed}: {error}"),
    }
}

/// Runs the tests that the command line names, and ends.
#[cfg(any(test, feature = "selftest"))]
fn self_test(options: &Options<'_>) -> ! {
    let result = crate::selftest::run(options.selftests());
    report();
    match result {
        Ok(()) => finish(Outcome::Pass, ""),
        Err(failure) => {
            log::error!("self-test {failure}");
            finish(Outcome::Fail, &failure.name)
        }
    }
}

#[cfg(not(any(test, feature = "selftest")))]
fn self_test(_: &Options<'_>) -> ! {
    log::error!("this kernel has no self-tests: build it with the feature `selftest`");
    finish(Outcome::Fail, "no self-tests in this kernel")
}

/// Prints the report for machines, if it is wanted.
fn report() {
    if start::options().report {
        crate::println!("@@ report {}", status::Report::collect().to_json());
    }
}

/// Talks with the person at the serial console until they end it. Without one there is nobody to talk with, and the drivers go on.
fn converse() -> ! {
    const HELP: &str = "Keys: s status, q power off, r reset, p panic (to see one), h help.";
    if !console::has_serial() {
        crate::println!("No keys: they come by the serial port, and this machine has none (Hyper-V: Set-VMComPort).");
        loop {
            task::wait_until(Deadline::Never, || false);
        }
    }
    crate::println!("{HELP}");
    loop {
        let mut key = None;
        task::wait_until(Deadline::after_ms(50), || {
            key = console::read_byte();
            key.is_some()
        });
        match key {
            None => {}
            Some(b's') => crate::println!("{}", status::Report::collect()),
            Some(b'q') => finish(Outcome::Pass, ""),
            Some(b'r') => restart(),
            Some(b'p') => wanted_panic(),
            Some(_) => crate::println!("{HELP}"),
        }
    }
}

#[expect(clippy::panic, reason = "the person at the console asks for one")]
fn wanted_panic() -> ! {
    panic!("wanted by the person at the console")
}
