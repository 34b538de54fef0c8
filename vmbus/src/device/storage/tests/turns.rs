//! Futures that wait for a packet of the channel, of which there are few: whoever is woken in vain, or is no more, leaves its turn to the
//! next.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use super::fake::{Fake, FakeDisk, SOON};
use crate::device::storage::{Config, Disk, Error, Transfer};
use crate::host::Misbehaviour;

fn fake(commands: u32) -> (Fake, Disk) {
    let fake = Fake::new([(0, FakeDisk::new(256, 512))]);
    let config = Config {
        commands,
        ..Config::default()
    };
    let disk = fake.attach_with(config).wait_for_disk(SOON).unwrap();
    fake.script().seen.clear();
    fake.script().holds = true;
    (fake, disk)
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A task: a request, and how often it was woken.
struct Task {
    request: Option<Transfer>,
    woken: Arc<Count>,
}

impl Task {
    /// Begins a flush, and looks once.
    fn new(disk: &Disk) -> Self {
        let mut this = Self {
            request: Some(disk.start_flush()),
            woken: Arc::default(),
        };
        assert!(this.poll().is_pending());
        this
    }

    fn poll(&mut self) -> Poll<Result<(), Error>> {
        self.woken.0.store(0, Ordering::SeqCst);
        let waker = Waker::from(self.woken.clone());
        let request = self.request.as_mut().unwrap();
        let poll = Pin::new(request).poll(&mut Context::from_waker(&waker));
        if poll.is_ready() {
            self.request = None;
        }
        poll.map(|result| result.map_err(Error::from))
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst) > 0
    }
}

fn answer(fake: &Fake) {
    fake.host.process();
    assert_eq!(fake.held(), 1, "one at a time");
    fake.release(|_| ());
    fake.host.process();
}

#[test]
fn one_that_was_given_up_leaves_its_turn_to_the_next() {
    let (fake, disk) = fake(1);
    let mut first = Task::new(&disk);
    let [second, mut third] = [(); 2].map(|()| Task::new(&disk));
    drop(second);
    answer(&fake);
    assert!(first.poll().is_ready());
    assert!(third.is_woken(), "a packet is free");
    assert!(third.poll().is_pending());
    answer(&fake);
    assert!(third.poll().is_ready());
}

#[test]
fn one_that_is_given_up_in_its_turn_leaves_it_to_the_next() {
    let (fake, disk) = fake(1);
    let mut first = Task::new(&disk);
    let [second, third] = [(); 2].map(|()| Task::new(&disk));
    answer(&fake);
    assert!(first.poll().is_ready());
    assert!(second.is_woken() && !third.is_woken());
    drop(second);
    assert!(third.is_woken(), "a packet is free");
}

#[test]
fn one_that_is_polled_often_stands_in_line_once() {
    let (fake, disk) = fake(1);
    let mut first = Task::new(&disk);
    let mut second = Task::new(&disk);
    for _ in 0..100 {
        assert!(second.poll().is_pending());
    }
    let mut third = Task::new(&disk);
    answer(&fake);
    assert!(first.poll().is_ready());
    assert!(second.is_woken() && second.poll().is_pending());
    answer(&fake);
    assert!(second.is_woken() && second.poll().is_ready());
    assert!(third.is_woken(), "a packet is free");
    assert!(third.poll().is_pending());
    answer(&fake);
    assert!(third.poll().is_ready());
}

#[test]
fn all_that_wait_for_a_packet_are_told_that_the_channel_has_ended() {
    for is_broken in [false, true] {
        let (mut fake, disk) = fake(1);
        let mut tasks: Vec<Task> = (0..5).map(|_| Task::new(&disk)).collect();
        fake.host.process();
        if is_broken {
            let channel = fake.server.as_ref().unwrap().id();
            fake.host.misbehave(channel, Misbehaviour::WriteIndex(7)).unwrap();
            fake.host.process();
        } else {
            fake.revoke();
        }
        for _ in 0..1000 {
            for task in &mut tasks {
                if task.request.is_some()
                    && task.is_woken()
                    && let Poll::Ready(result) = task.poll()
                {
                    assert_eq!(result, Err(Error::ControllerGone));
                }
            }
        }
        assert!(tasks.iter().all(|task| task.request.is_none()), "broken: {is_broken}");
    }
}

/// A waker that polls its task there and then, as another processor may.
struct AtOnce(Mutex<Option<Transfer>>);

impl Wake for AtOnce {
    fn wake(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        // Woken by its own poll, it is being polled.
        let Ok(mut request) = self.0.try_lock() else { return };
        if let Some(running) = request.as_mut()
            && Pin::new(running).poll(&mut Context::from_waker(&waker)).is_ready()
        {
            *request = None;
        }
    }
}

#[test]
fn the_packet_is_free_when_the_next_is_woken() {
    let (fake, disk) = fake(2);
    let mut first = Task::new(&disk);
    let _long = Task::new(&disk);
    let next = Arc::new(AtOnce(Mutex::new(Some(disk.start_flush()))));
    next.clone().wake();
    fake.host.process();
    assert_eq!(fake.held(), 2);
    // The other one takes long.
    let mut long = None;
    fake.release(|held| long = held.pop());
    fake.host.process();
    assert!(first.poll().is_ready());
    fake.host.process();
    assert_eq!(fake.held(), 1, "the next has sent its command");
    drop(long);
}
