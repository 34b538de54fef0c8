//! What a host is like: [`Personality`], [`Config`], and what it offers: [`Offer`].

use alloc::vec::Vec;

use super::bytes::guid;

/// The hosts that the model can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Personality {
    /// Hyper-V: the whole protocol, answers errors with a status.
    HyperV,
    /// QEMU's `vmbus-bridge`: versions up to 4.0, connection 1 only, no rescind, at most 16 messages in its queue, answers
    /// without an echo of the version.
    Qemu,
    /// `OpenVMM`: versions up to 6.0, silent about most errors, looks at message slots by itself every millisecond.
    OpenVmm,
}

/// When the host does what a guest asked it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pace {
    /// Within the guest's hypercall.
    AtOnce,
    /// When the guest waits or looks at the clock, or when the test calls `Host::run`.
    Later,
}

/// What a version response carries besides "supported".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Echo {
    /// The version below 5.0, the message connection from 5.0 on.
    Present,
    /// Zeros.
    Absent,
}

/// What a host is like. Made by [`Config::new`] and changed field by field.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose behaviour in detail.
    pub personality: Personality,
    /// The newest version that is accepted, as on the wire (major number in the upper half).
    pub max_version: u32,
    /// The oldest version that is accepted.
    pub min_version: u32,
    /// The connections on which a contact is heard.
    pub contact_connections: Vec<u32>,
    /// The connection that a version response of 5.0 and later names for everything else.
    pub message_connection: u32,
    /// What a version response carries.
    pub echo: Echo,
    /// The feature flags that this host has (6.0 and later), and those it claims besides, asked or not.
    pub features: u32,
    /// Feature flags in the response that the guest did not ask for.
    pub extra_features: u32,
    /// When requests are served.
    pub pace: Pace,
    /// How many messages wait at most with [`Pace::Later`], before "insufficient buffers".
    pub queue_limit: usize,
    /// The virtual processor's number for each processor. Not the same, on purpose, with more than one.
    pub vp_indices: Vec<u32>,
    /// EAX to EDX of the leaves from 0x40000000 on.
    pub cpuid: Vec<[u32; 4]>,
    /// What the host writes as feature bits into the rings that it sends with.
    pub ring_feature_bits: u32,
    /// Units of the time stamp counter in 100 ns.
    pub tsc_per_unit: u64,
}

impl Config {
    /// A host with one processor.
    #[must_use]
    pub fn new(personality: Personality) -> Self {
        Self::with_processors(personality, 1)
    }

    /// A host with several processors.
    #[must_use]
    pub fn with_processors(personality: Personality, processors: u32) -> Self {
        let vp_indices = (0..processors)
            .map(|index| if index == 0 { 0 } else { processors - index })
            .collect();
        // "Microsoft Hv" in EBX, ECX, EDX.
        let vendor = |largest| [largest, 0x7263_694d, 0x666f_736f, 0x7648_2074];
        let interface = [0x3123_7648, 0, 0, 0];
        let config = Self {
            personality,
            max_version: 0x0006_0000,
            min_version: 0x0000_000d,
            contact_connections: [1, 4].into(),
            message_connection: 4,
            echo: Echo::Present,
            features: 0x1f,
            extra_features: 0,
            pace: Pace::AtOnce,
            queue_limit: 64,
            vp_indices,
            cpuid: Vec::new(),
            ring_feature_bits: 1,
            tsc_per_unit: 250,
        };
        match personality {
            Personality::HyperV => Self {
                cpuid: [
                    vendor(0x4000_000c),
                    interface,
                    [0x0000_4a61, 0x000a_0000, 0, 0],
                    // Partition reference counter, SynIC, timers, APIC, hypercalls, VP index, reset, reference TSC,
                    // frequencies; post messages, signal events; crash MSRs, direct timers.
                    [0x0000_0aff, 0x0000_0030, 0, 0x0008_0500],
                    // Relaxed timing, no AutoEOI.
                    [0x0000_0220, 0xfff, 0, 0],
                    [240, 1024, 0, 0],
                    [0; 4],
                    [0; 4],
                    [0; 4],
                    [0; 4],
                    [0; 4],
                    [0; 4],
                    [0; 4],
                ]
                .into(),
                ..config
            },
            Personality::Qemu => Self {
                max_version: 0x0004_0000,
                contact_connections: [1].into(),
                message_connection: 1,
                echo: Echo::Absent,
                features: 0,
                pace: Pace::Later,
                queue_limit: 16,
                cpuid: [
                    vendor(0x4000_0005),
                    interface,
                    [0x0000_3839, 0x000a_0000, 0, 0],
                    [0x0000_027f, 0x0000_0030, 0, 0x0000_0400],
                    [0x0000_0028, 0xfff, 0, 0],
                    [240, 1024, 0, 0],
                ]
                .into(),
                ..config
            },
            Personality::OpenVmm => Self {
                cpuid: [
                    vendor(0x4000_0005),
                    interface,
                    [0; 4],
                    // Without the bits for posting messages and signalling events, and without the reference TSC.
                    [0x0000_00ee, 0, 0, 0x0000_0400],
                    [0x0000_0200, 0xfff, 0, 0],
                    [240, 1024, 0, 0],
                ]
                .into(),
                ..config
            },
        }
    }

    /// Sets the newest version, `0x0005_0003` for 5.3, and the usual connection that goes with it.
    #[must_use]
    pub const fn max_version(mut self, version: u32) -> Self {
        self.max_version = version;
        self
    }

    /// Sets when requests are served.
    #[must_use]
    pub const fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }
}

/// A channel that the host offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The class, in the order of the wire.
    pub class: [u8; 16],
    /// The instance, in the order of the wire.
    pub instance: [u8; 16],
    /// The channel's flags.
    pub flags: u16,
    /// Memory-mapped input and output space, in megabytes.
    pub mmio_megabytes: u16,
    /// 120 bytes for the driver.
    pub user_defined: [u8; 120],
    /// 0 for a primary channel.
    pub subchannel_index: u16,
    /// The monitor's number, if one is allocated.
    pub monitor: Option<u8>,
    /// Whether the channel has a connection of its own for signals.
    pub is_dedicated: bool,
    /// The connection for signals; chosen by the host if not given.
    pub connection: Option<u32>,
}

impl Offer {
    /// A primary channel of a class and an instance, which are written as usual: `525074dc-8985-46e2-8057-a307dc18a502`.
    ///
    /// # Panics
    ///
    /// If one of them is not a GUID.
    #[must_use]
    pub fn new(class: &str, instance: &str) -> Self {
        Self {
            class: guid(class),
            instance: guid(instance),
            flags: 0,
            mmio_megabytes: 0,
            user_defined: [0; 120],
            subchannel_index: 0,
            monitor: None,
            is_dedicated: true,
            connection: None,
        }
    }

    /// The offer's message, 196 bytes.
    pub(super) fn message(&self, channel: u32, connection: u32) -> Vec<u8> {
        super::bytes::join(&[
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &self.class,                                 // 8
            &self.instance,                              // 24
            &[0; 16],                                    // 40
            &self.flags.to_le_bytes(),                   // 56
            &self.mmio_megabytes.to_le_bytes(),          // 58
            &self.user_defined,                          // 60
            &self.subchannel_index.to_le_bytes(),        // 180
            &[0; 2],                                     // 182
            &channel.to_le_bytes(),                      // 184
            &[self.monitor.unwrap_or(0xff)],             // 188
            &[u8::from(self.monitor.is_some())],         // 189
            &u16::from(self.is_dedicated).to_le_bytes(), // 190
            &connection.to_le_bytes(),                   // 192
        ])
    }
}
