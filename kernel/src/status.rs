//! The status: a table for people, one line of JSON for machines.
//!
//! Schema of the JSON: `hypervisor` (text), `vmbus` (`version`, text or null), `devices` (list of `name`, `class`,
//! `instance`, `channel`, `state`, `reason` where it is `faulted` or `failed`, and `counters` by name where the kernel has its channel open; a channel that is open within this
//! kernel has an entry for each end), `disks` (list of `model`, `bytes`, `block_bytes`, `controller`, `lun`, `state`, and `partitions`,
//! a list of `number`, `name`, `kind`, `first`, `count`), `phases_ns` (nanoseconds since the first instruction by name), `memory` (`total`, `free`,
//! `ballooned`, `hot_added`, in bytes), `kernel` (`version`, `rustc`, `boot`, `clock`, `clock_hz`, `clock_source`, `timer`, `apic`, `processors`,
//! `interrupts`, `heap_bytes`).

use crate::acpi::madt;
use crate::arch::{apic, interrupts};
use crate::files::Partition;
use crate::memory::frames::Statistics;
use crate::{hyperv, memory, start, task, time};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use vmbus::kmcl::Counters;

/// Says for machines that a point has been reached, if a machine listens.
pub fn mark(name: &str, value: fmt::Arguments<'_>) {
    let options = start::options();
    if options.report || options.selftests().next().is_some() {
        crate::println!("@@ mark {name} {value}");
    }
}

/// A device on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, or its class where it has none.
    pub name: String,
    /// GUID of its class.
    pub class: String,
    /// GUID of this one.
    pub instance: String,
    /// Number of its channel.
    pub channel: u32,
    /// What became of it: `offered`, `running`, ...
    pub state: String,
    /// Why, where that is worth a word: what the host broke, or what could not be opened.
    pub reason: Option<String>,
    /// What its channel has done, while the kernel has it open.
    pub counters: Option<Counters>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRow {
    /// What its maker calls it.
    pub model: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// GUID of its controller.
    pub controller: String,
    /// Its number there.
    pub lun: u8,
    /// What became of it: `running`, `read-only`, `gone`.
    pub state: &'static str,
    /// What its table says.
    pub partitions: Vec<Partition>,
}

/// The status of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the kernel runs on.
    pub hypervisor: String,
    /// Version of the protocol, once connected.
    pub vmbus_version: Option<String>,
    /// Devices on the bus.
    pub devices: Vec<Device>,
    /// Disks.
    pub disks: Vec<DiskRow>,
    /// Nanoseconds since the first instruction.
    pub phases: Vec<(&'static str, u64)>,
    /// Memory.
    pub memory: Statistics,
    /// The kernel itself: name and value.
    pub kernel: Vec<(&'static str, Value)>,
}

/// A value in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl Report {
    /// What the kernel knows of itself and of the bus.
    #[must_use]
    pub fn collect() -> Self {
        let text = |text: &str| Value::Text(text.to_string());
        let bus = hyperv::bus::connected();
        let processors = madt::present().map_or(1, |found| found.ids().len() + found.more);
        Self {
            hypervisor: hyperv::Description.to_string(),
            vmbus_version: bus.as_ref().map(|bus| bus.version().to_string()),
            devices: hyperv::devices::rows(bus.as_ref()),
            disks: hyperv::storage::rows(),
            phases: time::phases(),
            memory: memory::statistics(),
            kernel: [
                ("version", text(env!("CARGO_PKG_VERSION"))),
                ("rustc", text(env!("KERNEL_RUSTC"))),
                ("boot", text(start::method().name())),
                ("clock", text(time::clock_name())),
                ("clock_hz", Value::Number(time::tsc_hertz())),
                ("clock_source", text(time::rate_source().name())),
                ("timer", text(time::timer::name())),
                ("apic", text(apic::mode())),
                ("processors", Value::Number(processors as u64)),
                ("interrupts", Value::Number(interrupts::total())),
                ("tasks", Value::Number(task::count() as u64)),
                ("heap_bytes", Value::Number(memory::heap::usage().1)),
            ]
            .to_vec(),
        }
    }

    /// One line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        // Writing to a string fails only where formatting does, which none of this does.
        let _ = self.write_json(&mut out);
        out
    }

    fn write_json(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{{\"hypervisor\":{},\"vmbus\":{{\"version\":",
            Quoted(&self.hypervisor)
        )?;
        match &self.vmbus_version {
            Some(version) => write!(out, "{}", Quoted(version))?,
            None => out.push_str("null"),
        }
        out.push_str("},\"devices\":[");
        for (index, device) in self.devices.iter().enumerate() {
            write!(
                out,
                "{}{{\"name\":{},\"class\":{},\"instance\":{},\"channel\":{},\"state\":{}",
                comma(index),
                Quoted(&device.name),
                Quoted(&device.class),
                Quoted(&device.instance),
                device.channel,
                Quoted(&device.state),
            )?;
            if let Some(reason) = &device.reason {
                write!(out, ",\"reason\":{}", Quoted(reason))?;
            }
            if let Some(counters) = &device.counters {
                out.push_str(",\"counters\":{");
                for (index, (name, value)) in counters.iter().enumerate() {
                    write!(out, "{}{}:{value}", comma(index), Quoted(name))?;
                }
                out.push('}');
            }
            out.push('}');
        }
        out.push_str("],\"disks\":[");
        for (index, disk) in self.disks.iter().enumerate() {
            disk.write_json(index, out)?;
        }
        out.push_str("],\"phases_ns\":{");
        for (index, (name, ns)) in self.phases.iter().enumerate() {
            write!(out, "{}{}:{ns}", comma(index), Quoted(name))?;
        }
        let Statistics {
            total,
            free,
            ballooned,
            hot_added,
            bookkeeping: _,
        } = self.memory;
        write!(
            out,
            "}},\"memory\":{{\"total\":{total},\"free\":{free},\"ballooned\":{ballooned},\"hot_added\":{hot_added}}},\"kernel\":{{"
        )?;
        for (index, (name, value)) in self.kernel.iter().enumerate() {
            write!(out, "{}{}:", comma(index), Quoted(name))?;
            match value {
                Value::Text(text) => write!(out, "{}", Quoted(text))?,
                Value::Number(number) => write!(out, "{number}")?,
            }
        }
        out.push_str("}}");
        Ok(())
    }
}

impl DiskRow {
    fn write_json(&self, index: usize, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{}{{\"model\":{},\"bytes\":{},\"block_bytes\":{},\"controller\":{},\"lun\":{},\"state\":{},\"partitions\":[",
            comma(index),
            Quoted(&self.model),
            self.bytes,
            self.block_bytes,
            Quoted(&self.controller),
            self.lun,
            Quoted(self.state),
        )?;
        for (index, partition) in self.partitions.iter().enumerate() {
            write!(
                out,
                "{}{{\"number\":{},\"name\":{},\"kind\":{},\"first\":{},\"count\":{}}}",
                comma(index),
                partition.number,
                Quoted(&partition.name),
                Quoted(&partition.kind),
                partition.first,
                partition.count,
            )?;
        }
        out.push_str("]}");
        Ok(())
    }

    fn write_table(&self, index: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {index:<4} {:<34} {:>10} {:>6}  {:>3}  {}",
            self.model,
            Size(self.bytes).to_string(),
            self.block_bytes,
            self.lun,
            self.state
        )?;
        writeln!(f, "       on {}", self.controller)?;
        for partition in &self.partitions {
            let bytes = partition.count.saturating_mul(u64::from(self.block_bytes));
            writeln!(
                f,
                "       {:>3}  {:<29} {:>10}",
                partition.number,
                partition.name,
                Size(bytes).to_string()
            )?;
        }
        Ok(())
    }
}

const fn comma(index: usize) -> &'static str {
    if index == 0 { "" } else { "," }
}

/// Text as a JSON string.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                '\0'..='\x1f' | '\x7f' => write!(f, "\\u{:04x}", u32::from(character))?,
                _ => f.write_char(character)?,
            }
        }
        f.write_char('"')
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = "-".repeat(WIDTH);
        writeln!(f, "{rule}")?;
        let mut row = |name: &str, value: fmt::Arguments<'_>| writeln!(f, "  {name:<14} {value}");
        row("hypervisor", format_args!("{}", self.hypervisor))?;
        row(
            "VMBus",
            format_args!("{}", self.vmbus_version.as_deref().unwrap_or("not connected")),
        )?;
        let Statistics {
            total,
            free,
            ballooned,
            hot_added,
            ..
        } = self.memory;
        row(
            "memory",
            format_args!(
                "{} total, {} free, {} ballooned, {} added",
                Size(total),
                Size(free),
                Size(ballooned),
                Size(hot_added)
            ),
        )?;
        let known = |name: &str| self.kernel.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        if let (Some(version), Some(boot), Some(processors)) = (known("version"), known("boot"), known("processors")) {
            row(
                "kernel",
                format_args!("{version}, booted by {boot}, processors found: {processors}"),
            )?;
        }
        if let (Some(clock), Some(Value::Number(hertz)), Some(source)) =
            (known("clock"), known("clock_hz"), known("clock_source"))
        {
            let (mhz, khz) = (hertz / 1_000_000, hertz / 1000 % 1000);
            row("clock", format_args!("{clock}; TSC {mhz}.{khz:03} MHz ({source})"))?;
        }
        if let (Some(apic), Some(timer)) = (known("apic"), known("timer")) {
            row("interrupts", format_args!("{apic}; timer: {timer}"))?;
        }
        if !self.phases.is_empty() {
            writeln!(f, "{rule}\n  {:<24} {:>14}", "phase", "reached at")?;
            for (name, ns) in &self.phases {
                writeln!(f, "  {name:<24} {:>8}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000)?;
            }
        }
        if !self.devices.is_empty() {
            writeln!(
                f,
                "{rule}\n  {:<20} {:<36} {:>7}  state",
                "device", "instance", "channel"
            )?;
            for device in &self.devices {
                let Device {
                    name,
                    instance,
                    channel,
                    state,
                    reason,
                    counters,
                    class: _,
                } = device;
                writeln!(f, "  {name:<20} {instance:<36} {channel:>7}  {state}")?;
                if let Some(reason) = reason {
                    writeln!(f, "    {state}: {reason}")?;
                }
                if let Some(counters) = counters {
                    write_counters(f, counters)?;
                }
            }
        }
        if !self.disks.is_empty() {
            writeln!(
                f,
                "{rule}\n  {:<4} {:<34} {:>10} {:>6}  {:>3}  state",
                "disk", "model", "size", "block", "LUN"
            )?;
            for (index, disk) in self.disks.iter().enumerate() {
                disk.write_table(index, f)?;
            }
        }
        f.write_str(&rule)
    }
}

/// A channel's counters under its device, two to a line; those that are 0 are left out.
fn write_counters(f: &mut fmt::Formatter<'_>, counters: &Counters) -> fmt::Result {
    let mut in_line = 0;
    for (name, value) in counters.iter().filter(|(_, value)| *value != 0) {
        write!(f, "{}{name:<21} {value:>12}", if in_line == 0 { "    " } else { "  " })?;
        in_line += 1;
        if in_line == 2 {
            f.write_char('\n')?;
            in_line = 0;
        }
    }
    if in_line == 0 { Ok(()) } else { f.write_char('\n') }
}

/// Width of the table; it fits into 80 columns.
const WIDTH: usize = 78;

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 30 => write!(f, "{} GiB", bytes >> 30),
            bytes if bytes >= 10 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes => write!(f, "{} KiB", bytes >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            hypervisor: "Hyper-V".into(),
            vmbus_version: Some("4.0".into()),
            devices: vec![Device {
                name: "dynamic \"memory\"\n".into(),
                class: "525074dc-8985-46e2-8057-a307dc18a502".into(),
                instance: "1eccfd72-4b41-45ef-b73a-4a6e44c12924".into(),
                channel: 1,
                state: "running".into(),
                reason: None,
                counters: None,
            }],
            disks: vec![],
            phases: vec![("connected", 1_234_567)],
            memory: Statistics {
                total: 64 << 20,
                free: 1 << 20,
                ballooned: 4096,
                hot_added: 0,
                bookkeeping: 8192,
            },
            kernel: vec![
                ("boot", Value::Text("pvh".into())),
                ("processors", Value::Number(2)),
                ("version", Value::Text("1.2.3".into())),
                ("clock", Value::Text("tsc".into())),
                ("clock_hz", Value::Number(2_400_050_000)),
                ("clock_source", Value::Text("measured".into())),
            ],
        }
    }

    #[test]
    fn the_json_is_what_the_schema_says() {
        assert_eq!(
            report().to_json(),
            "{\"hypervisor\":\"Hyper-V\",\"vmbus\":{\"version\":\"4.0\"},\"devices\":[{\"name\":\"dynamic \\\"memory\\\"\\u000a\",\
             \"class\":\"525074dc-8985-46e2-8057-a307dc18a502\",\"instance\":\"1eccfd72-4b41-45ef-b73a-4a6e44c12924\",\
             \"channel\":1,\"state\":\"running\"}],\"disks\":[],\"phases_ns\":{\"connected\":1234567},\"memory\":{\"total\":67108864,\
             \"free\":1048576,\"ballooned\":4096,\"hot_added\":0},\"kernel\":{\"boot\":\"pvh\",\"processors\":2,\"version\":\"1.2.3\",\"clock\":\"tsc\",\"clock_hz\":2400050000,\"clock_source\":\"measured\"}}"
        );
        let empty = Report {
            vmbus_version: None,
            devices: vec![],
            phases: vec![],
            kernel: vec![],
            ..report()
        };
        assert!(
            empty
                .to_json()
                .contains("\"vmbus\":{\"version\":null},\"devices\":[],\"disks\":[],\"phases_ns\":{},")
        );
    }

    #[test]
    fn a_channels_counters_stand_with_its_device() {
        let mut report = report();
        let counters = report.devices[0].counters.insert(Counters::default());
        counters.packets_sent = 7;
        counters.bytes_received = u64::from(u32::MAX);
        counters.outgoing_outstanding = 1;
        let json = report.to_json();
        assert!(
            json.contains("\"state\":\"running\",\"counters\":{\"packets_sent\":7,\"bytes_sent\":0,"),
            "{json}"
        );
        assert!(
            json.contains("\"outgoing_outstanding\":1}}],\"disks\":[],\"phases_ns\""),
            "{json}"
        );
        let text = report.to_string();
        assert!(
            text.contains("    packets_sent                     7  bytes_received          4294967295\n    outgoing_outstanding             1\n"),
            "{text}"
        );
        assert!(
            text.contains("  kernel         1.2.3, booted by pvh, processors found: 2\n"),
            "{text}"
        );
        assert!(
            text.contains("  clock          tsc; TSC 2400.050 MHz (measured)\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn a_faulted_channel_stands_with_its_reason() {
        let mut report = report();
        let faulted = Device {
            name: "SCSI".into(),
            state: "faulted".into(),
            reason: Some(vmbus::kmcl::Gone::Corrupt.to_string()),
            ..report.devices[0].clone()
        };
        report.devices = vec![faulted];
        let json = report.to_json();
        assert!(
            json.contains("\"state\":\"faulted\",\"reason\":\"the peer broke the ring\"}]"),
            "{json}"
        );
        let text = report.to_string();
        assert!(
            text.contains(" 1  faulted\n    faulted: the peer broke the ring\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn the_table_is_aligned_and_fits_the_screen() {
        let mut report = report();
        report.devices[0].name = "dynamic memory".into();
        let text = report.to_string();
        assert!(text.contains("  connected                       1.234 ms\n"), "{text}");
        assert!(
            text.contains("  memory         64 MiB total, 1024 KiB free, 4 KiB ballooned, 0 KiB added\n"),
            "{text}"
        );
        assert!(
            text.contains("  kernel         1.2.3, booted by pvh, processors found: 2\n"),
            "{text}"
        );
        assert!(
            text.contains("  clock          tsc; TSC 2400.050 MHz (measured)\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn disks_stand_with_their_partitions() {
        let partition = Partition {
            number: 1,
            name: "EFI system".into(),
            kind: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b".into(),
            first: 2048,
            count: 131_072,
        };
        let disk = DiskRow {
            model: "Msft Virtual Disk".into(),
            bytes: 127 << 30,
            block_bytes: 512,
            controller: "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f".into(),
            lun: 3,
            state: "running",
            partitions: vec![partition],
        };
        let report = Report {
            disks: vec![disk],
            ..report()
        };
        let json = report.to_json();
        assert!(
            json.contains(
                "\"disks\":[{\"model\":\"Msft Virtual Disk\",\"bytes\":136365211648,\"block_bytes\":512,\
                 \"controller\":\"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f\",\"lun\":3,\"state\":\"running\",\
                 \"partitions\":[{\"number\":1,\"name\":\"EFI system\",\
                 \"kind\":\"c12a7328-f81f-11d2-ba4b-00a0c93ec93b\",\"first\":2048,\"count\":131072}]}]"
            ),
            "{json}"
        );
        let text = report.to_string();
        assert!(
            text.contains(
                "  disk model                                    size  block  LUN  state\n\
                 \x20 0    Msft Virtual Disk                     127 GiB    512    3  running\n\
                 \x20      on ba6163d9-04a1-4d29-b605-72e2ffb1dc7f\n\
                 \x20        1  EFI system                        64 MiB\n"
            ),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
