//! Ring pages that are mapped twice in a row, as a platform would do it; for tests and benchmarks on Linux.

use core::ptr::NonNull;
use std::io::{Error, ErrorKind, Result};

use vmbus::ring::{InvalidRing, SharedRing};

/// A control page, the data, and the data again.
#[derive(Debug)]
pub(crate) struct Twice {
    base: NonNull<u8>,
    size: u32,
}

impl Twice {
    /// A ring with this many data bytes.
    pub(crate) fn new(size: u32) -> Result<Self> {
        let check = |ok: bool| if ok { Ok(()) } else { Err(Error::last_os_error()) };
        // SAFETY: a name and a number.
        let file = unsafe { libc::memfd_create(c"ring".as_ptr(), 0) };
        check(file >= 0)?;
        let len = size as usize;
        let all = 4096 + 2 * len;
        // SAFETY: fresh address space.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                all,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        check(base != libc::MAP_FAILED)?;
        let base = NonNull::new(base).ok_or(ErrorKind::OutOfMemory)?.cast();
        // From here on, dropping unmaps.
        let pages = Self { base, size };
        // SAFETY: our own file.
        check(unsafe { libc::ftruncate(file, 4096 + i64::from(size)) } == 0)?;
        for (at, offset, len) in [(0, 0, 4096), (4096, 4096, len), (4096 + len, 4096, len)] {
            // SAFETY: within the address space reserved above.
            let target = unsafe { base.as_ptr().add(at) };
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: replaces pages reserved above by pages of the file.
            let mapped = unsafe {
                libc::mmap(
                    target.cast(),
                    len,
                    protection,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file,
                    offset,
                )
            };
            check(mapped != libc::MAP_FAILED)?;
        }
        // SAFETY: the mappings keep the file.
        check(unsafe { libc::close(file) } == 0)?;
        Ok(pages)
    }

    /// Where the data starts.
    const fn data(&self) -> NonNull<u8> {
        // SAFETY: behind the control page.
        unsafe { self.base.add(4096) }
    }

    /// A view of the ring that knows both mappings.
    pub(crate) fn ring(&self) -> core::result::Result<SharedRing<&Self>, InvalidRing> {
        // SAFETY: mapped, aligned, twice in a row, for as long as the borrow in the ring lives; used by rings only.
        unsafe { SharedRing::new_mapped_twice(self.base, self.data(), self.size, self) }
    }

    /// A view of the ring that knows only the first.
    pub(crate) fn ring_split(&self) -> core::result::Result<SharedRing<&Self>, InvalidRing> {
        // SAFETY: mapped, aligned, for as long as the borrow in the ring lives; used by rings only.
        unsafe { SharedRing::new(self.base, self.data(), self.size, self) }
    }
}

impl Drop for Twice {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and no ring is left: they borrow.
        unsafe { libc::munmap(self.base.as_ptr().cast(), 4096 + 2 * self.size as usize) };
    }
}
