//! Which hosts this machine offers: KVM with Hyper-V, or the nested host, and why not.
//!
//! A machine can have a working `/dev/kvm` that knows nothing of Hyper-V (built without it, or a cut-down virtualisation service), so
//! KVM is asked for the capabilities that the VMBus needs instead of guessing from the device's existence.
//! Source: the KVM API documentation of the Linux kernel (`KVM_CHECK_EXTENSION`).
#![expect(unsafe_code, reason = "the question to KVM is an ioctl")]

use std::fs::File;
use std::os::fd::AsRawFd;

use clap::ValueEnum;

/// The host that the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// KVM if it has what Hyper-V's VMBus needs, otherwise nested.
    #[default]
    Auto,
    /// QEMU with KVM on this machine.
    Kvm,
    /// QEMU with KVM inside an emulated machine: works without hardware virtualisation, slower.
    Nested,
    /// An `openvmm` on the path instead of QEMU, by Linux direct boot: on this machine's KVM if it is usable, otherwise inside the nested
    /// host.
    Openvmm,
}

/// A host that was decided for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// QEMU with KVM on this machine.
    Kvm,
    /// QEMU with KVM inside an emulated machine.
    Nested,
}

/// What KVM on this machine can do for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// It has the Hyper-V synthetic interrupt controller.
    Usable,
    /// There is none, or we may not use it, or it lacks something: the reason, for people.
    Unusable(String),
}

const KVM_CHECK_EXTENSION: libc::c_ulong = 0xAE03;
const CAPABILITIES: [(libc::c_ulong, &str); 2] = [(123, "KVM_CAP_HYPERV_SYNIC"), (148, "KVM_CAP_HYPERV_SYNIC2")];

/// Asks `/dev/kvm`.
#[must_use]
pub fn probe_kvm() -> Kvm {
    let device = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(device) => device,
        Err(error) => return Kvm::Unusable(explain(&error)),
    };
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(number, _)| !has(&device, *number))
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return Kvm::Usable;
    }
    Kvm::Unusable(format!(
        "/dev/kvm works but lacks {}: its kernel was built without CONFIG_KVM_HYPERV or does not offer it here",
        missing.join(" and ")
    ))
}

fn has(device: &File, capability: libc::c_ulong) -> bool {
    // SAFETY: KVM_CHECK_EXTENSION takes a number, not an address, so it touches no memory of ours; on a file that is no KVM device the
    // call fails. The descriptor is open: `device` is borrowed.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), KVM_CHECK_EXTENSION, capability) };
    answer > 0
}

fn explain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no /dev/kvm: no hardware virtualisation here, or the kvm-intel or kvm-amd module is not loaded".to_owned()
        }
        std::io::ErrorKind::PermissionDenied => {
            "this user may not open /dev/kvm: join the group that owns it (usually `sudo usermod -aG kvm $USER`, then log in again)".to_owned()
        }
        _ => format!("/dev/kvm cannot be opened: {error}"),
    }
}

/// Decides for a host, with the reason in one sentence.
///
/// # Errors
///
/// The user asked for KVM, and it is not usable.
pub fn decide(choice: Choice, kvm: &Kvm) -> anyhow::Result<(Host, String)> {
    match (choice, kvm) {
        (Choice::Openvmm, Kvm::Usable) => Ok((Host::Kvm, "OpenVMM with this machine's KVM".to_owned())),
        (Choice::Openvmm, Kvm::Unusable(why)) => {
            Ok((Host::Nested, format!("OpenVMM inside the nested host, because {why}")))
        }
        (Choice::Nested, _) => Ok((Host::Nested, "nested host, as asked for".to_owned())),
        (Choice::Kvm, Kvm::Usable) => Ok((Host::Kvm, "KVM, as asked for".to_owned())),
        (Choice::Kvm, Kvm::Unusable(why)) => {
            anyhow::bail!(
                "KVM is not usable for Hyper-V guests: {why}.\nWithout `--host kvm` the nested host is taken, which needs no KVM."
            )
        }
        (Choice::Auto, Kvm::Usable) => Ok((
            Host::Kvm,
            "KVM: it has Hyper-V's synthetic interrupt controller".to_owned(),
        )),
        (Choice::Auto, Kvm::Unusable(why)) => Ok((Host::Nested, format!("nested host, because {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decision_and_its_reason() {
        let no = Kvm::Unusable("it is Tuesday".to_owned());
        let host = |choice, kvm: &Kvm| decide(choice, kvm).unwrap().0;
        assert_eq!(host(Choice::Auto, &Kvm::Usable), Host::Kvm);
        assert_eq!(host(Choice::Nested, &Kvm::Usable), Host::Nested);
        assert_eq!(host(Choice::Kvm, &Kvm::Usable), Host::Kvm);
        let (auto, why) = decide(Choice::Auto, &no).unwrap();
        assert_eq!(auto, Host::Nested);
        assert!(why.contains("Tuesday"));
        assert!(decide(Choice::Kvm, &no).unwrap_err().to_string().contains("Tuesday"));
    }

    #[test]
    fn a_file_that_is_no_kvm_has_no_capability() {
        let file = File::open("/dev/null").unwrap();
        assert!(!has(&file, 123));
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let text = |kind| explain(&std::io::Error::from(kind));
        assert!(text(std::io::ErrorKind::NotFound).contains("module"));
        assert!(text(std::io::ErrorKind::PermissionDenied).contains("usermod"));
    }
}
