//! What is done and checked when a guest boots by UEFI, and when it ends the machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kernel::console::Style;
use serde_json::{Value, json};

use super::scripts::{DYNAMIC_MEMORY, nanoseconds_as_ms, report};
use super::{Script, Seen};
use crate::screen::{Picture, Shown};
use crate::vm::Vm;

/// The picture that a script leaves in the current folder, for people.
pub const PICTURE: &str = "screen.png";

/// The last line that the kernel says before it waits for keys begins so.
const KEYS: &str = "Keys: s status";
/// A word of the command line that the kernel does not know: its complaint comes before there is a framebuffer.
pub const UNKNOWN_WORD: &str = "gen2.test";

fn contains(text: &[u8], wanted: &str) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted.as_bytes())
}

/// Takes a screenshot when the kernel waits for keys, compares it with what the kernel said on the serial port, and types `q`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Screen {
    done: bool,
}

impl Screen {
    /// From the loader's first instruction to the status table on both consoles, in nanoseconds.
    const LIMIT: u64 = 100_000_000;

    fn compare(vm: &mut Vm, said: &str) -> Result<()> {
        let file = Path::new("screen.ppm");
        vm.execute("screendump", &json!({ "filename": file, "format": "ppm" }))?;
        let shown = Shown::read(&Picture::read(file)?)?;
        let first = format!("command line: unknown option \"{UNKNOWN_WORD}\"");
        ensure!(
            shown.rows.first().is_some_and(|row| row.ends_with(&first)),
            "the screen does not begin with the kernel's first line but with {:?}",
            shown.rows.first()
        );
        ensure!(
            shown.styles.first() == Some(&Some(Style::Warning)),
            "a warning is shown in the style {:?}",
            shown.styles.first()
        );
        // Before that the firmware talked on the serial port.
        let line = shown.rows.first().map_or("", String::as_str);
        let Some(start) = said.find(line) else {
            bail!("the first line of the screen was not said on the serial port: {line:?}")
        };
        shown.compare(said.get(start..).unwrap_or_default())
    }
}

impl Script for Screen {
    fn text(&mut self, vm: &mut Vm, so_far: &[u8]) -> Result<()> {
        let said = String::from_utf8_lossy(so_far);
        if self.done || !said.rsplit('\n').nth(1).is_some_and(|line| line.starts_with(KEYS)) {
            return Ok(());
        }
        self.done = true;
        // The kernel says each line on the serial port first.
        let mut result = Self::compare(vm, &said);
        for _ in 0..20 {
            if result.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            result = Self::compare(vm, &said);
        }
        // A QEMU without PNG support has no picture for people.
        let _ = vm.execute("screendump", &json!({ "filename": PICTURE, "format": "png" }));
        result?;
        vm.type_in(b"q")
    }

    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(self.done, "the kernel never waited for keys");
        let report = report(seen)?;
        let state = report.device(DYNAMIC_MEMORY).map(|device| device.state.as_str());
        ensure!(
            state == Some("running"),
            "the dynamic memory device is {state:?}, not running"
        );
        let boot = report.kernel.get("boot").and_then(Value::as_str);
        ensure!(boot == Some("uefi"), "the kernel says that it was started by {boot:?}");
        for (phase, time) in &report.phases_ns {
            figures.insert(format!("{phase} ms"), nanoseconds_as_ms(*time));
        }
        figures.insert(
            "seconds on the host's clock".to_owned(),
            seen.outcome.duration.as_secs_f64(),
        );
        let Some(time) = report.phases_ns.get("status-table") else {
            bail!("the report has no phase status-table")
        };
        ensure!(
            *time > 0 && *time <= Self::LIMIT,
            "from the loader's entry to the status table it took {time} ns, at most {} are allowed",
            Self::LIMIT
        );
        Ok(())
    }
}

/// Waits for the loader's complaint, and until the firmware has gone on.
#[derive(Clone, Debug)]
pub struct Complaint {
    wanted: &'static str,
    quit: bool,
}

impl Complaint {
    /// What the firmware says when it has the machine back.
    const NEXT: &str = "BdsDxe:";

    /// A script that waits for `wanted`, without the blanks in it.
    #[must_use]
    pub fn script(wanted: &'static str) -> Box<dyn Script> {
        Box::new(Self { wanted, quit: false })
    }
}

impl Script for Complaint {
    fn text(&mut self, vm: &mut Vm, so_far: &[u8]) -> Result<()> {
        // The firmware breaks long lines as it likes.
        let solid = |text: &str| text.split_whitespace().collect::<String>();
        let said = solid(&String::from_utf8_lossy(so_far));
        let after = |text: &str, wanted: &str| {
            let wanted = solid(wanted);
            text.find(&wanted)
                .and_then(|at| text.get(at + wanted.len()..))
                .map(str::to_owned)
        };
        let went_on = after(&said, self.wanted)
            .and_then(|rest| after(&rest, "The firmware goes on"))
            .and_then(|rest| after(&rest, Self::NEXT));
        if went_on.is_some() && !self.quit {
            self.quit = true;
            vm.quit()?;
        }
        Ok(())
    }

    fn end(&mut self, _seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(self.quit, "the loader did not say: {}", self.wanted);
        Ok(())
    }
}

/// The text must hold something.
#[derive(Clone, Copy, Debug)]
pub struct Says(pub &'static str);

impl Script for Says {
    fn end(&mut self, seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(
            contains(seen.text.as_bytes(), self.0),
            "the guest did not say: {}",
            self.0
        );
        Ok(())
    }
}

/// Lets the guest reset the machine until it has come up for the third time, always finding the host as the first time.
#[derive(Clone, Debug, Default)]
pub struct Reboots {
    /// QEMU's count: one reset may be several events.
    resets: u32,
    /// How often the guest has come up.
    boots: u32,
    quit: bool,
}

impl Reboots {
    const WANTED: u32 = 2;
}

impl Script for Reboots {
    fn event(&mut self, _vm: &mut Vm, name: &str, data: &Value) -> Result<()> {
        if name == "RESET" && data.get("guest") == Some(&Value::Bool(true)) {
            self.resets += 1;
        }
        Ok(())
    }

    fn mark(&mut self, vm: &mut Vm, name: &str, _value: &str) -> Result<()> {
        if name == "dm-running" {
            self.boots += 1;
        }
        if self.boots > Self::WANTED && self.resets >= Self::WANTED && !self.quit {
            self.quit = true;
            vm.quit()?;
        }
        Ok(())
    }

    fn end(&mut self, _seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(
            self.quit,
            "the machine was reset {} times, and dynamic memory ran {} times",
            self.resets,
            self.boots
        );
        Ok(())
    }
}
