//! The memory that a packet of the peer describes: [`ExternalData`], and what a packet says of it.

use zerocopy::little_endian::U64;

use super::IncomingPacket;
use crate::kmcl::endpoint::Core;
use crate::kmcl::receive::IncomingBody;
use crate::kmcl::{Context, Error};
use crate::memory::{Mdl, Pfn};
use crate::protocol::packet::PacketType;
use crate::ring::{External, GpaRanges};

impl<C: Context> IncomingPacket<C> {
    /// Returns true if the packet describes memory (KMCL: flag 1 of `EvtVmbChannelProcessPacket`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     if packet.has_external_data() {
    ///         log::debug!("{:?}", packet.external_data());
    ///     }
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn has_external_data(&self) -> bool {
        self.body()
            .is_some_and(|body| body.packet_type == PacketType::GPA_DIRECT)
    }

    /// Returns the memory that the packet describes, to read and write (`VmbChannelPacketGetExternalData`):
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let answer = match packet.external_data().and_then(|data| data.write_at(0, b"result")) {
    ///         Ok(()) => NtStatus::SUCCESS,
    ///         Err(error) => error.ntstatus(),
    ///     };
    ///     drop(packet.complete(&answer.0.to_le_bytes()));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let memory = Some(both.memory(b"external")?);
    /// # let sent = channel.send_synchronous_request(b"question", memory, Deadline::seconds(1), &mut [1; 8])?;
    /// # let mut bytes = [0; 8];
    /// # sent.mdl.unwrap().read_at(0, &mut bytes).unwrap();
    /// # assert_eq!(&bytes, b"resultal");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// It stays until the packet is completed, and ends with it:
    ///
    /// ```compile_fail,E0505
    /// # use vmbus::kmcl::{Channel, IncomingPacket};
    /// fn on_packet(_: &Channel<()>, mut packet: IncomingPacket<()>) {
    ///     let Ok(data) = packet.external_data() else { return };
    ///     let _ = packet.complete(&[]);
    ///     let _ = data.len();
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoExternalData`]; [`Error::Pending`]: return from the callback without completing the packet, by
    /// [`wait_for_external_data`](Self::wait_for_external_data), and it is delivered again; [`Error::NotLent`] if the peer
    /// does not lend what it describes; [`Error::InvalidExternalData`] if it is beyond the channel's limits.
    pub fn external_data(&mut self) -> Result<ExternalData<'_>, Error> {
        self.pin(false)
    }

    /// Returns the memory that the packet describes, only to read (`VMBUS_CHANNEL_PACKET_EXTERNAL_DATA_FLAG_READ_ONLY`).
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let mut first = [0; 4];
    ///     if let Ok(data) = packet.external_data_read_only() {
    ///         let _ = data.read_at(0, &mut first);
    ///     }
    ///     drop(packet.complete(&first));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # assert_eq!(sent.len, 8);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`external_data`](Self::external_data).
    pub fn external_data_read_only(&mut self) -> Result<ExternalData<'_>, Error> {
        self.pin(true)
    }

    fn pin(&mut self, read_only: bool) -> Result<ExternalData<'_>, Error> {
        let (body, core) = self.body_and_core().ok_or(Error::NoExternalData)?;
        if body.is_pending {
            return Err(Error::Pending);
        }
        if body.pinned.is_none() {
            body.pinned = Some(core.external_of(body)?);
        }
        body.pinned
            .as_ref()
            .map(|mdl| ExternalData { mdl, read_only })
            .ok_or(Error::NoExternalData)
    }

    /// Makes the external data look as if it had to be brought in first, until the packet is delivered again: for a server in
    /// this kernel that is to behave like one whose memory is paged.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     if packet.level() == Level::Dispatch {
    ///         packet.pretend_pending();
    ///     }
    ///     if packet.external_data().err() == Some(Error::Pending) {
    ///         // Comes again at `PASSIVE`, with the data there.
    ///         let _ = packet.wait_for_external_data();
    ///         return;
    ///     }
    ///     drop(packet.complete(b"answer"));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let packet = channel.packet_allocate()?;
    /// # packet.send(b"question", Some(both.memory(b"external")?), SendFlags::WAIT_FOR_COMPLETION)?;
    /// # both.host().process();
    /// # assert_eq!(channel.counters().outgoing_outstanding, 1);
    /// # both.server().process_at_passive();
    /// # both.host().process();
    /// # assert_eq!(channel.counters().outgoing_outstanding, 0);
    /// # Ok::<(), Error>(())
    /// ```
    #[cfg(feature = "host")]
    pub fn pretend_pending(&mut self) {
        if let Some((body, _)) = self.body_and_core() {
            body.is_pending = true;
        }
    }

    /// Returns the transfer page ranges that the packet names, each with offset and length, once all are known to lie within a
    /// buffer of `buffer_len` bytes; and the number of the buffer, an allegation.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// # let both = Loopback::echo()?;
    /// # let channel = both.open()?;
    /// /// Length of the buffer that both ends know.
    /// const LEN: u64 = 65536;
    /// fn on_packet(_: &Channel, packet: IncomingPacket<()>) {
    ///     match packet.transfer_pages(LEN) {
    ///         Ok((set, ranges)) => log::debug!("{} ranges of buffer {set}", ranges.count()),
    ///         Err(error) => log::warn!("{error}"),
    ///     }
    /// }
    /// # let other = Loopback::new(on_packet)?;
    /// # other.open()?.send_transfer_pages(7, &[(0, 10)], b"received")?;
    /// # other.host().process();
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoExternalData`] if the packet names none, [`Error::Corrupt`] if a range lies outside.
    pub fn transfer_pages(&self, buffer_len: u64) -> Result<(u16, impl Iterator<Item = (u32, u32)> + '_), Error> {
        let body = self.body().ok_or(Error::NoExternalData)?;
        match body.external() {
            Ok(External::TransferPages(pages)) => {
                Ok((pages.set_id(), pages.within(buffer_len).map_err(|_| Error::Corrupt)?))
            }
            Ok(_) => Err(Error::NoExternalData),
            Err(_) => Err(Error::Corrupt),
        }
    }
}

/// Memory that a packet describes, until the packet is completed. The peer may write to it at the same time.
#[derive(Debug)]
pub struct ExternalData<'p> {
    mdl: &'p Mdl,
    read_only: bool,
}

impl ExternalData<'_> {
    /// Returns the length in bytes.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let len = packet.external_data().map_or(0, |data| data.len() as u64);
    ///     drop(packet.complete(&len.to_le_bytes()));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # assert_eq!(sent.len, 8);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn len(&self) -> usize {
        self.mdl.len()
    }

    /// Returns true if there are no bytes.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let is_there = packet.external_data().is_ok_and(|data| !data.is_empty());
    /// #     assert!(is_there);
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.mdl.is_empty()
    }

    /// Copies bytes out; each is read once.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let mut first = [0; 8];
    ///     if let Ok(data) = packet.external_data() {
    ///         let _ = data.read_at(0, &mut first);
    ///     }
    /// #     assert_eq!(&first, b"external");
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`].
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> Result<(), Error> {
        self.mdl.read_at(offset, target).map_err(|_| Error::OutOfRange)
    }

    /// Copies bytes in.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let written = packet.external_data().and_then(|data| data.write_at(0, b"result"));
    ///     let status = written.map_or_else(|error| error.ntstatus(), |()| NtStatus::SUCCESS);
    ///     drop(packet.complete(&status.0.to_le_bytes()));
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # let mut bytes = [0; 8];
    /// # sent.mdl.unwrap().read_at(0, &mut bytes).unwrap();
    /// # assert_eq!(&bytes, b"resultal");
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`] if the data was asked for only to read; [`Error::OutOfRange`].
    pub fn write_at(&self, offset: usize, source: &[u8]) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        self.mdl.write_at(offset, source).map_err(|_| Error::OutOfRange)
    }

    /// Returns the number of parts of the chain.
    ///
    /// ```
    /// # use vmbus::{Deadline, kmcl::*, testing::Loopback};
    /// fn on_packet(_: &Channel, mut packet: IncomingPacket<()>) {
    ///     let parts = packet.external_data().map_or(0, |data| data.chain_len());
    /// #     assert_eq!(parts, 1);
    /// }
    /// # let both = Loopback::new(on_packet)?;
    /// # let channel = both.open()?;
    /// # let sent = channel.send_synchronous_request(b"question", Some(both.memory(b"external")?), Deadline::seconds(1), &mut [0; 64])?;
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn chain_len(&self) -> usize {
        self.mdl.chain_len()
    }
}

impl<C: Context> Core<C> {
    /// Finds the memory that a packet describes: what the peer lends with it, and it must be what the packet says.
    fn external_of(&self, body: &IncomingBody) -> Result<Mdl, Error> {
        let Ok(External::GpaDirect(ranges)) = body.external() else {
            return Err(Error::NoExternalData);
        };
        let len = usize::try_from(ranges.total_bytes()).unwrap_or(usize::MAX);
        let count = ranges.count() as usize;
        if len > self.settings.maximum_external_data || count > self.settings.maximum_chain_length {
            return Err(Error::InvalidExternalData { len, ranges: count });
        }
        // Asked under our lock: only a server asks, and only the client's locks are taken behind it, in which nobody asks back.
        let outgoing = self.outgoing();
        let lent = outgoing
            .transport
            .as_ref()
            .and_then(|transport| transport.lent_by_peer(body.transaction_id));
        drop(outgoing);
        let lent = lent.ok_or(Error::NotLent)?;
        if lent.len() != len {
            return Err(Error::NotLent);
        }
        if !has_pages(&lent, &ranges) {
            return Err(Error::NotLent);
        }
        Ok(lent)
    }
}

/// Returns true if these are the pages of the memory.
#[inline]
fn has_pages(memory: &Mdl, ranges: &GpaRanges<'_>) -> bool {
    // What is lent is one piece as a rule, and so one range.
    if ranges.count() == 1
        && let (Some((pages, _)), Some(range)) = (memory.run(), ranges.iter().next())
    {
        let same = |(page, pfn): (&Pfn, &U64)| page.get() == pfn.get();
        return pages.len() == range.pfns.len() && pages.iter().zip(range.pfns).all(same);
    }
    let described = ranges.iter().flat_map(|range| range.pfns.iter().map(|pfn| pfn.get()));
    memory.page_spans().map(|span| span.pfn.get()).eq(described)
}
