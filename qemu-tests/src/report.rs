//! The status report: what the guest knows about itself, as one line of JSON on the serial port (`@@ report`) and in `--report FILE`.
//!
//! Fields are added, never renamed or removed; a reader ignores those that it does not know, and every field may be missing from an older
//! guest. Times are nanoseconds on the guest's clock, counted from the kernel's first instructions; memory is in bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The whole report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// What the kernel runs on, e.g. `Microsoft Hv` with its version, or what was found instead.
    pub hypervisor: serde_json::Value,
    /// The connection to the VMBus.
    pub vmbus: Vmbus,
    /// Every offered device.
    pub devices: Vec<Device>,
    /// Every disk.
    pub disks: Vec<Disk>,
    /// When which phase of the start was reached, by name: `vmbus-connected`, `dynamic-memory-running`, ...
    pub phases_ns: BTreeMap<String, u64>,
    /// Memory.
    pub memory: Memory,
    /// About the kernel itself: version, boot method, command line.
    pub kernel: serde_json::Value,
}

/// The connection to the VMBus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vmbus {
    /// The negotiated protocol version, e.g. `4.0`; missing if there is no connection.
    pub version: Option<String>,
}

/// A device that the host offered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Its name for people, e.g. `dynamic memory`.
    pub name: String,
    /// The GUID of its class.
    pub class: String,
    /// The GUID of this instance.
    pub instance: String,
    /// Its channel's number.
    pub channel: u32,
    /// `offered`, `running`, `failed`, ...
    pub state: String,
    /// Why, where it is `faulted` or `failed`; else empty.
    pub reason: String,
    /// What its channel has done, by name (packets, bytes, signals, ...); empty if the kernel has it not open.
    pub counters: BTreeMap<String, u64>,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// What its maker calls it.
    pub model: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// The GUID of its controller.
    pub controller: String,
    /// Its number there.
    pub lun: u8,
    /// `running`, `read-only`, `gone`.
    pub state: String,
    /// What its table says.
    pub partitions: Vec<Partition>,
}

/// A part of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The GUID that says what it is for.
    pub kind: String,
    /// Its first block.
    pub first: u64,
    /// Number of blocks.
    pub count: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// All that the guest has, without what it gave back to the host.
    pub total: u64,
    /// What is not in use.
    pub free: u64,
    /// What the host took away.
    pub ballooned: u64,
    /// What the host added.
    pub hot_added: u64,
}

impl Report {
    /// Understands the guest's JSON.
    ///
    /// # Errors
    ///
    /// A field has another type than it should.
    pub fn parse(value: &serde_json::Value) -> serde_json::Result<Self> {
        Self::deserialize(value)
    }

    /// The device with this class GUID, in any case.
    #[must_use]
    pub fn device(&self, class: &str) -> Option<&Device> {
        self.devices
            .iter()
            .find(|device| device.class.eq_ignore_ascii_case(class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_with_known_missing_and_unknown_fields() {
        let value = json!({
            "hypervisor": {"vendor": "Microsoft Hv"}, "vmbus": {"version": "4.0", "features": 3},
            "devices": [{"name": "dynamic memory", "class": "525074DC-8985-46E2-8057-A307DC18A502", "channel": 1, "state": "running",
                "counters": {"packets_sent": 5}}],
            "phases_ns": {"vmbus-connected": 4_000_000}, "memory": {"total": 134_217_728_u64}, "weather": "fine"
        });
        let report = Report::parse(&value).unwrap();
        assert_eq!(report.vmbus.version.as_deref(), Some("4.0"));
        assert_eq!(
            report.device("525074dc-8985-46e2-8057-a307dc18a502").unwrap().state,
            "running"
        );
        assert_eq!(report.devices[0].counters["packets_sent"], 5);
        assert_eq!(report.phases_ns["vmbus-connected"], 4_000_000);
        assert_eq!((report.memory.total, report.memory.free), (134_217_728, 0));
        assert!(Report::parse(&json!({"devices": 7})).is_err());
        assert_eq!(Report::parse(&json!({})).unwrap(), Report::default());
    }
}
