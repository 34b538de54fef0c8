//! The loader's way: read the files, check the kernel, place it, collect what it needs to know, leave the firmware, jump.
//!
//! - [`files`]: the kernel and its command line on the EFI system partition;
//! - [`memory`]: pages from the firmware, and its memory map in the kernel's terms;
//! - [`graphics`]: the framebuffer;
//! - [`handoff`]: the last steps, after which there is no firmware any more.
//!
//! Until then everything that goes wrong is told on the firmware's console, and the firmware goes on with its next boot option.

mod files;
mod graphics;
mod handoff;
mod memory;

use alloc::string::String;
use core::time::Duration;

use boot::image::KernelImage;
use boot::{BootInfo, BootMethod};
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Status, boot as services, entry, println, system};

/// How long a message stays before the firmware goes on, in seconds.
const MESSAGE_SECONDS: u64 = 5;

#[entry]
fn main() -> Status {
    let start_tsc = handoff::timestamp();
    match start(start_tsc) {
        Ok(never) => match never {},
        Err(message) => {
            println!("\nvmbus loader: {message}");
            println!("The firmware goes on in {MESSAGE_SECONDS} seconds.");
            services::stall(Duration::from_secs(MESSAGE_SECONDS));
            Status::LOAD_ERROR
        }
    }
}

fn start(start_tsc: u64) -> Result<core::convert::Infallible, String> {
    // The firmware's watchdog ends a loader after five minutes; the kernel has no use for it.
    let _ = services::set_watchdog_timer(0, 0x1_0000, None);
    let files = files::read()?;
    let kernel = KernelImage::parse(&files.kernel)
        .map_err(|error| alloc::format!("cannot start {}: {error}.", files::KERNEL))?;
    let options = memory::LoaderOptions::split_from(&files.command_line)?;
    if let Some(range) = options.take {
        let pages = memory::take(range);
        println!("vmbus loader: took {pages} free pages in {range}, as loader.take says");
    }

    let image = memory::pages_for_kernel(&kernel)?;
    let info = memory::low_pages::<BootInfo>()?;
    let info = info.write(BootInfo::new());
    info.method = BootMethod::UEFI;
    info.start_tsc = start_tsc;
    info.image = image;
    info.rsdp = rsdp();
    if !info.set_command_line(options.rest.trim().as_bytes()) {
        println!(
            "vmbus loader: the command line is longer than {} bytes and was cut",
            boot::info::COMMAND_LINE_CAPACITY
        );
    }
    match graphics::framebuffer() {
        Ok(framebuffer) => info.framebuffer = framebuffer,
        Err(reason) => println!("vmbus loader: {reason}; the kernel will talk on the serial port only"),
    }
    let tables = memory::page_tables(&kernel, image)?;
    handoff::leave(info, &tables, kernel.entry())
}

/// Returns the physical address of the ACPI root pointer, or 0.
fn rsdp() -> u64 {
    system::with_config_table(|table| {
        let find = |guid| {
            table
                .iter()
                .find(|entry| entry.guid == guid)
                .map(|entry| entry.address.addr() as u64)
        };
        find(ConfigTableEntry::ACPI2_GUID)
            .or_else(|| find(ConfigTableEntry::ACPI_GUID))
            .unwrap_or(0)
    })
}

/// Puts an error of the firmware's into words.
fn firmware(what: &str) -> impl FnOnce(uefi::Error) -> String + '_ {
    move |error| alloc::format!("{what}: the firmware says {}.", error.status())
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("\nvmbus loader: a fault in the loader itself: {info}");
    services::stall(Duration::from_secs(MESSAGE_SECONDS));
    handoff::give_up()
}

#[global_allocator]
static ALLOCATOR: uefi::allocator::Allocator = uefi::allocator::Allocator;
