//! Statements of KMCL's documentation that need no run: what the compiler refuses here.
//!
//! The statements of KMCL's documentation about its five central functions are tests over the in-kernel host, which carry
//! the statement's id in their names. These are the ones that Rust's types decide, in whole or in part, or that mean nothing
//! outside Windows. A test of the same id checks the row, and that there is an example; the documentation's tests try it.
//!
//! | id | how | reason |
//! |---|---|---|
//! | PPC-1 | types | the signature is the function's; its position in an interface table has no meaning, since Rust calls it by name |
//! | PPC-4 | types | no value of the type is invalid: a channel that exists is a channel |
//! | PPC-5 | types | an enabled channel has no `init_*` functions |
//! | PPC-6 | types | the function returns the channel; there is no status |
//! | PPC-14 | not applicable | there is no switch that suppresses queue management, and KMCL's is not named |
//! | SSR-1 | types | the parameters are the fields of `SynchronousRequest`; its position in an interface table has no meaning |
//! | SSR-23 | not applicable | IRQL is Windows' notion; who may not wait gives a deadline of zero |
//! | GPM-1 | types | the signature is the function's; its position in an interface table has no meaning |
//! | GPM-16 | types | a `Gpadl` owns its memory, so pages cannot go away while they are shared |
//! | GED-1 | types | the signature is the function's; its position in an interface table has no meaning |
//! | GED-7 | types | there is no locking step, and none to undo it: the packet owns the pages, and only lends them |
//! | GED-8 | types | `ExternalData` has no address, only copies in and out |
//! | GED-11 | types | the memory is borrowed from the packet |
//!
//! # PPC-1: two callbacks with the documented arguments
//!
//! The packet is one argument: payload and flags are its own.
//!
//! ```compile_fail,E0593
//! # fn example(channel: vmbus::kmcl::DisabledChannel) -> vmbus::kmcl::DisabledChannel {
//! channel.init_set_process_packet_callbacks(|_channel, _packet, _buffer, _flags| {}, |_channel, _count| {})
//! # }
//! ```
//!
//! ```
//! # fn example(channel: vmbus::kmcl::DisabledChannel) -> vmbus::kmcl::DisabledChannel {
//! channel.init_set_process_packet_callbacks(|_channel, _packet| {}, |_channel, _count| {})
//! # }
//! ```
//!
//! # PPC-4: an invalid channel
//!
//! One that was not allocated, or is gone because it was enabled:
//!
//! ```compile_fail,E0382
//! # use vmbus::{Deadline, kmcl::{DisabledChannel, Error}};
//! # fn example(channel: DisabledChannel) -> Result<(), Error> {
//! let enabled = channel.enable(Deadline::seconds(1))?;
//! channel.init_set_process_packet_callback(|_, _| {});
//! # Ok(())
//! # }
//! ```
//!
//! ```
//! # use vmbus::{Deadline, kmcl::{DisabledChannel, Error}};
//! # fn example(channel: DisabledChannel) -> Result<(), Error> {
//! let enabled = channel.enable(Deadline::seconds(1))?;
//! let channel = enabled.disable(Deadline::seconds(1))?;
//! let channel = channel.init_set_process_packet_callback(|_, _| {});
//! # Ok(())
//! # }
//! ```
//!
//! # PPC-5: a channel that is enabled
//!
//! ```compile_fail,E0599
//! # fn example(enabled: vmbus::kmcl::Channel) {
//! let channel = enabled.init_set_process_packet_callback(|_, _| {});
//! # }
//! ```
//!
//! ```
//! # fn example(disabled: vmbus::kmcl::DisabledChannel) {
//! let channel = disabled.init_set_process_packet_callback(|_, _| {});
//! # }
//! ```
//!
//! # PPC-6: another status
//!
//! ```compile_fail,E0277
//! # use vmbus::kmcl::{DisabledChannel, Error};
//! # fn example(channel: DisabledChannel) -> Result<DisabledChannel, Error> {
//! let channel = channel.init_set_process_packet_callback(|_, _| {})?;
//! # Ok(channel)
//! # }
//! ```
//!
//! ```
//! # use vmbus::kmcl::{DisabledChannel, Error};
//! # fn example(channel: DisabledChannel) -> Result<DisabledChannel, Error> {
//! let channel = channel.init_set_process_packet_callback(|_, _| {});
//! # Ok(channel)
//! # }
//! ```
//!
//! # SSR-1: all that a request may say
//!
//! ```compile_fail,E0063
//! # use vmbus::{Deadline, kmcl::{SendFlags, SynchronousRequest}};
//! let request = SynchronousRequest { payload: b"x", mdl: None, flags: SendFlags::empty(), deadline: Deadline::Never };
//! ```
//!
//! ```
//! # use vmbus::{Deadline, kmcl::{SendFlags, SynchronousRequest}};
//! let completion = None;
//! let request =
//!     SynchronousRequest { payload: b"x", mdl: None, flags: SendFlags::empty(), completion, deadline: Deadline::Never };
//! ```
//!
//! # GPM-1: all that a GPADL needs
//!
//! ```compile_fail,E0061
//! # use vmbus::{Deadline, kmcl::{Channel, Error, GpadlAccess}, memory::Mdl};
//! # fn example(channel: &Channel, mdl: &Mdl) -> Result<(), Error> {
//! let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadOnly, mdl, Deadline::Never)?;
//! # Ok(())
//! # }
//! ```
//!
//! ```
//! # use vmbus::{Deadline, kmcl::{Channel, Error, GpadlAccess}, memory::Mdl};
//! # fn example(channel: &Channel, mdl: &Mdl) -> Result<(), Error> {
//! let gpadl = channel.create_gpadl_from_mdl(GpadlAccess::ReadOnly, mdl, 0, 0, Deadline::Never)?;
//! # Ok(())
//! # }
//! ```
//!
//! # GPM-16: pages that go away while they are shared
//!
//! ```compile_fail,E0382
//! # use vmbus::{Deadline, kmcl::{Channel, Error, GpadlAccess}, memory::DmaBuffer};
//! # fn example(channel: &Channel, buffer: DmaBuffer) -> Result<(), Error> {
//! let gpadl = channel.create_gpadl_from_buffer(GpadlAccess::ReadWrite, buffer, Deadline::Never)?;
//! drop(buffer);
//! # Ok(())
//! # }
//! ```
//!
//! ```
//! # use vmbus::{Deadline, kmcl::{Channel, Error, GpadlAccess}, memory::DmaBuffer};
//! # fn example(channel: &Channel, buffer: DmaBuffer) -> Result<(), Error> {
//! let gpadl = channel.create_gpadl_from_buffer(GpadlAccess::ReadWrite, buffer, Deadline::Never)?;
//! let memory = gpadl.delete(Deadline::Never)?;
//! drop(memory);
//! # Ok(())
//! # }
//! ```
//!
//! # GED-1: the external data of something else
//!
//! ```compile_fail,E0599
//! # fn example(mut packet: vmbus::kmcl::OutgoingPacket<()>) {
//! let data = packet.external_data();
//! # }
//! ```
//!
//! ```
//! # fn example(mut packet: vmbus::kmcl::IncomingPacket<()>) {
//! let data = packet.external_data();
//! # }
//! ```
//!
//! # GED-7: unlocking the pages
//!
//! They cannot be taken out of the packet.
//!
//! ```compile_fail,E0277
//! # use vmbus::{kmcl::{Error, IncomingPacket}, memory::Mdl};
//! # fn example(mut packet: IncomingPacket<()>) -> Result<Mdl, Error> {
//! let memory: Mdl = packet.external_data()?.into();
//! # Ok(memory)
//! # }
//! ```
//!
//! ```
//! # use vmbus::kmcl::{Error, ExternalData, IncomingPacket};
//! # fn example(packet: &mut IncomingPacket<()>) -> Result<ExternalData<'_>, Error> {
//! let memory: ExternalData<'_> = packet.external_data()?;
//! # Ok(memory)
//! # }
//! ```
//!
//! # GED-8: an address of the data
//!
//! ```compile_fail,E0599
//! # fn example(data: vmbus::kmcl::ExternalData<'_>) {
//! let first = data.as_ptr();
//! # }
//! ```
//!
//! ```
//! # fn example(data: vmbus::kmcl::ExternalData<'_>) {
//! let mut first = [0];
//! let read = data.read_at(0, &mut first);
//! # }
//! ```
//!
//! # GED-11: the data after the completion
//!
//! ```compile_fail,E0505
//! # use vmbus::kmcl::{Error, IncomingPacket};
//! # fn example(mut packet: IncomingPacket<()>) -> Result<(), Error> {
//! let data = packet.external_data()?;
//! packet.complete(&[])?;
//! data.write_at(0, b"late")?;
//! # Ok(())
//! # }
//! ```
//!
//! ```
//! # use vmbus::kmcl::{Error, IncomingPacket};
//! # fn example(mut packet: IncomingPacket<()>) -> Result<(), Error> {
//! let data = packet.external_data()?;
//! data.write_at(0, b"in time")?;
//! packet.complete(&[])?;
//! # Ok(())
//! # }
//! ```
