//! Requests from several threads, while others hold, release, attach and detach.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{Address, DiskConfig, Effect, Fault, Filter, Outcome};
use super::support::{Data, Ground, pattern, read_10, write_10};

const ROUNDS: u8 = if cfg!(miri) { 4 } else { 60 };

#[test]
fn requests_of_several_threads_each_get_their_own_answer() {
    let (ground, _) = Ground::with_disk(DiskConfig::default());
    let (ground, is_over) = (&ground, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2_u8)
            .map(|thread| {
                scope.spawn(move || {
                    let first = 1000 * u32::from(thread);
                    for round in 0..ROUNDS {
                        let bytes = pattern(round ^ thread << 7, 2 * 512);
                        let at = first + u32::from(round);
                        ground.run(&write_10(at, 2), Data::Out(bytes.clone())).good();
                        assert_eq!(ground.run(&read_10(at, 2), Data::In(2 * 512)).good(), bytes);
                        let other = ground.run_at(Address::lun(1), &[0; 6], Data::None);
                        assert!(matches!(other.srb_status(), 0x01 | 0x20 | 0x05));
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            let mut disk = Some(ground.controller.disk(Address::lun(0)).unwrap());
            while !is_over.load(Ordering::Relaxed) {
                ground.controller.hold();
                match disk.take() {
                    Some(disk) => ground.controller.attach(Address::lun(1), disk).unwrap(),
                    None => disk = ground.controller.detach(Address::lun(1)),
                }
                let busy = Fault::new(Filter::any().at(Address::lun(1)), Effect::Answer(Outcome::busy()));
                ground.controller.inject(busy).unwrap();
                // Somebody has to: what was announced lies in front of completions.
                ground.host.process();
                ground.controller.resume();
                ground.controller.clear_faults();
            }
        });
        let ended: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    ground.controller.resume();
    assert_eq!(ground.controller.held_count(), 0);
    assert_eq!(ground.client.counters().outgoing_outstanding, 0);
    assert_eq!(ground.controller.take_violations(), []);
}
