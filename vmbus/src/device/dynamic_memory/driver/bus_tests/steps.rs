//! A whole life of the device, with a host that misbehaves at one step of the guest: no page is lost or in two hands, all ends in
//! bounded time, and the device works again.

use super::*;
use crate::testing::model::{Reply, When};

/// What the host does at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Takes the device away.
    Rescind(When),
    /// Answers the message of this step in another way, or not.
    Answer(Answer),
    /// The hypervisor does not take this post or signal, or some more.
    Hypercalls(u16, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Silent,
    Twice,
    Status,
    OtherKey,
}

const FAULTS: [Fault; 8] = [
    Fault::Rescind(When::Before),
    Fault::Rescind(When::After),
    Fault::Answer(Answer::Silent),
    Fault::Answer(Answer::Twice),
    Fault::Answer(Answer::Status),
    Fault::Answer(Answer::OtherKey),
    Fault::Hypercalls(0x13, 3),
    Fault::Hypercalls(0x06, 1),
];

fn machine() -> Machine {
    let device = model_device::Config {
        start_delay: Duration::ZERO,
        ..model_device::Config::default()
    };
    Machine::new(Personality::HyperV, device)
}

impl Machine {
    fn plan(&self, step: usize, fault: Fault) {
        let channel = self.channel;
        match fault {
            Fault::Rescind(when) => self.host.at_step(step, when, move |host, _| host.rescind(channel)),
            Fault::Answer(answer) => self.host.at_step(step, When::Before, move |host, action| {
                let reply = match answer {
                    Answer::Silent => Reply::Silent,
                    Answer::Twice => Reply::Twice,
                    Answer::Status => Reply::Status(0xc000_0001),
                    Answer::OtherKey => Reply::OtherKey,
                };
                if let model::Action::Post { message_type, .. } = action {
                    host.set_next_replies(message_type, reply, 1);
                }
            }),
            Fault::Hypercalls(status, times) => {
                self.host.at_step(step, When::Before, move |host, action| match action {
                    // A closing that the host cannot be told of leaves the channel open there until the end of the connection.
                    model::Action::Post { message_type: 7, .. } if status == 0x06 => {}
                    model::Action::Post { .. } => host.fail_posts(status, times),
                    model::Action::Signal { .. } => host.fail_signals(status, times),
                    _ => {}
                })
            }
        }
    }

    /// All that the device does, once. What fails ends the life.
    fn live(&mut self) -> Result<(), Error> {
        self.driver.attach(&self.bus, Instance::Any, || {}, SOON)?;
        self.settle();
        self.pass(Duration::from_secs(1));
        self.control.balloon(50 * UNIT);
        self.settle();
        self.control.unballoon(20 * UNIT);
        self.settle();
        self.pass(Duration::from_secs(1));
        self.driver.detach(SOON)
    }

    /// Each page is in one hand: free, or held for the host.
    fn check_pages(&self, what: &str) {
        let held = self.held();
        let free = &self.driver.engine().pool().free;
        let held_pages: u64 = held.iter().map(|run| run.1).sum();
        assert_eq!(held_pages + free.len() as u64, frames().count() as u64, "{what}");
        for (start, count) in held {
            assert!((start..start + count).all(|page| !free.contains(&page)), "{what}");
        }
    }
}

#[test]
fn whatever_a_host_does_at_any_step_no_page_is_lost_and_the_device_works_again() {
    let mut machine_without_trouble = machine();
    let first = machine_without_trouble.host.step_count();
    machine_without_trouble.live().unwrap();
    assert_eq!(machine_without_trouble.driver.engine().held().page_count(), 30 * UNIT);
    let steps = machine_without_trouble.host.step_count() - first;
    assert!((10..200).contains(&steps), "{steps}");
    machine_without_trouble.finish();
    for fault in FAULTS {
        let mut failed = 0;
        for step in (0..steps).step_by(if cfg!(miri) { 27 } else { 1 }) {
            let what = format!("{fault:?} at step {step}");
            let mut machine = machine();
            machine.plan(machine.host.step_count() + step, fault);
            let start = machine.now();
            let result = machine.live();
            failed += u32::from(result.is_err());
            // The two seconds of the life itself, and at most two waits of ten.
            let took = machine.hypervisor.elapsed_since(start);
            assert!(took < Duration::from_secs(2 + 20 + 1), "{what}: {took:?}, {result:?}");
            machine.check_pages(&what);
            // The device, or the one that comes in its place, works.
            let _ = machine.driver.detach(SOON);
            machine.pass(Duration::from_secs(11));
            if matches!(fault, Fault::Rescind(_)) {
                let (device, control) = model_device::DynamicMemory::new(model_device::Config {
                    start_delay: Duration::ZERO,
                    ..model_device::Config::default()
                });
                machine.channel = machine.host.offer_with(model_device::DynamicMemory::offer(), device);
                machine.control = control;
            }
            let held = machine.driver.engine().held().page_count();
            machine.attach();
            machine.pass(Duration::from_secs(1));
            let before = machine.control.ballooned_pages();
            machine.control.balloon(10 * UNIT);
            machine.settle();
            assert_eq!(
                machine.control.ballooned_pages(),
                before + 10 * UNIT,
                "{what}: {result:?}"
            );
            assert_eq!(machine.driver.engine().held().page_count(), held + 10 * UNIT, "{what}");
            machine.check_pages(&what);
            machine.driver.detach(SOON).unwrap();
            machine.bus.disconnect(SOON).unwrap();
            machine.platform.assert_no_faults();
        }
        let expected = match fault {
            Fault::Answer(Answer::Twice) | Fault::Hypercalls(0x13, _) => 0,
            Fault::Rescind(When::After) => 1,
            _ => 2,
        };
        assert!(
            failed == expected || cfg!(miri),
            "{fault:?}: {failed} of {steps} lives failed"
        );
    }
}
