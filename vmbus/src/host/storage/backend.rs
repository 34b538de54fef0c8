//! What a disk stands on: [`Backend`], and the client's memory of a request, [`RequestMemory`].

use crate::kmcl::ExternalData;

/// A backend could not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The medium is damaged there.
    #[error("the medium is damaged")]
    Medium,
    /// There is no room for what was written.
    #[error("no room left")]
    NoSpace,
    /// Something else failed.
    #[error("the backend failed")]
    Failed,
    /// The range leaves the backend.
    #[error("beyond the end")]
    OutOfRange,
    /// The client's memory cannot be reached in this direction.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The client's memory could not be reached: it lent less, or for the other direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client's memory cannot be reached like that")]
pub struct MemoryError;

/// How safe data are that a command has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// They may wait in a cache for the next flush.
    Cached,
    /// They are on the medium before the command ends ("force unit access").
    Through,
}

/// Bytes at offsets, which a disk shows as blocks.
///
/// Calls come from the context in which the controller's packets are processed: deferred work, or the main loop. Offsets and lengths lie
/// within [`len_bytes`](Self::len_bytes) and are multiples of the disk's block size. Data move directly between the backend and the memory
/// that the client lent; a backend copies each byte once.
pub trait Backend: Send + Sync {
    /// Returns the size in bytes. It may change: then the disk's user is told with [`Disk::capacity_changed`](super::Disk::capacity_changed).
    fn len_bytes(&self) -> u64;

    /// Copies the bytes from `offset` on to all of the client's memory.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; what was copied before counts for nothing.
    fn read(&self, offset: u64, target: &RequestMemory<'_>) -> Result<(), BackendError>;

    /// Copies all of the client's memory to the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; a part may have been written.
    fn write(&self, offset: u64, source: &RequestMemory<'_>, durability: Durability) -> Result<(), BackendError>;

    /// Makes everything that was written survive a power cut.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; then nothing is known to have survived.
    fn flush(&self) -> Result<(), BackendError>;

    /// Gives up the contents of a range. What is read there afterwards, the disk says with its
    /// [`Provisioning`](super::Provisioning).
    ///
    /// # Errors
    ///
    /// [`BackendError`].
    fn discard(&self, offset: u64, len: u64) -> Result<(), BackendError>;
}

/// Which way a request's data go, as the client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    FromClient,
    ToClient,
    Unsaid,
}

/// The memory that the client lent with a request, or a part of it. The client may be using it at the same time, so it is copied from and to,
/// and there is no slice of it.
#[derive(Clone, Copy, Debug)]
pub struct RequestMemory<'p> {
    external: Option<&'p ExternalData<'p>>,
    direction: Direction,
    offset: usize,
    len: usize,
}

impl<'p> RequestMemory<'p> {
    pub(super) const fn new(external: Option<&'p ExternalData<'p>>, direction: Direction, len: usize) -> Self {
        Self {
            external,
            direction,
            offset: 0,
            len,
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns `len` bytes of it from `offset` on, or nothing if it has not so many.
    #[must_use]
    pub const fn range(&self, offset: usize, len: usize) -> Option<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Some(Self {
                external: self.external,
                direction: self.direction,
                offset: self.offset + offset,
                len,
            }),
            _ => None,
        }
    }

    const fn reach(
        &self,
        offset: usize,
        len: usize,
        against: Direction,
    ) -> Result<(&'p ExternalData<'p>, usize), MemoryError> {
        let is_against = matches!(
            (self.direction, against),
            (Direction::FromClient, Direction::FromClient) | (Direction::ToClient, Direction::ToClient)
        );
        match (self.range(offset, len), self.external) {
            (Some(part), Some(external)) if !is_against => Ok((external, part.offset)),
            _ => Err(MemoryError),
        }
    }

    /// Copies bytes that the client sent; each is read once.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), MemoryError> {
        if target.is_empty() {
            return Ok(());
        }
        let (external, at) = self.reach(offset, target.len(), Direction::ToClient)?;
        external.read_at(at, target).map_err(|_| MemoryError)
    }

    /// Copies bytes for the client.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), MemoryError> {
        if source.is_empty() {
            return Ok(());
        }
        let (external, at) = self.reach(offset, source.len(), Direction::FromClient)?;
        external.write_at(at, source).map_err(|_| MemoryError)
    }
}
