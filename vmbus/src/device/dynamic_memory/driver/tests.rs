//! The driver on a real channel, whose other end is a host in the same process that speaks in literal bytes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::super::engine::support::{
    CAPABILITIES_ACCEPTED, TestPool, VERSION_ACCEPTED, at, balloon_request, balloon_response, unballoon_request,
};
use super::*;
use crate::host::Host;
use crate::protocol::Guid;
use crate::test_platform::TestPlatform;

type Received = Arc<Mutex<Vec<Vec<u8>>>>;

const SOON: Deadline = Deadline::seconds(5);

struct Bench {
    host: Host,
    platform: &'static TestPlatform,
    server: Channel<Received>,
    received: Received,
    driver: DynamicMemory<TestPool>,
    wakes: Arc<AtomicUsize>,
}

/// Requests are begun as they come, so that no test has to wait.
fn at_once() -> Config {
    Config {
        request_delay: Duration::ZERO,
        ..Config::default()
    }
}

fn offer(host: &Host, received: &Received) -> Channel<Received> {
    Channel::allocate_server_with(host, received.clone())
        .unwrap()
        .init_set_target_interface_id(CLASS, Guid::literal("00000000-0000-4000-8000-000000000001"))
        .init_set_maximum_packet_size(MAX_MESSAGE_BYTES)
        .unwrap()
        .init_set_process_packet_callback(|channel: &Channel<Received>, packet| {
            channel.context().lock().unwrap().push(packet.payload().to_vec());
            packet.complete(&[]).unwrap();
        })
        .enable(SOON)
        .unwrap()
}

impl Bench {
    fn new(pool: TestPool) -> Self {
        Self::with(at_once(), pool)
    }

    fn with(config: Config, pool: TestPool) -> Self {
        let platform = TestPlatform::leak();
        let start = std::time::Instant::now();
        let clock = move || Instant::from_reference_units(1 + u64::try_from(start.elapsed().as_micros()).unwrap() * 10);
        let host = Host::new(platform, clock).unwrap();
        let received = Received::default();
        let mut bench = Self {
            server: offer(&host, &received),
            host,
            platform,
            received,
            driver: DynamicMemory::new(platform, config, pool).unwrap(),
            wakes: Arc::default(),
        };
        bench.attach();
        bench
    }

    fn attach(&mut self) {
        let wakes = self.wakes.clone();
        let wake = move || {
            wakes.fetch_add(1, Ordering::SeqCst);
        };
        self.driver.attach(&self.host, Instance::Any, wake, SOON).unwrap();
    }

    /// Lets both ends work until neither has anything to do.
    fn run(&mut self) {
        for _ in 0..1000 {
            let progress = self.driver.run(at(0));
            let host_worked = self.host.process();
            if progress == Progress::Idle && !host_worked {
                return;
            }
        }
        panic!("no end: {:?}", self.driver.engine());
    }

    fn say(&mut self, message: &[u8]) {
        self.server.send(message).unwrap();
        self.run();
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.received.lock().unwrap())
    }

    fn shake_hands(&mut self) {
        self.run();
        self.say(&VERSION_ACCEPTED);
        self.say(&CAPABILITIES_ACCEPTED);
        assert!(
            matches!(self.driver.engine().state(), State::Running { .. }),
            "{:?}",
            self.driver.engine().state()
        );
        let kinds: Vec<u8> = self.heard().iter().map(|message| message[0]).collect();
        assert_eq!(kinds, [1, 3, 5]);
    }
}

#[test]
fn pages_come_and_go_over_a_channel_and_stay_held_between_two_openings() {
    let mut bench = Bench::new(TestPool::with_free((0..4000).step_by(2)));
    bench.shake_hands();
    assert!(bench.wakes.load(Ordering::SeqCst) >= 2, "woken for each packet");
    // Four messages of a page each: more than the ring takes at once.
    bench.say(&balloon_request(2000));
    let told: usize = bench
        .heard()
        .iter()
        .map(|message| balloon_response(message).1.len())
        .sum();
    assert_eq!(told, 2000);

    assert_eq!(
        bench
            .driver
            .attach(&bench.host, Instance::Any, || {}, SOON)
            .unwrap_err(),
        Error::WrongState,
        "attached already"
    );
    bench.driver.detach(SOON).unwrap();
    assert_eq!(bench.driver.engine().state(), State::Closed);
    assert_eq!(bench.driver.engine().held().page_count(), 2000);
    assert_eq!(bench.driver.run(at(0)), Progress::Idle);

    bench.host.process();
    bench.attach();
    bench.shake_hands();
    bench.say(&unballoon_request(&[(0, 2000)], false));
    let heard = bench.heard();
    assert_eq!((heard.len(), heard[0][0]), (1, 9));
    assert_eq!(bench.driver.engine().pool().free.len(), 1000);
    assert_eq!(bench.driver.engine().held().page_count(), 1000);
}

#[test]
fn requests_that_come_faster_than_they_can_be_met_wait_in_the_ring() {
    let mut bench = Bench::new(TestPool::with_free((0..4000).step_by(2)));
    bench.shake_hands();
    for _ in 0..12 {
        bench.server.send(&balloon_request(100)).unwrap();
    }
    bench.run();
    let heard = bench.heard();
    assert_eq!(heard.len(), 12);
    for message in heard {
        assert_eq!(balloon_response(&message).1.len(), 100);
    }
}

#[test]
fn a_request_lies_for_a_while_before_it_is_begun_but_the_handshake_does_not() {
    let mut bench = Bench::with(Config::default(), TestPool::with_free((0..4000).step_by(2)));
    bench.shake_hands();
    bench.heard();
    bench.say(&balloon_request(100));
    assert_eq!(bench.heard().len(), 0);
    assert_eq!(bench.driver.next_wakeup(), Some(at(10)));
    for (now, answers) in [(9, 0), (10, 1)] {
        bench.driver.run(at(now));
        bench.host.process();
        assert_eq!(bench.heard().len(), answers, "after {now} ms");
    }
}

#[test]
fn a_channel_that_is_taken_away_leaves_the_pages_held_and_nothing_else_behind() {
    let mut bench = Bench::new(TestPool::with_free((0..4000).step_by(2)));
    bench.shake_hands();
    bench.say(&balloon_request(500));
    // Two requests that have not been looked at, and no offer any more.
    bench.server.send(&balloon_request(100)).unwrap();
    bench.server.send(&balloon_request(100)).unwrap();
    bench.host.process();
    let Bench {
        host,
        platform,
        server,
        received,
        mut driver,
        ..
    } = bench;
    server.disable(SOON).map(drop).unwrap();
    for _ in 0..10 {
        driver.run(at(0));
        host.process();
    }
    assert_eq!(driver.engine().state(), State::Closed);
    assert_eq!(driver.engine().held().page_count(), 500);
    assert_eq!(driver.engine().pool().taken.len(), 500);
    assert_eq!(platform.pages_in_use(), 0, "the rings were given back");
    assert_eq!(driver.run(at(0)), Progress::Idle);
    driver.detach(SOON).unwrap();

    // It may come back.
    let _server = offer(&host, &received);
    driver.attach(&host, Instance::Any, || {}, SOON).unwrap();
    driver.run(at(0));
    host.process();
    assert!(matches!(driver.engine().state(), State::Negotiating { .. }));
    let (pool, held) = driver.into_parts();
    assert_eq!((pool.taken.len(), held.page_count()), (500, 500));
}

#[test]
fn what_is_looked_at_is_completed_and_counted() {
    let mut bench = Bench::new(TestPool::with_free((0..4000).step_by(2)));
    bench.shake_hands();
    bench.say(&balloon_request(100));
    let counters = bench.driver.channel_counters().unwrap();
    // The handshake's two answers and the request; its three messages and one answer.
    assert_eq!((counters.packets_processed, counters.packets_sent), (3, 4));
    assert_eq!((counters.incoming_outstanding, counters.dropped), (0, 0));
    bench.driver.detach(SOON).unwrap();
    assert_eq!(bench.driver.channel_counters(), None);
}

#[test]
fn a_request_that_still_lies_is_let_go_of_with_the_channel() {
    let mut bench = Bench::with(Config::default(), TestPool::with_free((0..4000).step_by(2)));
    bench.shake_hands();
    bench.say(&balloon_request(100));
    assert!(bench.driver.next_wakeup().is_some());
    bench.driver.detach(SOON).unwrap();
    assert_eq!(bench.driver.next_wakeup(), None);
    assert_eq!(bench.platform.pages_in_use(), 0, "the rings were given back");
    // The next conversation does not begin with a request of the last.
    bench.host.process();
    bench.attach();
    bench.shake_hands();
    assert_eq!(bench.driver.engine().counters().unexpected, 0);
    bench.driver.run(at(100));
    bench.host.process();
    assert_eq!(bench.heard().len(), 0);
}

#[test]
fn why_a_channel_has_ended_is_told_until_there_is_another() {
    let mut bench = Bench::new(TestPool::with_free(0..100));
    bench.shake_hands();
    assert_eq!(bench.driver.gone(), None);
    bench.server = offer_again(bench.server, &bench.host, &bench.received);
    bench.run();
    assert_eq!(bench.driver.gone(), Some(Gone::Rescinded));
    bench.attach();
    assert_eq!(bench.driver.gone(), None);
    bench.driver.detach(SOON).unwrap();
    assert_eq!(bench.driver.gone(), None, "we have ended it ourselves");
}

/// Withdraws the offer and makes another.
fn offer_again(server: Channel<Received>, host: &Host, received: &Received) -> Channel<Received> {
    drop(server.disable(SOON).unwrap());
    offer(host, received)
}

#[test]
fn a_full_ring_passes_and_a_channel_that_is_gone_does_not() {
    let mut bench = Bench::new(TestPool::with_free(0..100));
    bench.shake_hands();
    let send = |driver: &DynamicMemory<TestPool>| Sender(driver.channel.as_ref().unwrap()).send(&[0; 4000]);
    let result = (0..100).map(|_| send(&bench.driver)).find(Result::is_err);
    assert_eq!(result, Some(Err(SendError::Full)), "nobody reads");
    bench.server = offer_again(bench.server, &bench.host, &bench.received);
    assert_eq!(send(&bench.driver), Err(SendError::Gone));
}

#[test]
fn the_owner_is_woken_when_the_channel_is_taken_away() {
    let mut bench = Bench::new(TestPool::with_free(0..10));
    bench.shake_hands();
    let before = bench.wakes.load(Ordering::SeqCst);
    bench.server.disable(SOON).map(drop).unwrap();
    bench.host.process();
    assert!(bench.wakes.load(Ordering::SeqCst) > before);
    assert_eq!(bench.driver.run(at(0)), Progress::Idle);
    assert_eq!(bench.driver.gone(), Some(Gone::Rescinded));
    // Nothing is due any more.
    assert_eq!(bench.driver.next_wakeup(), None);
}

/// From a callback of its own the channel cannot be closed: it stays, and is closed later.
#[test]
fn a_channel_that_cannot_be_closed_now_stays_and_is_closed_later() {
    let Bench {
        host,
        platform,
        server,
        driver,
        ..
    } = Bench::new(TestPool::with_free(0..10));
    let driver = Arc::new(Mutex::new(driver));
    let outcomes: Arc<Mutex<Vec<Result<(), Error>>>> = Arc::default();
    {
        let mut locked = driver.lock().unwrap();
        locked.detach(SOON).unwrap();
        host.process();
        let (weak, outcomes) = (Arc::downgrade(&driver), outcomes.clone());
        let wake = move || {
            if let Some(driver) = weak.upgrade()
                && let Ok(mut driver) = driver.try_lock()
            {
                outcomes.lock().unwrap().push(driver.detach(SOON));
            }
        };
        locked.attach(&host, Instance::Any, wake, SOON).unwrap();
        locked.run(at(0));
        assert!(locked.next_wakeup().is_some(), "an answer is due");
    }
    host.process();
    server.send(&VERSION_ACCEPTED).unwrap();
    host.process();
    assert_eq!(*outcomes.lock().unwrap(), [Err(Error::WouldDeadlock)]);
    let mut driver = driver.lock().unwrap();
    assert!(driver.channel_counters().is_some(), "the channel is still there");
    assert_eq!((driver.engine().state(), driver.next_wakeup()), (State::Closed, None));
    driver.detach(SOON).unwrap();
    assert!(driver.channel_counters().is_none());
    host.process();
    server.disable(SOON).map(drop).unwrap();
    assert_eq!(platform.pages_in_use(), 0);
}

#[test]
fn a_ring_that_the_host_has_broken_is_no_full_one() {
    let bench = Bench::new(TestPool::with_free(0..10));
    let channel = bench.driver.channel.as_ref().unwrap();
    let broken = crate::host::Misbehaviour::ReadIndex(3);
    bench.host.misbehave(channel.id(), broken).unwrap();
    let error = (0..10_000).find_map(|_| Sender(channel).send(&[0; 64]).err());
    assert_eq!(error, Some(SendError::Gone));
}
