//! What the hypervisor says of itself in the CPUID leaves from 0x40000000 on: [`Capabilities`].
//!
//! Source: TLFS, "Feature and Interface Discovery". Bits that we do not know are kept, not dropped.

use core::fmt;

use bitflags::bitflags;

use super::machine::{Cpuid, Machine};

/// Leaf 1, ECX: the program runs under a hypervisor.
const UNDER_A_HYPERVISOR: u32 = 1 << 31;
const LEAF_VENDOR: u32 = 0x4000_0000;
const LEAF_INTERFACE: u32 = 0x4000_0001;
const LEAF_VERSION: u32 = 0x4000_0002;
const LEAF_FEATURES: u32 = 0x4000_0003;
const LEAF_RECOMMENDATIONS: u32 = 0x4000_0004;
const LEAF_LIMITS: u32 = 0x4000_0005;
const LEAF_NESTED: u32 = 0x4000_000a;
const LEAF_ISOLATION: u32 = 0x4000_000c;
/// The last leaf that a hypervisor of any make can mean by "my largest leaf".
const LAST_LEAF: u32 = 0x4000_ffff;
/// `Hv#1`: the interface that the TLFS describes.
const INTERFACE_HV1: u32 = u32::from_le_bytes(*b"Hv#1");

/// Why this is not a machine under Hyper-V.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotHyperV {
    /// The processor does not say that a hypervisor is there.
    #[error("no hypervisor found")]
    NoHypervisor,
    /// Another hypervisor.
    #[error("running under {vendor}, which has no Hyper-V interface")]
    Other {
        /// The vendor's signature, `KVMKVMKVM` for example.
        vendor: Signature<12>,
        /// The interface signature; `Hv#1` would be Hyper-V's.
        interface: Signature<4>,
    },
}

/// A signature from CPUID: text in a fixed number of bytes, which the hypervisor chooses and which may be anything.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature<const LEN: usize>([u8; LEN]);

impl<const LEN: usize> Signature<LEN> {
    /// Makes a signature from its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl<const LEN: usize> fmt::Display for Signature<LEN> {
    /// Writes the text without the zeros at its end. Bytes that are not printable ASCII are written as `\x1b`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = LEN.saturating_sub(self.0.iter().rev().take_while(|byte| **byte == 0).count());
        write!(formatter, "{}", self.0.get(..len).unwrap_or_default().escape_ascii())
    }
}

impl<const LEN: usize> fmt::Debug for Signature<LEN> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signature({self})")
    }
}

bitflags! {
    /// What the partition may do: leaf 0x40000003, EAX in the lower and EBX in the upper half
    /// (`HV_PARTITION_PRIVILEGE_MASK`).
    ///
    /// Do not refuse to run for want of [`Privileges::POST_MESSAGES`] or [`Privileges::SIGNAL_EVENTS`]: OpenVMM does not
    /// set them, and both calls work there.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Privileges: u64 {
        /// `AccessVpRunTimeReg`
        const VP_RUNTIME = 1 << 0;
        /// `AccessPartitionReferenceCounter`: the reference counter register.
        const REFERENCE_COUNTER = 1 << 1;
        /// `AccessSynicRegs`
        const SYNIC = 1 << 2;
        /// `AccessSyntheticTimerRegs`
        const SYNTHETIC_TIMERS = 1 << 3;
        /// `AccessIntrCtrlRegs`: registers for the local APIC's EOI, ICR and TPR.
        const APIC_REGISTERS = 1 << 4;
        /// `AccessHypercallMsrs`
        const HYPERCALLS = 1 << 5;
        /// `AccessVpIndex`
        const VP_INDEX = 1 << 6;
        /// `AccessResetReg`
        const RESET = 1 << 7;
        /// `AccessPartitionReferenceTsc`: the reference TSC page.
        const REFERENCE_TSC = 1 << 9;
        /// `AccessGuestIdleReg`
        const GUEST_IDLE = 1 << 10;
        /// `AccessFrequencyRegs`: frequencies of the TSC and the APIC timer, where [`Features::FREQUENCY_REGISTERS`] exist.
        const FREQUENCIES = 1 << 11;
        /// `PostMessages`
        const POST_MESSAGES = 1 << 36;
        /// `SignalEvents`
        const SIGNAL_EVENTS = 1 << 37;
        /// `Isolation`: leaf 0x4000000c says more.
        const ISOLATION = 1 << 54;

        const _ = !0;
    }
}

bitflags! {
    /// Features of the hypervisor: leaf 0x40000003, EDX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u32 {
        /// The registers for the TSC's and the APIC timer's frequency exist.
        const FREQUENCY_REGISTERS = 1 << 8;
        /// The guest crash registers exist.
        const CRASH_REGISTERS = 1 << 10;
        /// The hypercall register can be locked.
        const HYPERCALL_LOCK = 1 << 18;
        /// Synthetic timers can raise an interrupt of their own instead of a message.
        const DIRECT_TIMERS = 1 << 19;

        const _ = !0;
    }
}

bitflags! {
    /// What the hypervisor recommends: leaf 0x40000004, EAX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Recommendations: u32 {
        /// Use the registers for the local APIC's EOI, ICR and TPR.
        const APIC_REGISTERS = 1 << 3;
        /// Use the reset register.
        const RESET_REGISTER = 1 << 4;
        /// Time-outs that watch the system should be relaxed: a virtual processor may be held up.
        const RELAXED_TIMING = 1 << 5;
        /// Use x2APIC.
        const X2APIC = 1 << 8;
        /// Do not use AutoEOI.
        const AUTO_EOI_DEPRECATED = 1 << 9;
        /// The hypervisor itself is nested.
        const NESTED = 1 << 12;

        const _ = !0;
    }
}

/// The hypervisor's version: leaf 0x40000002. All zero where it does not tell (OpenVMM).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HypervisorVersion {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Build number.
    pub build: u32,
    /// Service pack.
    pub service_pack: u32,
    /// Branch of the service.
    pub service_branch: u8,
    /// Number within the branch.
    pub service_number: u32,
}

impl fmt::Display for HypervisorVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}.{}.{}-{}-{}.{}",
            self.major, self.minor, self.build, self.service_pack, self.service_branch, self.service_number
        )
    }
}

/// How much the hypervisor supports: leaf 0x40000005. Zero: it does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Virtual processors at most.
    pub virtual_processors: u32,
    /// Logical processors at most.
    pub logical_processors: u32,
    /// Physical interrupt vectors for remapping at most.
    pub interrupt_vectors: u32,
}

/// Of what kind the partition's isolation from the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IsolationKind {
    /// None: the host sees all memory.
    None,
    /// Software: virtualisation-based security.
    Vbs,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// A kind that we do not know.
    Other(u8),
}

/// The partition's isolation from the host: leaf 0x4000000c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isolation {
    /// Of what kind.
    pub kind: IsolationKind,
    /// A paravisor stands between this system and the host.
    pub has_paravisor: bool,
    /// Number of the address bit that makes a page shared with the host, if there is one.
    pub shared_bit: Option<u8>,
}

/// What the hypervisor says of itself. All of it is an allegation of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The largest leaf. Leaves beyond count as zero.
    pub max_leaf: u32,
    /// The vendor, usually `Microsoft Hv`. For people to read: the interface is what counts.
    pub vendor: Signature<12>,
    /// Version and build.
    pub version: HypervisorVersion,
    /// What the partition may do.
    pub privileges: Privileges,
    /// What the hypervisor can do.
    pub features: Features,
    /// What the hypervisor recommends.
    pub recommendations: Recommendations,
    /// How often to try a spin lock before telling the hypervisor; `None`: never tell.
    pub spinlock_retries: Option<u32>,
    /// How much the hypervisor supports.
    pub limits: Limits,
    /// Features for hypervisors in this partition: leaf 0x4000000a, EAX, as it stands.
    pub nested_features: u32,
    /// The partition's isolation from the host.
    pub isolation: Isolation,
}

impl Capabilities {
    /// Asks `machine` who it runs under. Executes `CPUID` and nothing else, so it may be called on any x86 machine.
    ///
    /// The interface signature `Hv#1` decides, as the TLFS has it; the vendor's is only reported (QEMU can change it).
    ///
    /// # Errors
    ///
    /// [`NotHyperV`] with what was found instead.
    pub fn detect_on(machine: &dyn Machine) -> Result<Self, NotHyperV> {
        if machine.cpuid(1, 0).ecx & UNDER_A_HYPERVISOR == 0 {
            return Err(NotHyperV::NoHypervisor);
        }
        let first = machine.cpuid(LEAF_VENDOR, 0);
        let vendor = vendor_of(first);
        let max_leaf = if (LEAF_VENDOR..=LAST_LEAF).contains(&first.eax) {
            first.eax
        } else {
            LEAF_VENDOR
        };
        // Beyond the largest leaf, processors answer with another leaf's values.
        let leaf = |number: u32| {
            if number <= max_leaf {
                machine.cpuid(number, 0)
            } else {
                Cpuid::default()
            }
        };
        let interface = leaf(LEAF_INTERFACE).eax;
        if interface != INTERFACE_HV1 {
            return Err(NotHyperV::Other {
                vendor,
                interface: Signature(interface.to_le_bytes()),
            });
        }
        let features = leaf(LEAF_FEATURES);
        let recommendations = leaf(LEAF_RECOMMENDATIONS);
        let limits = leaf(LEAF_LIMITS);
        Ok(Self {
            max_leaf,
            vendor,
            version: version_of(leaf(LEAF_VERSION)),
            privileges: Privileges::from_bits_retain(u64::from(features.ebx) << 32 | u64::from(features.eax)),
            features: Features::from_bits_retain(features.edx),
            recommendations: Recommendations::from_bits_retain(recommendations.eax),
            spinlock_retries: (recommendations.ebx != u32::MAX).then_some(recommendations.ebx),
            limits: Limits {
                virtual_processors: limits.eax,
                logical_processors: limits.ebx,
                interrupt_vectors: limits.ecx,
            },
            nested_features: leaf(LEAF_NESTED).eax,
            isolation: isolation_of(leaf(LEAF_ISOLATION)),
        })
    }

    /// Returns true if the registers with the TSC's and the APIC timer's frequency can be read: they exist, and the partition may.
    /// Reading one that does not exist is an exception, early in the start. Linux asks for both bits, too.
    pub(super) const fn has_frequency_registers(&self) -> bool {
        self.features.contains(Features::FREQUENCY_REGISTERS) && self.privileges.contains(Privileges::FREQUENCIES)
    }

    /// Returns true if the hypervisor lets the guest use AutoEOI.
    #[must_use]
    pub const fn allows_auto_eoi(&self) -> bool {
        !self.recommendations.contains(Recommendations::AUTO_EOI_DEPRECATED)
    }
}

fn vendor_of(leaf: Cpuid) -> Signature<12> {
    let mut text = [0; 12];
    let (words, _) = text.as_chunks_mut::<4>();
    for (bytes, word) in words.iter_mut().zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        *bytes = word.to_le_bytes();
    }
    Signature(text)
}

#[expect(clippy::cast_possible_truncation, reason = "shifted or masked to the field's width")]
const fn version_of(leaf: Cpuid) -> HypervisorVersion {
    HypervisorVersion {
        major: (leaf.ebx >> 16) as u16,
        minor: leaf.ebx as u16,
        build: leaf.eax,
        service_pack: leaf.ecx,
        service_branch: (leaf.edx >> 24) as u8,
        service_number: leaf.edx & 0xff_ffff,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "masked to the field's width")]
const fn isolation_of(leaf: Cpuid) -> Isolation {
    Isolation {
        kind: match leaf.ebx & 0xf {
            0 => IsolationKind::None,
            1 => IsolationKind::Vbs,
            2 => IsolationKind::Snp,
            3 => IsolationKind::Tdx,
            other => IsolationKind::Other(other as u8),
        },
        has_paravisor: leaf.eax & 1 != 0,
        shared_bit: if leaf.ebx & 1 << 5 != 0 {
            Some((leaf.ebx >> 6 & 0x3f) as u8)
        } else {
            None
        },
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} {} (privileges {:#x}, features {:#x}, recommendations {:#x})",
            self.vendor, self.version, self.privileges, self.features, self.recommendations
        )
    }
}
