//! Futures, and what comes while one is polled.
#![expect(unsafe_code, reason = "only a waker made by hand tells when it is cloned")]

use core::pin::pin;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::task::{RawWaker, RawWakerVTable};
use std::boxed::Box;
use std::sync::OnceLock;

use super::*;
use crate::host::Misbehaviour;
use crate::testing::Loopback;

/// Counts its wakes, and does something while it is cloned, and while it is dropped.
struct Hook {
    clones: AtomicUsize,
    wakes: AtomicUsize,
    /// With each clone, and its number.
    cloned: Box<dyn Fn(usize) + Send + Sync>,
    dropped: Box<dyn Fn() + Send + Sync>,
}

impl Hook {
    fn waker(cloned: impl Fn(usize) + Send + Sync + 'static) -> (&'static Self, Waker) {
        Self::waker_with(cloned, || ())
    }

    fn waker_with(
        cloned: impl Fn(usize) + Send + Sync + 'static,
        dropped: impl Fn() + Send + Sync + 'static,
    ) -> (&'static Self, Waker) {
        let hook: &'static Self = Box::leak(Box::new(Self {
            clones: AtomicUsize::new(0),
            wakes: AtomicUsize::new(0),
            cloned: Box::new(cloned),
            dropped: Box::new(dropped),
        }));
        // SAFETY: the functions of the table take a hook that lives for ever, from any thread.
        let waker = unsafe { Waker::new(core::ptr::from_ref(hook).cast(), &TABLE) };
        (hook, waker)
    }
}

static TABLE: RawWakerVTable = RawWakerVTable::new(
    |data| {
        // SAFETY: made by `Hook::waker`.
        let hook = unsafe { &*data.cast::<Hook>() };
        (hook.cloned)(hook.clones.fetch_add(1, SeqCst));
        RawWaker::new(data, &TABLE)
    },
    wake,
    wake,
    |data| {
        // SAFETY: made by `Hook::waker`.
        let hook = unsafe { &*data.cast::<Hook>() };
        (hook.dropped)();
    },
);

fn wake(data: *const ()) {
    // SAFETY: made by `Hook::waker`.
    let hook = unsafe { &*data.cast::<Hook>() };
    hook.wakes.fetch_add(1, SeqCst);
}

#[test]
fn a_request_knows_whether_its_completion_is_there() {
    let both = Loopback::echo().unwrap();
    let channel = both.open().unwrap();
    let request = channel.send_request(b"question", None).unwrap();
    assert!(!request.is_done());
    both.host().process();
    assert!(request.is_done());
}

#[test]
fn a_completion_that_comes_while_the_future_is_polled_wakes_it() {
    // The first clone goes with the request, the second is made after a look for the completion.
    for (at, wakes) in [(1, 1), (7, 0)] {
        let both: &'static Loopback = Box::leak(Box::new(Loopback::echo().unwrap()));
        let channel = both.open().unwrap();
        let (hook, waker) = Hook::waker(move |number| {
            if number == at {
                both.host().process();
            }
        });
        let mut request = pin!(channel.request(b"question", None));
        let poll = request.as_mut().poll(&mut core::task::Context::from_waker(&waker));
        assert!(poll.is_pending());
        // Once by who brought it, with the first clone, and once by the future itself.
        assert_eq!(hook.wakes.load(SeqCst), 2 * wakes);
        both.host().process();
        assert_eq!(hook.wakes.load(SeqCst), 1 + wakes);
        let poll = request.poll(&mut core::task::Context::from_waker(&waker));
        assert!(matches!(poll, Poll::Ready(Ok(reply)) if reply.payload() == b"question"));
    }
}

#[test]
fn a_ring_that_breaks_while_its_completion_is_awaited_ends_the_request_and_keeps_its_memory() {
    let both = breaking();
    let channel = both.open().unwrap();
    let memory = both.memory(b"lent").unwrap();
    let buffer = memory.clone().into_dma_buffer().unwrap();
    let refused = channel
        .send_synchronous_request(b"x", Some(memory), Deadline::seconds(5), &mut [])
        .unwrap_err();
    assert_eq!(
        (refused.error, refused.given.is_some()),
        (Error::Gone(Gone::Corrupt), false)
    );
    assert!(!buffer.is_sole_owner(), "the peer may still write to it");
    drop(channel.disable(Deadline::seconds(5)).unwrap());
    assert!(buffer.is_sole_owner());
}

/// A server that breaks the ring instead of answering.
fn breaking() -> &'static Loopback {
    let both: &OnceLock<Loopback> = Box::leak(Box::new(OnceLock::new()));
    both.get_or_init(|| {
        Loopback::new(|channel, packet| {
            let broken = Misbehaviour::WriteIndex(7);
            both.get().unwrap().host().misbehave(channel.id(), broken).unwrap();
            packet.abandon();
        })
        .unwrap()
    })
}

#[test]
fn a_future_is_woken_when_the_ring_breaks() {
    let both = breaking();
    let channel = both.open().unwrap();
    let (hook, waker) = Hook::waker(|_| ());
    let mut context = core::task::Context::from_waker(&waker);
    let mut request = pin!(channel.request(b"question", None));
    assert!(request.as_mut().poll(&mut context).is_pending());
    both.host().process();
    assert_eq!(hook.wakes.load(SeqCst), 1);
    let poll = request.as_mut().poll(&mut context);
    assert!(matches!(poll, Poll::Ready(Err(refused)) if refused.error == Error::Gone(Gone::Corrupt)));
}

#[test]
fn a_future_is_woken_when_the_channel_is_disabled() {
    let both = Loopback::echo().unwrap();
    let channel = both.open().unwrap();
    let (hook, waker) = Hook::waker(|_| ());
    let mut context = core::task::Context::from_waker(&waker);
    let mut request = pin!(channel.request(b"question", None));
    assert!(request.as_mut().poll(&mut context).is_pending());
    channel.clone().disable(Deadline::seconds(1)).unwrap();
    assert_eq!(hook.wakes.load(SeqCst), 1);
    let poll = request.as_mut().poll(&mut context);
    assert!(matches!(poll, Poll::Ready(Err(refused)) if refused.error == Error::Gone(Gone::Disabled)));
}

#[test]
fn a_future_is_told_of_a_ring_that_breaks_while_it_is_polled() {
    let both = breaking();
    let channel = both.open().unwrap();
    // The first clone is sent along with the request, the second takes its place at the end of the poll.
    let (_, waker) = Hook::waker(|clone| {
        if clone == 1 {
            both.host().process();
        }
    });
    let mut context = core::task::Context::from_waker(&waker);
    let mut request = pin!(channel.request(b"question", None));
    let poll = request.as_mut().poll(&mut context);
    assert!(matches!(poll, Poll::Ready(Err(refused)) if refused.error == Error::Gone(Gone::Corrupt)));
}

#[test]
fn the_waker_of_the_last_poll_is_the_one_that_is_woken() {
    let both = Loopback::echo().unwrap();
    let channel = both.open().unwrap();
    let (first, first_waker) = Hook::waker(|_| ());
    let (last, last_waker) = Hook::waker(|_| ());
    let mut request = pin!(channel.request(b"question", None));
    for waker in [&first_waker, &last_waker] {
        let poll = request.as_mut().poll(&mut core::task::Context::from_waker(waker));
        assert!(poll.is_pending());
    }
    both.host().process();
    assert_eq!((first.wakes.load(SeqCst), last.wakes.load(SeqCst)), (0, 1));
}

/// Polls a request once and drops it, and returns whether the channel's lock was free each time that a waker was dropped.
fn locks_at_drops(channel: &Channel, expected: Option<Error>) -> Vec<bool> {
    let free = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (watch, seen) = (channel.uncounted(), free.clone());
    let look = move || {
        let is_free = watch.core().outgoing.try_lock_in_emergency().is_some();
        seen.lock().unwrap().push(is_free);
    };
    let (_, waker) = Hook::waker_with(|_| (), look);
    {
        let mut request = pin!(channel.request(b"question", None));
        let poll = request.as_mut().poll(&mut core::task::Context::from_waker(&waker));
        match (poll, expected) {
            (Poll::Pending, None) => {}
            (Poll::Ready(Err(refused)), Some(expected)) => assert_eq!(refused.error, expected),
            (poll, _) => panic!("{poll:?}"),
        }
    }
    free.lock().unwrap().clone()
}

#[test]
fn no_waker_is_dropped_under_a_lock() {
    // Of a request that is sent, and of one that waits in line.
    let both = Loopback::echo().unwrap();
    let channel = both.open().unwrap();
    assert_eq!(locks_at_drops(&channel, None), [true; 2]);
    while channel.core().send_plain(b"filler", IfFull::Refuse).is_ok() {}
    assert_eq!(locks_at_drops(&channel, None), [true; 2]);
    // Of one that finds the table full, though there is a packet.
    let both = Loopback::echo().unwrap();
    let channel = both.client().unwrap().init_set_maximum_packet_count(1);
    let channel = channel.enable(Deadline::seconds(5)).unwrap();
    let mut own = channel.packet_initialize().unwrap();
    own.set_completion_routine(|_, _, _| ());
    own.send(b"x", None, SendFlags::WAIT_FOR_COMPLETION).unwrap();
    assert_eq!(locks_at_drops(&channel, Some(Error::TooManyPackets)), [true]);
    // Of one that is not written.
    let both = Loopback::echo().unwrap();
    let channel = both.open().unwrap();
    both.host().misbehave(channel.id(), Misbehaviour::ReadIndex(3)).unwrap();
    while channel.core().send_plain(b"filler", IfFull::Refuse).is_ok() {}
    assert_eq!(locks_at_drops(&channel, Some(Error::Corrupt)), [true]);
}

#[test]
fn memory_that_a_server_in_this_kernel_did_not_give_up_in_time_comes_back_when_it_does() {
    let held = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let hold = held.clone();
    let both = Loopback::new(move |_, packet| hold.lock().unwrap().push(packet)).unwrap();
    let channel = both.open().unwrap();
    let memory = both.memory(b"lent").unwrap();
    let buffer = memory.clone().into_dma_buffer().unwrap();
    let packet = channel.packet_allocate().unwrap();
    packet
        .send(b"question", Some(memory), SendFlags::WAIT_FOR_COMPLETION)
        .unwrap();
    both.host().process();
    drop(channel.disable(Deadline::millis(20)).unwrap());
    held.lock().unwrap().clear();
    assert!(buffer.is_sole_owner());
}
