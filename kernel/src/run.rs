//! What the kernel does once it has started: what the command line asks for.

use crate::end::{Outcome, finish};
use crate::platform::{self, Hypervisor};
use crate::{memory, selftest, start, status, time};

/// Does what the command line asks for and ends.
pub fn run() -> ! {
    let options = start::options();
    let statistics = memory::statistics();
    log::info!(
        "started by {}, {} KiB of memory, {} KiB free, {}, clock {} ({} Hz, {})",
        start::method().name(),
        statistics.total / 1024,
        statistics.free / 1024,
        crate::arch::apic::mode(),
        time::clock_name(),
        time::tsc_hertz(),
        time::rate_source().name(),
    );
    time::reached("kernel-ready");

    if options.selftests().next().is_some() {
        match selftest::run(options.selftests(), &[]) {
            Ok(()) => finish(Outcome::Pass, ""),
            Err(failure) => {
                log::error!("self-test {failure}");
                finish(Outcome::Fail, &failure.name)
            }
        }
    }

    let hypervisor = platform::hypervisor();
    let report = status::Report::collect();
    crate::println!("{report}");
    if options.report {
        crate::println!("@@ report {}", report.to_json());
    }
    match hypervisor {
        Hypervisor::HyperV { .. } => finish(Outcome::Pass, ""),
        _ => {
            crate::println!("This is no Hyper-V: found {hypervisor}. There is nothing to connect to.");
            finish(Outcome::NoHyperV, "")
        }
    }
}
