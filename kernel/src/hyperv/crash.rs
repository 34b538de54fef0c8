//! The panic's two calls to the host: the bus is unloaded, and at the very last the crash is reported.
//!
//! Neither takes a lock or memory: what they need is prepared here while the system is well.

use spin::Once;
use vmbus::hyperv::CrashMessage;
use vmbus::memory::{Gpa, SharedPages};

use super::port::PLATFORM;
use crate::console::{Style, print_by_force};
use crate::panic::{self, CrashReport};

/// The page from which the host reads the text.
static TEXT: Once<(SharedPages, Gpa)> = Once::new();

/// Prepares for a panic.
pub(super) fn arm() {
    if let Ok(pages) = SharedPages::allocate(&PLATFORM, 1)
        && let Ok(gpa) = pages.gpa()
    {
        TEXT.call_once(|| (pages, gpa));
    }
    panic::set_emergency_unload(unload);
    panic::set_crash_report(report);
}

fn unload() {
    let Some(bus) = super::bus::connected_in_emergency() else {
        return;
    };
    let confirmed = bus.emergency_unload();
    // Dropping the handle might free the connection, which a panic must not.
    core::mem::forget(bus);
    let outcome = if confirmed {
        "unloaded"
    } else {
        "not confirmed as unloaded"
    };
    print_by_force(Style::Error, format_args!("  the VMBus is {outcome}\n"));
}

fn report(report: &CrashReport<'_>) {
    let Some(hypervisor) = super::hypervisor() else { return };
    let message = TEXT.get().and_then(|(pages, gpa)| {
        pages.write_at(0, report.message).ok()?;
        Some(CrashMessage {
            gpa: *gpa,
            len_bytes: u32::try_from(report.message.len()).ok()?,
        })
    });
    let message = message.filter(|message| message.len_bytes > 0 && hypervisor.takes_crash_message());
    let mut parameters = [
        report.code,
        report.instruction,
        report.stack,
        report.address,
        report.context,
    ];
    if let Some(message) = message {
        [.., parameters[3], parameters[4]] = [message.gpa.get(), u64::from(message.len_bytes)];
    }
    let [p0, p1, p2, p3, p4] = parameters;
    print_by_force(
        Style::Plain,
        format_args!("@@ mark crash {p0:#x} {p1:#x} {p2:#x} {p3:#x} {p4:#x}\n"),
    );
    if hypervisor.report_crash(parameters, message).is_err() {
        print_by_force(Style::Error, format_args!("  the host takes no crash report\n"));
    }
}
