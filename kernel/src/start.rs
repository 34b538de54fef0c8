//! The start, from the boot information to the first task.

use boot::command_line::Options;
use boot::{BootInfo, BootMethod};
use spin::Once;

static INFO: Once<&'static BootInfo> = Once::new();
static OPTIONS: Once<Options<'static>> = Once::new();

/// What the loader said; nothing, on the development machine.
pub fn info() -> Option<&'static BootInfo> {
    INFO.get().copied()
}

/// The options of the command line.
pub fn options() -> Options<'static> {
    OPTIONS.get().copied().unwrap_or_default()
}

/// How the kernel was started.
#[must_use]
pub fn method() -> BootMethod {
    info().map_or(BootMethod(0), |info| info.method)
}

#[cfg(target_os = "none")]
pub(crate) fn start(info: &'static BootInfo, parsed: Result<(), crate::entry::StartError>) -> ! {
    use boot::command_line::{ConsoleChoice, LogLevel};

    use crate::arch::tables;
    use crate::end::{Outcome, finish};
    use crate::memory::stack::Stack;
    use crate::time::rate;
    use crate::{console, memory, task, time};

    tables::start();
    INFO.call_once(|| info);
    let rate = rate::RateProbe::begin();
    let mut problems = 0;
    let options = OPTIONS.call_once(|| Options::parse(info.command_line(), |_| problems += 1));
    if options.console == ConsoleChoice::Serial {
        console::start_serial();
    }
    time::start(info.start_tsc, rate.finish());
    console::logger::start(options.log);
    time::reached("console");
    if let Err(error) = parsed {
        log::error!("{error}");
        finish(Outcome::Fail, "boot-info");
    }
    if problems > 0 && options.log != LogLevel::Off {
        Options::parse(info.command_line(), |problem| log::warn!("command line: {problem}"));
    }
    #[expect(unsafe_code, reason = "takes over the machine")]
    // SAFETY: Called once, from the entry, which made things so as this function wants them.
    let memory = unsafe { memory::start(info) };
    if let Err(error) = memory {
        log::error!("{error}");
        finish(Outcome::Fail, "memory");
    }
    if options.console != ConsoleChoice::None {
        let _found = console::start_framebuffer(&info.framebuffer);
    }
    time::reached("memory");
    match Stack::new(memory::stack::TASK_STACK_PAGES) {
        Ok(stack) => {
            #[expect(unsafe_code, reason = "leaves the boot stack")]
            // SAFETY: The stack is never given back, and what is on the boot stack is not used again.
            unsafe {
                task::switch::leave_for(&core::mem::ManuallyDrop::new(stack), crate::first_task)
            }
        }
        Err(error) => {
            log::error!("{error}");
            finish(Outcome::Fail, "memory")
        }
    }
}
