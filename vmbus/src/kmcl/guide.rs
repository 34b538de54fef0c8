//! A guide: from a KMCL driver on Windows to one on this crate.
//!
//! | A driver on Windows | here |
//! |---|---|
//! | queries `KMCL_CLIENT_INTERFACE_V1` and calls through it | calls methods |
//! | allocates a `VMBCHANNEL` and stores a pointer in it | makes a [`DisabledChannel`](super::DisabledChannel) with a context of any type |
//! | initialises, and checks each status for "too late" | initialises; an enabled channel has no such methods |
//! | registers callbacks by pointer | gives closures |
//! | enables, and awaits `EvtVmbChannelOpened` | enables with a deadline; the callbacks have run when it returns |
//! | sends a `VMBPACKET` with an `MDL`, which must stay until the completion | sends an [`OutgoingPacket`](super::OutgoingPacket) that owns the memory until the completion |
//! | gets `VMBPACKETCOMPLETION`, buffer, length and flags | gets an [`IncomingPacket`](super::IncomingPacket) |
//! | must complete each packet once | completes a value, which is gone then; one that is dropped is completed empty |
//! | is called at `IRQL <= DISPATCH_LEVEL` | is told the [`Level`](super::Level) |
//! | gets an `NTSTATUS` | gets an [`Error`](super::Error), whose `ntstatus()` is the documented one |
//! | disables and cleans up, and waits as long as it takes | disables with a deadline; drops |
//!
//! # 1. Allocate and initialise
//!
//! On Windows a driver queries the interface, calls `VmbChannelAllocate`, and then `VmbChannelInitSet...` until it enables the
//! channel; each call answers a status, and one that comes too late answers `STATUS_INVALID_PARAMETER_1`. Here there is no
//! interface to query, the setters are methods of a [`DisabledChannel`](super::DisabledChannel), and an enabled channel does not
//! have them. What the driver kept with `VmbChannelSetPointer` is the channel's context, a value of any type:
//!
//! ```
//! use vmbus::kmcl::{Channel, DisabledChannel, Error, Instance};
//! use vmbus::protocol::Guid;
//!
//! struct Disk { name: &'static str }
//! const CLASS: Guid = Guid::literal("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");
//!
//! fn allocate(bus: &vmbus::Bus) -> Result<DisabledChannel<Disk>, Error> {
//!     let channel = Channel::allocate_client_with(bus, Disk { name: "system" })? // VmbChannelAllocate, VmbChannelSetPointer
//!         .init_set_target(CLASS, Instance::Any)                                // VmbClientChannelInitSetTargetPnp
//!         .init_set_ring_buffer_page_count(8, 8)                                // incoming, outgoing
//!         .init_set_maximum_packet_size(64)?;
//!     Ok(channel)
//! }
//! ```
//!
//! # 2. Callbacks
//!
//! `EvtVmbChannelProcessPacket` got a channel, a completion context, a buffer and flags. Here it gets the channel and an
//! [`IncomingPacket`](super::IncomingPacket), which is all the rest. `VmbChannelPacketComplete` had to be called exactly once;
//! here completing consumes the packet, and forgetting it completes it empty, so that the peer does not hang:
//!
//! ```
//! # use vmbus::kmcl::{Channel, DisabledChannel, IncomingPacket, StateChangeCallbacks};
//! # struct Disk { name: &'static str }
//! fn on_packet(channel: &Channel<Disk>, packet: IncomingPacket<Disk>) {
//!     log::trace!("{}: {} bytes", channel.context().name, packet.payload().len());
//!     if let Err(refused) = packet.complete(&[0; 8]) {
//!         log::warn!("not answered: {refused}");
//!     }
//! }
//!
//! fn set_callbacks(channel: DisabledChannel<Disk>) -> DisabledChannel<Disk> {
//!     channel
//!         .init_set_process_packet_callbacks(on_packet, |_, _count| { /* the ring ran empty */ })
//!         .init_set_state_change_callbacks(StateChangeCallbacks::new().suspend(|_| { /* complete what is held */ }))
//! }
//! ```
//!
//! Callbacks of one channel never run at the same time. They run at [`Level::Dispatch`](super::Level), in whatever context the
//! operating system calls [`Bus::process`](crate::Bus::process), or at [`Level::Passive`](super::Level) where the channel asks for
//! it and a task calls [`process_at_passive`](super::Channel::process_at_passive).
//!
//! # 3. Enable
//!
//! `VmbChannelEnable` connects; opened, started and post-started callbacks follow. Here
//! [`enable`](super::DisabledChannel::enable) takes a deadline, returns when they have run, and gives the disabled channel back if
//! it fails. All memory that packets need is reserved in it: a driver that needs more in flight says so before
//! (`init_set_maximum_packet_count`, `init_set_transaction_quota`).
//!
//! # 4. Send
//!
//! `VmbPacketAllocate`, `VmbPacketSetCompletionRoutine`, `VmbPacketSend`, and the routine frees the packet. The same here, but
//! that the routine owns the packet and may send it again, and that what it lent (an [`Mdl`](crate::memory::Mdl) instead of a
//! `PMDL`) belongs to the packet until the peer has completed it:
//!
//! ```
//! use vmbus::kmcl::{Channel, Error, OutgoingPacket, SendFlags};
//! use vmbus::memory::DmaBuffer;
//! fn done(_: &Channel<()>, mut packet: OutgoingPacket<()>, status: Result<(), Error>) {
//!     let memory = packet.take_mdl();
//!     log::info!("{status:?}, {:?} came back", memory);
//! }
//!
//! fn read(channel: &Channel<()>, buffer: DmaBuffer) -> Result<(), Error> {
//!     let mut packet = channel.packet_allocate()?;
//!     packet.set_completion_routine(done);
//!     packet.send(b"read, please", Some(buffer.into()), SendFlags::WAIT_FOR_COMPLETION)?;
//!     Ok(())
//! }
//! ```
//!
//! Those who can wait use `VmbChannelSendSynchronousRequest`, here
//! [`send_synchronous_request`](super::Channel::send_synchronous_request): the time-out is a [`Deadline`](crate::Deadline), of which
//! `Never` is NULL, `After` a negative and `At` a positive `LARGE_INTEGER`. And `async` code awaits
//! [`request`](super::Channel::request), which Windows does not have. Memory of a request that is given up stays with the
//! channel until the peer has completed it after all, or the channel has ended.
//!
//! # 5. Disable
//!
//! `VmbChannelPause` and `VmbChannelDisable` block for ever if the driver forgets a packet. Here both take a deadline and say
//! [`TimedOut`](super::Error::TimedOut); called from the channel's own callback, where Windows would hang, they answer
//! [`WouldDeadlock`](super::Error::WouldDeadlock). `disable` returns a [`DisabledChannel`](super::DisabledChannel) that can be
//! initialised and enabled again; dropping that is `VmbChannelCleanup`.
//!
//! # 6. What bites when porting
//!
//! - **Lengths.** Packets are multiples of 8 bytes on the wire, and so are payloads and completions as they arrive: up to 7 zero
//!   bytes more than was sent. How many count is for the driver's own protocol to say.
//! - **Memory of packets is reserved.** When all packets are in use, [`TooManyPackets`](super::Error::TooManyPackets) comes back at
//!   once, with what was lent. Choose `init_set_maximum_packet_count` by what may be in flight.
//! - **`STATUS_PENDING` is an error value here**, [`Pending`](super::Error::Pending): no `NT_SUCCESS` takes it for data. Return the
//!   packet by [`wait_for_external_data`](super::IncomingPacket::wait_for_external_data).
//! - **After suspend nothing may be sent**, as the documentation asks: here that is [`WrongState`](super::Error::WrongState).
//! - **Time.** No call waits without a deadline. `Deadline::Never` is NULL, and has to be written.
//! - **No object outlives what it stands on.** A [`Gpadl`](super::Gpadl) holds its memory, a packet its channel; a channel whose
//!   last handle is dropped is closed.
//!
//! # 7. A whole driver
//!
//! It asks a question at the start, counts what comes, and answers it. It runs as it is, against a server in the same process:
//!
//! ```
//! use std::sync::atomic::{AtomicU32, Ordering};
//! use vmbus::Deadline;
//! use vmbus::kmcl::{Channel, Error, IncomingPacket, Instance, OfferSource, StateChangeCallbacks};
//! use vmbus::protocol::Guid;
//!
//! #[derive(Default)]
//! struct Counter { packets: AtomicU32 }
//!
//! fn start(bus: &impl OfferSource, class: Guid) -> Result<Channel<Counter>, Error> {
//!     let callbacks = StateChangeCallbacks::new()
//!         .post_started(|channel: &Channel<Counter>| {
//!             let mut version = [0; 8];
//!             let asked = channel.send_synchronous_request(b"version?", None, Deadline::seconds(1), &mut version);
//!             log::info!("{asked:?}: {version:?}");
//!         })
//!         .closed(|channel| log::info!("{} is closed", channel.friendly_name()));
//!     let channel = Channel::allocate_client_with(bus, Counter::default())?
//!         .init_set_target(class, Instance::Any)
//!         .init_set_friendly_name("counter")
//!         .init_set_maximum_packet_size(256)?
//!         .init_set_state_change_callbacks(callbacks)
//!         .init_set_process_packet_callbacks(on_packet, |_, count| log::trace!("{count} in a row"))
//!         .enable(Deadline::seconds(10))?;
//!     Ok(channel)
//! }
//!
//! fn on_packet(channel: &Channel<Counter>, packet: IncomingPacket<Counter>) {
//!     let number = channel.context().packets.fetch_add(1, Ordering::Relaxed) + 1;
//!     if let Err(refused) = packet.complete(&number.to_le_bytes()) {
//!         log::warn!("not answered: {refused}");
//!     }
//! }
//!
//! fn stop(channel: Channel<Counter>) -> Result<(), Error> {
//!     channel.disable(Deadline::seconds(10))?;
//!     Ok(())
//! }
//! # use vmbus::testing::Loopback;
//! # let both = Loopback::echo()?;
//! # let channel = start(both.host(), Loopback::CLASS)?;
//! # both.server().send(b"one")?;
//! # both.server().send(b"two")?;
//! # both.host().process();
//! # assert_eq!(channel.context().packets.load(Ordering::Relaxed), 2);
//! # assert_eq!(channel.counters().packets_sent, 1, "the question");
//! # stop(channel)?;
//! # Ok::<(), Error>(())
//! ```
//!
//! # 8. The other end
//!
//! With the feature `host` one part of a kernel offers a channel to another: `Channel::allocate_server` on a `vmbus::host::Host`,
//! and the rest is as above, on the same channel code. The crate's README has a table of every function of KMCL and the item that
//! stands for it; [`statements`](super::statements) has what the compiler refuses.
