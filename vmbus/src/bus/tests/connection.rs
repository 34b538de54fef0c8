//! The ladder of versions.

use std::time::Duration;

use super::*;
use crate::bus::inner::{BusInner, Phase};
use crate::hyperv::{HypercallError, HypercallStatus};
use crate::protocol::Guid;
use crate::testing::model::{Pace, Reply, VersionEcho};

fn versions() -> impl Iterator<Item = Version> {
    Version::LADDER.into_iter()
}

#[test]
fn m7_each_maximum_of_a_host_is_found() {
    for maximum in versions() {
        for echo in [VersionEcho::Present, VersionEcho::Absent] {
            let mut config = model::Config::new(Personality::HyperV).max_version(maximum.to_wire());
            config.echo = echo;
            let ground = Ground::new(config);
            let bus = ground.connect();
            assert_eq!(bus.version(), maximum);
            assert_eq!(ground.host.version(), Some(maximum.to_wire()));
            let asked: Vec<u32> = ground
                .posts()
                .iter()
                .filter(|(kind, _)| *kind == 14)
                .map(|(_, id)| *id)
                .collect();
            let expected: Vec<u32> = versions()
                .filter(|version| *version >= maximum)
                .map(|version| if version >= Version::V5_0 { 4 } else { 1 })
                .collect();
            assert_eq!(asked, expected, "connections of the contacts up to {maximum}");
            let connection = if maximum >= Version::V5_0 { 4 } else { 1 };
            assert_eq!(bus.message_connection(), ConnectionId(connection));
            if maximum >= Version::V3_0 {
                ground.finish(bus);
            } else {
                ground.check();
            }
        }
    }
}

#[test]
fn m7_all_personalities_connect() {
    for (personality, version) in [
        (Personality::HyperV, Version::V6_0),
        (Personality::OpenVmm, Version::V6_0),
        (Personality::Qemu, Version::V4_0),
    ] {
        let ground = Ground::new(model::Config::new(personality));
        ground.host.offer(model::Offer::new(CLASS, INSTANCE));
        ground.host.offer(model::Offer::new(CLASS, OTHER_INSTANCE));
        let bus = ground.connect();
        assert_eq!((bus.version(), bus.offers().count()), (version, 2), "{personality:?}");
        assert!(bus.has_all_offers());
        ground.finish(bus);
    }
}

#[test]
fn m7_the_maximum_of_the_configuration_is_kept() {
    for maximum in versions() {
        let ground = Ground::hyper_v();
        let bus = ground.connect_with(Config {
            max_version: maximum,
            ..Config::default()
        });
        assert_eq!(bus.version(), maximum);
        assert_eq!(ground.posts_of(14), 1);
    }
}

#[test]
fn m7_the_connection_in_the_response_is_used_afterwards() {
    for version in [0x5_0000, 0x5_0003, 0x6_0000] {
        let mut config = model::Config::new(Personality::HyperV).max_version(version);
        config.message_connection = 0x80_0074;
        let ground = Ground::new(config);
        let bus = ground.connect();
        assert_eq!(bus.message_connection(), ConnectionId(0x80_0074));
        for (kind, connection) in ground.posts() {
            assert_eq!(connection, if kind == 14 { 4 } else { 0x80_0074 });
        }
        ground.finish(bus);
    }
}

#[test]
fn m6_a_connection_that_does_not_exist_ends_its_rungs_at_once() {
    let ground = Ground::new(model::Config::new(Personality::Qemu));
    let bus = ground.connect();
    let contacts: Vec<u32> = ground
        .posts()
        .iter()
        .filter(|(kind, _)| *kind == 14)
        .map(|(_, id)| *id)
        .collect();
    // One attempt on connection 4, where nobody listens; then 4.1, refused, and 4.0.
    assert_eq!(contacts, [4, 1, 1]);
    assert_eq!(bus.counters().busy_posts, 0);
    ground.finish(bus);
}

#[test]
fn m6_a_host_without_a_bus_is_told_apart() {
    let mut config = model::Config::new(Personality::HyperV);
    config.contact_connections = Vec::new();
    let ground = Ground::new(config);
    assert_eq!(ground.try_connect(Config::default()).unwrap_err(), ConnectError::NoBus);
    assert_eq!(ground.platform.live_pages(), 0, "nothing is left behind");
    assert!(ground.host.is_at_rest());
    ground.check();
}

#[test]
fn m6_a_busy_host_is_asked_again_with_growing_delays() {
    let ground = Ground::hyper_v();
    ground.host.fail_posts(0x13, 20);
    let start = ground.hypervisor.now();
    let bus = ground.connect();
    assert_eq!(bus.counters().busy_posts, 20);
    // 10 us, doubling up to 10 ms.
    let waited = ground.hypervisor.elapsed_since(start);
    assert!(waited >= Duration::from_millis(10 + 90), "{waited:?}");
    assert!(waited <= Duration::from_secs(1), "{waited:?}");
    ground.finish(bus);
}

#[test]
fn m6_a_host_that_stays_busy_is_given_up() {
    let ground = Ground::hyper_v();
    ground.host.fail_posts(0x13, u32::MAX);
    let error = ground.try_connect(Config::default()).unwrap_err();
    assert!(
        matches!(
            error,
            ConnectError::Post {
                version: Version::V6_0,
                connection: ConnectionId(4),
                ..
            }
        ),
        "{error}"
    );
    assert!(ground.posts().len() < 2000, "bounded: {}", ground.posts().len());
    assert_eq!(ground.platform.live_pages(), 0, "nothing is left behind");
    assert!(ground.host.is_at_rest());
}

#[test]
fn m6_other_refusals_of_the_hypervisor_are_final() {
    let ground = Ground::hyper_v();
    ground.host.fail_posts(0x06, 1);
    let error = ground.try_connect(Config::default()).unwrap_err();
    let refusal = HypercallError::Failed(HypercallStatus::ACCESS_DENIED);
    assert!(
        matches!(error, ConnectError::Post { error, .. } if error == refusal),
        "{error}"
    );
    assert_eq!(ground.platform.live_pages(), 0);
    // The same when the host has answered, and the next message is refused.
    let is_contact = |action: &Action| matches!(action, Action::Post { message_type: 14, .. });
    let rehearsal = Ground::hyper_v();
    rehearsal.connect();
    let step = rehearsal.host.steps().iter().position(is_contact).unwrap();
    let ground = Ground::hyper_v();
    ground
        .host
        .at_step(step, model::When::After, |host, _| host.fail_posts(0x06, 1));
    let error = ground.try_connect(Config::default()).unwrap_err();
    assert!(
        matches!(error, ConnectError::Post { error, .. } if error == refusal),
        "{error}"
    );
    assert_eq!(ground.platform.live_pages(), 0);
}

#[test]
fn m4_a_silent_host_is_an_error_that_names_the_rung() {
    let ground = Ground::hyper_v();
    ground.host.set_reply(14, Reply::Silent);
    let start = ground.hypervisor.now();
    let error = ground.try_connect(Config::default()).unwrap_err();
    assert_eq!(
        error,
        ConnectError::NoAnswer {
            version: Version::V6_0,
            connection: ConnectionId(4),
            waited: Duration::from_secs(5)
        }
    );
    assert!(ground.hypervisor.elapsed_since(start) >= Duration::from_secs(5));
    assert_eq!(
        ground.posts_of(14),
        1,
        "a late answer would be taken for another rung's"
    );
    // The host may have noted the three pages of the contact.
    assert_eq!(ground.platform.live_pages(), 3);
}

#[test]
fn m7_a_host_with_none_of_our_versions_is_an_error() {
    let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(0x1_0001));
    assert_eq!(
        ground.try_connect(Config::default()).unwrap_err(),
        ConnectError::NoCommonVersion {
            newest: Version::V6_0,
            oldest: Version::V2_4
        }
    );
    assert_eq!(ground.posts_of(14), 9);
    assert_eq!(ground.platform.live_pages(), 0);
    ground.check();
}

#[test]
fn m7_a_refused_connection_is_told_apart_from_an_unknown_version() {
    let ground = Ground::hyper_v();
    let mut refusal = vec![0; 16];
    refusal[0] = 15;
    refusal[8] = 1;
    refusal[9] = 2;
    ground.host.set_reply(14, Reply::Instead(refusal));
    assert_eq!(
        ground.try_connect(Config::default()).unwrap_err(),
        ConnectError::Refused {
            version: Version::V6_0,
            state: crate::protocol::contact::ConnectionState::UNKNOWN_FAILURE
        }
    );
    // Refused is refused: the host does not use the pages of the contact.
    assert_eq!(ground.platform.live_pages(), 0);
}

#[test]
fn m8_features_are_those_asked_for_and_agreed() {
    let mut config = model::Config::new(Personality::HyperV);
    config.extra_features = 0xffff_ffe0;
    let ground = Ground::new(config.clone());
    let bus = ground.connect();
    assert_eq!(bus.features(), FeatureFlags::empty(), "we asked for none");
    ground.finish(bus);

    let ground = Ground::new(config);
    let bus = ground.connect_with(Config {
        client_id: Some(Guid::literal("4f9c4d3c-5bd5-4f7e-9a1f-0d7d3e1b1a11")),
        ..Config::default()
    });
    assert_eq!(bus.features(), FeatureFlags::CLIENT_ID);
    assert_eq!(ground.host.features() & 8, 8);
    ground.finish(bus);
}

#[test]
fn who_ends_the_interrupts_is_as_configured() {
    for who in [EndOfInterrupt::Explicit, EndOfInterrupt::Automatic] {
        // Here both are possible.
        let ground = Ground::new(model::Config::new(Personality::Qemu));
        let bus = ground.connect_with(Config {
            end_of_interrupt: who,
            ..Config::default()
        });
        assert_eq!(bus.end_of_interrupt(ProcessorIndex(0)), Some(who));
        ground.finish(bus);
    }
}

#[test]
fn b1_a_live_connection_of_an_earlier_owner_is_taken_over() {
    let (ground, channel) = Ground::with_channel();
    let earlier = ground.connect();
    let (_open, _) = open(&earlier, channel);
    // The next system knows nothing of it.
    ground.host.expect_crash();
    let hypervisor: &'static Hypervisor = Box::leak(Box::new(Hypervisor::detect_on(ground.host).unwrap()));
    let next = Ground { hypervisor, ..ground };
    let bus = next.connect();
    assert_eq!(bus.offers().count(), 1);
    let (second, _) = open(&bus, channel);
    second.close(SECOND).unwrap();
}

/// What the host had sent to the earlier owner may come behind the contact, and in front of its answer.
#[test]
fn b1_what_an_earlier_owner_is_still_told_is_not_taken_for_ours() {
    for late in [offers::offer_message(9, 9), Vec::from([4, 0, 0, 0, 0, 0, 0, 0])] {
        let (ground, channel) = Ground::with_channel();
        ground.host.set_next_replies(14, Reply::After(late.clone()), 1);
        // Our own list is not complete when the connection is there.
        ground.host.set_next_replies(3, Reply::Silent, 1);
        let bus = ground.connect_with(Config {
            offers_timeout: Duration::from_millis(1),
            ..Config::default()
        });
        let counters = bus.counters();
        assert_eq!(counters.stray_replies + counters.refused_offers, 1, "{late:?}");
        assert!(!bus.has_all_offers(), "{late:?}");
        let ids: Vec<_> = bus.offers().map(|offer| offer.channel).collect();
        assert!(ids.iter().all(|id| *id == channel), "{ids:?}");
        ground.finish(bus);
    }
}

#[test]
fn b6_the_contact_names_the_hypervisors_number_of_the_processor() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 4));
    // The hypervisor's 3.
    let _here = ground.platform.on_processor(1);
    let bus = ground.connect_with(Config {
        processors: 4,
        ..Config::default()
    });
    assert_eq!(bus.message_processor(), ProcessorIndex(1));
    assert!(bus.has_all_offers(), "the messages came to the processor that looked");
    ground.finish(bus);
}

#[test]
fn a_processor_outside_the_configuration_cannot_connect() {
    let ground = Ground::new(model::Config::with_processors(Personality::HyperV, 2));
    let _here = ground.platform.on_processor(1);
    let error = ground.try_connect(Config::default()).unwrap_err();
    assert!(matches!(error, ConnectError::NoSuchProcessor { .. }), "{error}");
    assert_eq!(ground.platform.live_pages(), 0);
}

#[test]
fn allocation_failing_at_each_step_of_connecting_leaves_nothing_behind() {
    let mut failures = 0;
    for nth in 0..100 {
        let ground = Ground::hyper_v();
        ground.platform.fail_allocation(nth);
        match ground.try_connect(Config::default()) {
            Ok(bus) => {
                ground.finish(bus);
                assert!(failures >= 6, "only {failures} allocations");
                return;
            }
            Err(_) => {
                failures += 1;
                assert_eq!(ground.platform.live_pages(), 0, "allocation {nth}");
                assert!(ground.host.is_at_rest());
                ground.check();
            }
        }
    }
    panic!("never connected");
}

#[test]
fn an_incomplete_list_of_offers_is_a_connection_all_the_same() {
    let ground = Ground::new(model::Config::new(Personality::HyperV).pace(Pace::Later));
    ground.host.set_reply(3, Reply::Ignore);
    let bus = ground.connect();
    assert!(!bus.has_all_offers());
    assert_eq!(bus.wait_for_offers(SECOND), Err(Error::TimedOut));
    ground.finish(bus);
}

#[test]
fn b1_the_contact_names_pages_of_the_guest_and_a_bus_that_is_being_made_is_not_connected() {
    for (version, count) in [(0x2_0004, 3), (0x6_0000, 2)] {
        let ground = Ground::new(model::Config::new(Personality::HyperV).max_version(version));
        let bus = ground.connect();
        let mut pages = ground.host.contact_pages();
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), count, "{version:#x}: {pages:x?}");
        ground.check();
        assert!(bus.is_connected());
    }
    let ground = Ground::hyper_v();
    let bus = BusInner::new(ground.hypervisor, ground.platform, Config::default()).unwrap();
    assert_eq!(bus.phase(), Phase::Contacting);
}
