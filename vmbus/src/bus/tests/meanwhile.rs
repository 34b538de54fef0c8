//! What others do between two steps of a task: before each of the locks that it takes, in turn.

use core::time::Duration;

use super::*;
use crate::memory::SharedPages;
use crate::testing::model::Reply;

/// A host, a bus, and a channel that may be open.
struct Scene {
    ground: Ground,
    bus: Bus,
    id: ChannelId,
}

/// Every how many-th lock is tried.
const STEP_BY: usize = if cfg!(miri) { 61 } else { 1 };
const LONG: Deadline = Deadline::seconds(1000);

impl Scene {
    fn new() -> Self {
        let (ground, id) = Ground::with_channel();
        let bus = ground.connect();
        Self { ground, bus, id }
    }

    /// The connection ends, and everything comes back.
    fn finish(self) {
        self.ground.settle(&self.bus);
        // The grace of a rescind is over.
        self.ground.platform.advance(Duration::from_secs(30));
        self.ground.settle(&self.bus);
        let is_ended = match self.bus.disconnect(LONG) {
            Ok(()) => false,
            Err(Error::Disconnected) => true,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(self.bus.shared_bytes(), 0);
        let live = self.ground.platform.live_pages();
        // Interrupt page and monitor pages, two input areas, the hypercall page.
        assert_eq!(live, 6);
        // Only who ends the connection in the middle of an opening or a closing finds a channel that is not closed: the host
        // closes it then.
        let mut violations = self.ground.host.take_violations();
        violations.retain(|violation| {
            !is_ended || !violation.starts_with("UNLOAD with channels") && !violation.ends_with("closed, but not open")
        });
        assert!(violations.is_empty(), "{violations:?}");
        self.ground.platform.assert_no_faults();
    }
}

/// Does `others` before each lock of `work` in turn.
#[track_caller]
fn before_each_lock<T>(
    prepare: impl Fn(&Scene) -> T,
    work: impl Fn(&Scene, T),
    others: impl Fn(&Scene) -> Box<dyn FnOnce() + Send>,
) {
    for later in (0..).step_by(STEP_BY) {
        let scene = Scene::new();
        let prepared = prepare(&scene);
        scene.ground.platform.before_lock(later, others(&scene));
        let start = scene.ground.hypervisor.now();
        work(&scene, prepared);
        let was_last = scene.ground.platform.forget_meanwhile();
        let took = scene.ground.hypervisor.elapsed_since(start);
        assert!(took < Duration::from_secs(150), "before lock {later}: {took:?}");
        scene.finish();
        if was_last {
            assert!(later > 3, "only {later} locks");
            return;
        }
    }
}

/// Another processor looks at the host's messages at once, and the host never answers about a channel that is gone.
fn rescind(scene: &Scene) -> Box<dyn FnOnce() + Send> {
    let (host, id, bus) = (scene.ground.host, scene.id, scene.bus.clone());
    Box::new(move || {
        host.set_reply(11, Reply::Silent);
        host.rescind(id.0);
        bus.look_at_messages();
    })
}

/// As [`rescind`], and the device is offered again.
fn rescind_and_offer(scene: &Scene) -> Box<dyn FnOnce() + Send> {
    let (host, again) = (scene.ground.host, rescind(scene));
    Box::new(move || {
        again();
        host.offer(model::Offer::new(CLASS, INSTANCE));
    })
}

fn disconnect(scene: &Scene) -> Box<dyn FnOnce() + Send> {
    let bus = scene.bus.clone();
    Box::new(move || {
        let result = bus.disconnect(LONG);
        assert!(matches!(result, Ok(()) | Err(Error::Disconnected)), "{result:?}");
    })
}

fn is_end(error: &Error) -> bool {
    matches!(
        error,
        Error::Rescinded(_) | Error::Disconnected | Error::NotOpen(_) | Error::NoSuchChannel(_)
    )
}

fn try_open(scene: &Scene) -> Option<Channel> {
    let opened = scene
        .bus
        .open(scene.id, &OpenParameters::default(), Recorder::default(), LONG);
    opened.inspect_err(|error| assert!(is_end(error), "{error}")).ok()
}

fn close(opened: &Channel) {
    if let Err(error) = opened.close(LONG) {
        assert!(is_end(&error), "{error}");
    }
}

fn pages(scene: &Scene) -> SharedPages {
    SharedPages::allocate(scene.ground.platform, 30).unwrap()
}

type Others = fn(&Scene) -> Box<dyn FnOnce() + Send>;
const OTHERS: [Others; 3] = [rescind, rescind_and_offer, disconnect];

#[test]
fn a_channel_is_opened() {
    for others in OTHERS {
        before_each_lock(
            |_| (),
            |scene, ()| {
                if let Some(opened) = try_open(scene) {
                    scene.ground.settle(&scene.bus);
                    close(&opened);
                }
            },
            others,
        );
    }
}

#[test]
fn a_channel_is_closed() {
    for others in OTHERS {
        before_each_lock(|scene| open(&scene.bus, scene.id).0, |_, opened| close(&opened), others);
    }
}

#[test]
fn a_channel_is_dropped() {
    for others in OTHERS {
        before_each_lock(|scene| open(&scene.bus, scene.id).0, |_, opened| drop(opened), others);
    }
}

#[test]
fn memory_is_shared() {
    for others in OTHERS {
        before_each_lock(
            |scene| open(&scene.bus, scene.id).0,
            |scene, opened| {
                match opened.create_gpadl(pages(scene), LONG) {
                    Ok(gpadl) => drop(gpadl.teardown(LONG)),
                    Err(error) => assert!(is_end(&error), "{error}"),
                }
                close(&opened);
            },
            others,
        );
    }
}

#[test]
fn memory_is_taken_back() {
    for others in OTHERS {
        before_each_lock(
            |scene| {
                let (opened, _) = open(&scene.bus, scene.id);
                let gpadl = opened.create_gpadl(pages(scene), LONG).unwrap();
                (opened, gpadl)
            },
            |_, (opened, gpadl)| {
                if let Err(error) = gpadl.teardown(LONG) {
                    assert!(is_end(&error), "{error}");
                }
                close(&opened);
            },
            others,
        );
    }
}

#[test]
fn memory_that_the_host_keeps_comes_back_with_the_connections_end() {
    before_each_lock(
        |scene| {
            let (opened, _) = open(&scene.bus, scene.id);
            let gpadl = opened.create_gpadl(pages(scene), LONG).unwrap();
            scene.ground.host.set_reply(11, Reply::Silent);
            (opened, gpadl)
        },
        |_, (opened, gpadl)| {
            drop(gpadl);
            drop(opened);
        },
        disconnect,
    );
}

fn three_processors(version: u32) -> (Ground, Bus, ChannelId) {
    let config = model::Config::with_processors(Personality::HyperV, 3).max_version(version);
    let ground = Ground::new(config);
    let channel = ChannelId(ground.host.offer(model::Offer::new(CLASS, INSTANCE)));
    let bus = ground.connect_with(Config {
        processors: 3,
        ..Config::default()
    });
    for index in [1, 2] {
        let _there = ground.platform.on_processor(index);
        bus.processor_online(ProcessorIndex(index)).unwrap();
    }
    (ground, bus, channel)
}

/// The processor of the model with this number.
fn processor_of(vp: Option<u32>) -> ProcessorIndex {
    ProcessorIndex((3 - vp.unwrap()) % 3)
}

#[test]
fn c11_no_channel_is_left_on_a_processor_that_leaves_meanwhile() {
    for version in [0x5_0002, 0x5_0003] {
        for is_moved in [false, true] {
            for later in (0..).step_by(STEP_BY) {
                let (ground, bus, channel) = three_processors(version);
                let target = ProcessorIndex(1);
                let parameters = OpenParameters {
                    target: ProcessorIndex(if is_moved { 2 } else { 1 }),
                    ..OpenParameters::default()
                };
                let try_open = || bus.open(channel, &parameters, Recorder::default(), LONG);
                let opened = is_moved.then(|| try_open().unwrap());
                let other = bus.clone();
                ground.platform.before_lock(later, move || {
                    let _there = ground.platform.on_processor(1);
                    let _ = other.processor_offline(ProcessorIndex(1));
                });
                let opened = match opened {
                    Some(opened) => opened.retarget(target, LONG).map(|_| opened),
                    None => try_open(),
                };
                let was_last = ground.platform.forget_meanwhile();
                match opened {
                    Ok(opened) => {
                        assert!(
                            bus.end_of_interrupt(target).is_some(),
                            "{version:#x} {is_moved} {later}"
                        );
                        assert_eq!(opened.target(), target);
                    }
                    Err(error) => assert_eq!(error, Error::NoSuchProcessor(target)),
                }
                ground.finish(bus);
                if was_last {
                    break;
                }
            }
        }
    }
}

#[test]
fn c6_of_two_that_move_a_channel_at_a_time_guest_and_host_know_the_same_one() {
    for version in [0x5_0002, 0x5_0003] {
        for later in (0..).step_by(STEP_BY) {
            let (ground, bus, channel) = three_processors(version);
            let opened = Arc::new(open(&bus, channel).0);
            let other = opened.clone();
            ground.platform.before_lock(later, move || {
                let result = other.retarget(ProcessorIndex(2), LONG);
                assert!(matches!(result, Ok(_) | Err(Error::TooManyRequests)), "{result:?}");
            });
            let result = opened.retarget(ProcessorIndex(1), LONG);
            assert!(matches!(result, Ok(_) | Err(Error::TooManyRequests)), "{result:?}");
            let was_last = ground.platform.forget_meanwhile();
            let known_to_host = processor_of(ground.host.channel(channel.0).target_vp());
            assert_eq!(opened.target(), known_to_host, "{version:#x} {later}");
            drop(opened);
            ground.settle(&bus);
            ground.finish(bus);
            if was_last {
                break;
            }
        }
    }
}

#[test]
fn c6_a_late_answer_confirms_the_move_that_it_is_for() {
    let (ground, bus, channel) = three_processors(0x5_0003);
    let (opened, _) = open(&bus, channel);
    ground.host.set_next_replies(22, Reply::Late(Duration::from_secs(2)), 1);
    assert_eq!(opened.retarget(ProcessorIndex(1), SECOND), Err(Error::TimedOut));
    assert_eq!(opened.target(), ProcessorIndex(0));
    // Its answer would be taken for this one's.
    assert_eq!(opened.retarget(ProcessorIndex(2), LONG), Err(Error::TooManyRequests));
    {
        // The interrupts may go there by now.
        let _there = ground.platform.on_processor(1);
        assert_eq!(
            bus.processor_offline(ProcessorIndex(1)),
            Err(Error::ProcessorInUse(ProcessorIndex(1)))
        );
    }
    ground.platform.advance(Duration::from_secs(3));
    ground.settle(&bus);
    assert_eq!(opened.target(), ProcessorIndex(1));
    assert_eq!(opened.retarget(ProcessorIndex(2), SECOND), Ok(Retargeted::Confirmed));
    assert_eq!(opened.target(), ProcessorIndex(2));
    assert_eq!(
        processor_of(ground.host.channel(channel.0).target_vp()),
        ProcessorIndex(2)
    );
    opened.close(SECOND).unwrap();
    ground.finish(bus);
}
