//! Who we run under.

use std::format;

use super::fake::{FakeMachine, HYPER_V, OPENVMM, QEMU};
use crate::hyperv::{
    Capabilities, Features, HypervisorVersion, IsolationKind, Limits, NotHyperV, Privileges, Recommendations, Signature,
};

fn capabilities(leaves: &[(u32, [u32; 4])]) -> Result<Capabilities, NotHyperV> {
    // No registers: detection that touches one fails.
    Capabilities::detect_on(FakeMachine::leak(leaves, &[]))
}

#[test]
fn b2_hyper_v_server_is_read_in_full() {
    let found = capabilities(HYPER_V).unwrap();
    assert_eq!(format!("{}", found.vendor), "Microsoft Hv");
    assert_eq!(
        found.version,
        HypervisorVersion {
            major: 10,
            minor: 0,
            build: 20348,
            service_pack: 2,
            service_branch: 2,
            service_number: 2620,
        }
    );
    assert_eq!(format!("{}", found.version), "10.0.20348-2-2.2620");
    assert!(found.privileges.contains(
        Privileges::REFERENCE_TSC | Privileges::FREQUENCIES | Privileges::POST_MESSAGES | Privileges::SIGNAL_EVENTS
    ));
    assert!(!found.privileges.contains(Privileges::ISOLATION));
    assert!(
        found
            .features
            .contains(Features::DIRECT_TIMERS | Features::CRASH_REGISTERS)
    );
    assert_eq!(found.recommendations.bits(), 0x0006_0e2c, "unknown bits are kept");
    assert!(!found.allows_auto_eoi());
    assert_eq!(found.spinlock_retries, Some(0xfff));
    assert_eq!(
        found.limits,
        Limits {
            virtual_processors: 240,
            logical_processors: 1024,
            interrupt_vectors: 0x5d00,
        }
    );
    assert_eq!(found.nested_features, 0x000e_0101);
    assert_eq!(found.isolation.kind, IsolationKind::None);
}

#[test]
fn b2_qemu_is_hyper_v_and_leaves_beyond_its_last_are_zero() {
    let found = capabilities(QEMU).unwrap();
    assert_eq!(found.max_leaf, 0x4000_0005);
    assert_eq!(found.privileges.bits(), 0x30_0000_027f);
    assert_eq!(found.features.bits(), 0x408);
    assert!(found.allows_auto_eoi());
    assert_eq!(found.spinlock_retries, None);
    // The fake answers with nonsense there, as processors do.
    assert_eq!(found.nested_features, 0);
    assert_eq!(found.isolation.kind, IsolationKind::None);
    assert!(!found.isolation.has_paravisor);
    assert_eq!(found.isolation.shared_bit, None);
}

#[test]
fn b2_openvmm_is_not_refused_for_missing_privileges_or_version() {
    let found = capabilities(OPENVMM).unwrap();
    assert!(
        !found
            .privileges
            .intersects(Privileges::POST_MESSAGES | Privileges::SIGNAL_EVENTS)
    );
    assert!(!found.privileges.contains(Privileges::REFERENCE_TSC));
    assert_eq!(format!("{}", found.version), "0.0.0-0-0.0");
    assert_eq!(found.recommendations, Recommendations::AUTO_EOI_DEPRECATED);
    assert!(!found.allows_auto_eoi());
}

#[test]
fn b2_bare_metal_has_no_hypervisor() {
    let found = capabilities(&[(1, [0, 0, 0x7fff_ffff, 0])]).unwrap_err();
    assert_eq!(found, NotHyperV::NoHypervisor);
    assert_eq!(format!("{found}"), "no hypervisor found");
}

#[test]
fn b2_the_emulator_is_named() {
    let found = capabilities(&[
        (1, [0, 0, 0x8000_0000, 0]),
        (0x4000_0000, [0x4000_0001, 0x5447_4354, 0x4354_4743, 0x4743_5447]),
        (0x4000_0001, [0, 0, 0, 0]),
    ])
    .unwrap_err();
    assert_eq!(
        format!("{found}"),
        "running under TCGTCGTCGTCG, which has no Hyper-V interface"
    );
}

#[test]
fn b2_plain_kvm_is_named() {
    let found = capabilities(&[
        (1, [0, 0, 0x8000_0000, 0]),
        (0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x0000_004d]),
        (0x4000_0001, [0x0100_7efb, 0, 0, 0]),
    ])
    .unwrap_err();
    assert_eq!(
        found,
        NotHyperV::Other {
            vendor: Signature::new(*b"KVMKVMKVM\0\0\0"),
            interface: Signature::new([0xfb, 0x7e, 0x00, 0x01]),
        }
    );
    assert_eq!(
        format!("{found}"),
        "running under KVMKVMKVM, which has no Hyper-V interface"
    );
}

#[test]
fn b2_old_kvm_that_reports_no_largest_leaf_is_named() {
    // Old KVM answers 0 there.
    let found = capabilities(&[
        (1, [0, 0, 0x8000_0000, 0]),
        (0x4000_0000, [0, 0x4b4d_564b, 0x564b_4d56, 0x0000_004d]),
        (0x4000_0001, [0x3123_7648, 0, 0, 0]),
    ]);
    assert!(matches!(found, Err(NotHyperV::Other { .. })), "{found:?}");
}

#[test]
fn b2_a_largest_leaf_that_cannot_be_is_not_believed() {
    // Beyond the range of hypervisors: it is not its largest leaf, and what leaves say cannot be told from another's values.
    for largest in [0x16, 0x3fff_ffff, 0x4001_0000, 0x8000_0008, u32::MAX] {
        let mut leaves = QEMU.to_vec();
        let place = leaves.iter_mut().find(|(leaf, _)| *leaf == 0x4000_0000);
        place.unwrap().1[0] = largest;
        let found = capabilities(&leaves);
        assert!(matches!(found, Err(NotHyperV::Other { .. })), "{largest:#x}: {found:?}");
    }
}

#[test]
fn b2_any_signature_can_be_printed() {
    let found = capabilities(&[
        (1, [0, 0, u32::MAX, 0]),
        (0x4000_0000, [u32::MAX, 0xffff_ffff, 0x0a0d_1b00, 0x0022_5c27]),
    ])
    .unwrap_err();
    assert_eq!(
        format!("{found}"),
        r#"running under \xff\xff\xff\xff\x00\x1b\r\n\'\\\", which has no Hyper-V interface"#
    );
}

#[test]
fn the_vendor_is_for_people_and_the_interface_decides() {
    let mut leaves = QEMU.to_vec();
    leaves[2].1[1] = u32::from_le_bytes(*b"Cust");
    let found = capabilities(&leaves).unwrap();
    assert_eq!(format!("{}", found.vendor), "Custosoft Hv");
}

#[test]
fn isolation_is_read_where_the_leaf_exists() {
    let mut leaves = HYPER_V.to_vec();
    leaves.last_mut().unwrap().1 = [1, 0x0000_0be2, 0, 0];
    let found = capabilities(&leaves).unwrap().isolation;
    assert_eq!(found.kind, IsolationKind::Snp);
    assert!(found.has_paravisor);
    assert_eq!(found.shared_bit, Some(47));
}

#[test]
fn detection_is_total_over_any_answers() {
    use proptest::prelude::*;
    use std::boxed::Box;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let words = || any::<[u32; 4]>();
    let strategy = (
        words(),
        words(),
        words(),
        words(),
        words(),
        words(),
        words(),
        any::<bool>(),
    );
    runner
        .run(
            &strategy,
            |(one, zeroth, second, third, fourth, fifth, last, is_hyper_v)| {
                let interface = if is_hyper_v { 0x3123_7648 } else { second[0] };
                let leaves: Box<[_]> = Box::new([
                    (1, one),
                    (0x4000_0000, zeroth),
                    (0x4000_0001, [interface, 0, 0, 0]),
                    (0x4000_0002, second),
                    (0x4000_0003, third),
                    (0x4000_0004, fourth),
                    (0x4000_0005, fifth),
                    (0x4000_000c, last),
                ]);
                match capabilities(&leaves) {
                    Ok(found) => drop(format!("{found} {found:?}")),
                    Err(found) => drop(format!("{found} {found:?}")),
                }
                Ok(())
            },
        )
        .unwrap();
}

#[test]
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn detection_on_the_machine_of_the_tests_only_looks() {
    use crate::hyperv::Hypervisor;
    // Whatever this machine is, looking is allowed in any privilege level.
    match Hypervisor::detect() {
        Ok(hypervisor) => assert!(!hypervisor.has_hypercalls()),
        Err(found) => assert!(!format!("{found}").is_empty()),
    }
}
