//! What the runner does while the guests of some scenarios run, and what it checks beyond verdict and status.
//!
//! Two sides are compared wherever there are two: what the guest says about itself, and what QEMU says about the guest.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Script, Seen};
use crate::report::Report;
use crate::vm::Vm;

/// The class of the dynamic memory device, from the list of VMBus class GUIDs.
pub const DYNAMIC_MEMORY: &str = "525074dc-8985-46e2-8057-a307dc18a502";

const MIB: u64 = 1 << 20;

/// Nothing beyond the verdict.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Script for Nothing {}

pub(super) fn report(seen: &Seen) -> Result<Report> {
    let value = seen
        .outcome
        .report
        .as_ref()
        .context("the guest sent no status report")?;
    Report::parse(value).context("the guest's status report does not fit the schema")
}

/// The guest must be connected with a certain version and have the dynamic memory device running.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    version: &'static str,
}

impl Connect {
    /// A script that expects `version`.
    #[must_use]
    pub fn script(version: &'static str) -> Box<dyn Script> {
        Box::new(Self { version })
    }
}

impl Script for Connect {
    fn end(&mut self, seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let report = report(seen)?;
        let version = report.vmbus.version.as_deref();
        ensure!(
            version == Some(self.version),
            "the VMBus version is {version:?}, expected {}",
            self.version
        );
        let device = report
            .device(DYNAMIC_MEMORY)
            .context("the report lists no dynamic memory device")?;
        ensure!(
            device.state == "running",
            "the dynamic memory device is {:?}, not running",
            device.state
        );
        ensure!(
            seen.text.to_ascii_lowercase().contains(DYNAMIC_MEMORY),
            "the offer's GUID is not on the console"
        );
        Ok(())
    }
}

/// As [`Connect`], with interrupts through the older interface of the APIC, in memory.
#[derive(Clone, Copy, Debug)]
pub struct OldApic;

impl Script for OldApic {
    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let apic = seen
            .outcome
            .report
            .as_ref()
            .and_then(|report| report.pointer("/kernel/apic"));
        ensure!(apic.is_some_and(|apic| apic == "xAPIC"), "the guest uses {apic:?}");
        Connect { version: "4.0" }.end(seen, figures)
    }
}

/// The report must have the disk that the test inside the guest leaves there.
#[derive(Clone, Copy, Debug)]
pub struct OneDisk;

impl Script for OneDisk {
    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let report = report(seen)?;
        let [disk] = report.disks.as_slice() else {
            anyhow::bail!("the report has {} disks", report.disks.len());
        };
        ensure!(
            (disk.bytes, disk.block_bytes, disk.lun, disk.state.as_str()) == (16 * MIB, 512, 0, "running"),
            "the disk in the report is {disk:?}"
        );
        if let Some(ns) = report.phases_ns.get("disk-found") {
            figures.insert("disk-found ms".into(), *ns as f64 / 1e6);
        }
        Ok(())
    }
}

/// What the guest measured of the callback API, in instructions, against what it should be: neither more nor less by over 3 %.
///
/// The figures hold for one compiler. With another one they are shown, and the run says that they were not checked.
#[derive(Clone, Debug, Default)]
pub struct Speed {
    measured: BTreeMap<String, f64>,
}

impl Speed {
    const RUSTC: &str = "1.95.0";
    /// A mark of the guest, and how many instructions it should name. After a change that is meant: what the test shows.
    const EXPECTED: [(&str, f64); 2] = [("speed-round-trip-64", 5323.0), ("speed-packet-64x16", 1062.0)];
    const TOLERANCE: f64 = 0.03;
}

impl Script for Speed {
    fn mark(&mut self, _vm: &mut Vm, name: &str, value: &str) -> Result<()> {
        if Self::EXPECTED.iter().any(|(expected, _)| *expected == name) {
            self.measured.insert(name.to_owned(), value.parse()?);
        }
        Ok(())
    }

    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        figures.extend(self.measured.clone());
        let report = seen
            .outcome
            .report
            .as_ref()
            .context("the guest sent no status report")?;
        let rustc = report.pointer("/kernel/rustc").and_then(Value::as_str);
        if rustc != Some(Self::RUSTC) {
            figures.insert(format!("NOT CHECKED: built by {rustc:?}, not {}", Self::RUSTC), 0.0);
            return Ok(());
        }
        for (name, expected) in Self::EXPECTED {
            let measured = self
                .measured
                .get(name)
                .with_context(|| format!("the guest did not measure {name}"))?;
            let change = measured / expected - 1.0;
            ensure!(
                change.abs() <= Self::TOLERANCE,
                "{name}: {measured} instructions, {:+.1} % of the {expected} expected",
                change * 100.0
            );
        }
        Ok(())
    }
}

/// The guest must say something once: neither never nor again and again.
#[derive(Clone, Copy, Debug)]
pub struct Once(&'static str);

impl Once {
    /// A script that looks for `wanted`.
    #[must_use]
    pub fn script(wanted: &'static str) -> Box<dyn Script> {
        Box::new(Self(wanted))
    }
}

impl Script for Once {
    fn end(&mut self, seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let count = seen.text.matches(self.0).count();
        ensure!(count == 1, "the guest said {count} times: {}", self.0);
        Ok(())
    }
}

/// Takes 64 MiB away from a guest of 256 MiB, and gives them back.
#[derive(Clone, Debug, Default)]
pub struct Balloon {
    taken: bool,
    returned: bool,
    lowest_available: Option<u64>,
}

impl Balloon {
    const FULL: u64 = 256 * MIB;
    const TAKEN: u64 = 64 * MIB;
}

impl Script for Balloon {
    fn mark(&mut self, vm: &mut Vm, name: &str, value: &str) -> Result<()> {
        match name {
            // QEMU waits 50 s after the handshake before it acts.
            "dm-running" => {
                ensure!(
                    actual(vm)? == Self::FULL,
                    "QEMU counts {} bytes at the start",
                    actual(vm)?
                );
                vm.execute("balloon", &json!({ "value": Self::FULL - Self::TAKEN }))
                    .map(drop)
            }
            "ballooned" => {
                let held = bytes(value)?;
                // Steps in between are the guest's business.
                if held == Self::TAKEN && !self.taken {
                    settle(vm, Self::FULL - held)?;
                    self.taken = true;
                    let status = vm.execute("query-hv-balloon-status-report", &Value::Null)?;
                    let field = |name: &str| {
                        status
                            .get(name)
                            .and_then(Value::as_u64)
                            .with_context(|| format!("QEMU's status report has no {name}"))
                    };
                    let (committed, available) = (field("committed")?, field("available")?);
                    ensure!(
                        available > 0 && available < Self::FULL && committed < Self::FULL,
                        "a status report that cannot be: {status}"
                    );
                    vm.execute("balloon", &json!({ "value": Self::FULL }))?;
                }
                if held == 0 && self.taken {
                    settle(vm, Self::FULL)?;
                    self.returned = true;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn event(&mut self, _vm: &mut Vm, name: &str, data: &Value) -> Result<()> {
        if let ("HV_BALLOON_STATUS_REPORT", Some(available)) = (name, data.get("available").and_then(Value::as_u64)) {
            self.lowest_available = Some(self.lowest_available.map_or(available, |lowest| lowest.min(available)));
        }
        Ok(())
    }

    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(
            self.taken,
            "the guest never held exactly {} ballooned bytes",
            Self::TAKEN
        );
        ensure!(self.returned, "the guest did not get everything back");
        ensure!(self.lowest_available.is_some(), "QEMU passed on no status report");
        let report = report(seen)?;
        ensure!(
            report.memory.ballooned == 0,
            "the guest's report still has {} ballooned bytes",
            report.memory.ballooned
        );
        figures.insert(
            "seconds on the host's clock".to_owned(),
            seen.outcome.duration.as_secs_f64(),
        );
        Ok(())
    }
}

/// Asks a guest of 64 MiB, which is in want itself, for all but 1 MiB; compares what it gives; and gives all back.
#[derive(Clone, Debug, Default)]
pub struct Pressure {
    squeezed: Option<u64>,
    returned: bool,
}

impl Pressure {
    const FULL: u64 = 64 * MIB;
    const ASKED: u64 = MIB;
}

impl Script for Pressure {
    fn mark(&mut self, vm: &mut Vm, name: &str, value: &str) -> Result<()> {
        let mut ask = |bytes: u64| vm.execute("balloon", &json!({ "value": bytes })).map(drop);
        match name {
            "hungry" => ask(Self::ASKED),
            "relaxed" => ask(Self::FULL),
            "squeezed" => {
                let held = bytes(value)?;
                ensure!(
                    held > 0 && held < Self::FULL - Self::ASKED,
                    "the guest gave {held} bytes"
                );
                self.squeezed = Some(held);
                settle(vm, Self::FULL - held)
            }
            "ballooned" if self.squeezed.is_some() && bytes(value)? == 0 => {
                self.returned = true;
                settle(vm, Self::FULL)
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, _seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let held = self.squeezed.context("the guest gave nothing")?;
        ensure!(self.returned, "the guest did not get everything back");
        figures.insert("MiB given of 63 asked for".into(), held as f64 / MIB as f64);
        Ok(())
    }
}

/// Adds 128 MiB to a guest of 64 MiB.
#[derive(Clone, Debug, Default)]
pub struct HotAdd {
    added: u64,
}

impl HotAdd {
    const START: u64 = 64 * MIB;
    const ADDED: u64 = 128 * MIB;
    /// Where QEMU puts it.
    const ADDRESS: u64 = 32 << 30;
}

impl Script for HotAdd {
    fn mark(&mut self, vm: &mut Vm, name: &str, value: &str) -> Result<()> {
        match name {
            "dm-running" => vm
                .execute("balloon", &json!({ "value": Self::START + Self::ADDED }))
                .map(drop),
            "hot-added" => {
                self.added = bytes(value)?;
                let devices = vm.execute("query-memory-devices", &Value::Null)?;
                let data = devices
                    .pointer("/0/data")
                    .with_context(|| format!("QEMU lists no memory device: {devices}"))?;
                let address = data.get("memaddr").or_else(|| data.get("addr")).and_then(Value::as_u64);
                ensure!(address == Some(Self::ADDRESS), "QEMU put the memory elsewhere: {data}");
                settle(vm, Self::START + self.added)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, seen: &Seen, _figures: &mut BTreeMap<String, f64>) -> Result<()> {
        ensure!(
            self.added == Self::ADDED,
            "{} bytes were added, not {}",
            self.added,
            Self::ADDED
        );
        let report = report(seen)?;
        ensure!(
            report.memory.hot_added == Self::ADDED,
            "the guest's report says {} added bytes",
            report.memory.hot_added
        );
        ensure!(
            report.memory.total > Self::ADDED,
            "the guest's report says {} bytes in all",
            report.memory.total
        );
        Ok(())
    }
}

/// The figures of the start, on the guest's clock.
#[derive(Clone, Copy, Debug)]
pub struct BootTime;

impl BootTime {
    /// Phase and the most that it may take, in nanoseconds.
    const LIMITS: [(&str, u64); 2] = [("vmbus-connected", 10_000_000), ("dynamic-memory-running", 20_000_000)];
}

impl Script for BootTime {
    fn end(&mut self, seen: &Seen, figures: &mut BTreeMap<String, f64>) -> Result<()> {
        let report = report(seen)?;
        for (phase, time) in &report.phases_ns {
            figures.insert(format!("{phase} ms"), nanoseconds_as_ms(*time));
        }
        for (phase, limit) in Self::LIMITS {
            let time = *report
                .phases_ns
                .get(phase)
                .with_context(|| format!("the report has no phase {phase}"))?;
            ensure!(
                time > 0 && time <= limit,
                "{phase} took {time} ns, at most {limit} are allowed"
            );
        }
        Ok(())
    }
}

pub(super) fn nanoseconds_as_ms(time: u64) -> f64 {
    std::time::Duration::from_nanos(time).as_secs_f64() * 1000.0
}

/// What QEMU thinks the guest has, in bytes.
fn actual(vm: &mut Vm) -> Result<u64> {
    let answer = vm.execute("query-balloon", &Value::Null)?;
    answer
        .get("actual")
        .and_then(Value::as_u64)
        .with_context(|| format!("QEMU's answer has no figure: {answer}"))
}

/// Waits until QEMU counts `expected` bytes for the guest: the guest's answer may still be on its way when its mark arrives.
fn settle(vm: &mut Vm, expected: u64) -> Result<()> {
    let mut counted = actual(vm)?;
    for _ in 0..100 {
        if counted == expected {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        counted = actual(vm)?;
    }
    anyhow::bail!("by the guest's account it has {expected} bytes, but QEMU counts {counted}")
}

fn bytes(value: &str) -> Result<u64> {
    value
        .parse()
        .with_context(|| format!("the guest's mark has no number of bytes: {value:?}"))
}
