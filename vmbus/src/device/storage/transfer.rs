//! A request to a disk that is on its way: [`Transfer`], and the memory that it lends: [`Lend`].

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::operation::Operation;
use super::{Error, Failed};
use crate::Deadline;
use crate::memory::{DmaBuffer, Mdl};

/// Memory that a request lends to the host: a [`DmaBuffer`] or an [`Mdl`].
pub trait Lend: sealed::Lend + Sized {
    /// Describes the memory.
    fn into_mdl(self) -> Mdl;
    /// Makes it what it was.
    fn from_mdl(mdl: Mdl) -> Option<Self>;
}

mod sealed {
    pub trait Lend {}
}

impl sealed::Lend for DmaBuffer {}
impl Lend for DmaBuffer {
    fn into_mdl(self) -> Mdl {
        self.into()
    }
    fn from_mdl(mdl: Mdl) -> Option<Self> {
        mdl.into_dma_buffer().ok()
    }
}

impl sealed::Lend for Mdl {}
impl Lend for Mdl {
    fn into_mdl(self) -> Mdl {
        self
    }
    fn from_mdl(mdl: Mdl) -> Option<Self> {
        Some(mdl)
    }
}

/// Requests without data lend nothing.
impl sealed::Lend for () {}
impl Lend for () {
    fn into_mdl(self) -> Mdl {
        Mdl::empty()
    }
    fn from_mdl(_: Mdl) -> Option<Self> {
        Some(())
    }
}

/// A request to a disk that is on its way: to be awaited, or waited for.
///
/// Dropping it gives the request up: it may still be done, and the memory that it lends is released when the host is done with
/// it. A future that finds the disk busy asks to be polled again until it may be asked once more: the crate has no timers.
#[must_use = "a request that is dropped is given up"]
pub struct Transfer<B: Lend = ()> {
    operation: Operation,
    lent: PhantomData<fn() -> B>,
}

// Nothing in it is ever pinned.
impl<B: Lend> Unpin for Transfer<B> {}

impl<B: Lend> Transfer<B> {
    pub(super) const fn new(operation: Operation) -> Self {
        Self {
            operation,
            lent: PhantomData,
        }
    }

    fn finish(&mut self, result: Result<u32, Error>) -> Result<B, Failed<B>> {
        let buffer = if self.operation.is_lent() {
            None
        } else {
            B::from_mdl(core::mem::replace(&mut self.operation.memory, Mdl::empty()))
        };
        match (result, buffer) {
            (Ok(_), Some(buffer)) => Ok(buffer),
            // It was made from one, so it is one.
            (Ok(_), None) => Err(Failed {
                error: Error::Protocol,
                buffer: None,
            }),
            (Err(error), buffer) => Err(Failed { error, buffer }),
        }
    }

    /// Waits until the request is done. Context: task.
    ///
    /// # Errors
    ///
    /// [`Failed`], with the memory if the host does not have it any more. After [`Error::TimedOut`] it may be done all the same.
    pub fn wait(mut self, deadline: Deadline) -> Result<B, Failed<B>> {
        self.wait_here(deadline)
    }

    /// Waits without being moved, which costs as much as some of the work.
    pub(super) fn wait_here(&mut self, deadline: Deadline) -> Result<B, Failed<B>> {
        let result = self.operation.wait(deadline);
        self.finish(result)
    }
}

impl<B: Lend> Future for Transfer<B> {
    type Output = Result<B, Failed<B>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.operation.poll(context.waker()) {
            Poll::Ready(result) => Poll::Ready(self.finish(result)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<B: Lend> fmt::Debug for Transfer<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Transfer").finish_non_exhaustive()
    }
}
