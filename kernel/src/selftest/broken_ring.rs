//! The other end of a channel breaks its ring: the kernel says so once, shows the channel as faulted with the reason, asks that
//! device no more until it is offered anew, and works on with all others.

use alloc::string::{String, ToString as _};
use core::fmt::Display;

use vmbus::Deadline;
use vmbus::device::dynamic_memory::CLASS as DYNAMIC_MEMORY;
use vmbus::host::storage::{Address, Config, Controller, Disk, DiskConfig, MemoryDisk, WriteCache};
use vmbus::host::{Host, Misbehaviour};
use vmbus::kmcl::{Channel, Instance};
use vmbus::protocol::{ChannelId, Guid};

use super::kmcl::{Pair, echo_once};
use super::{Verdict, ensure};
use crate::hyperv::dynamic_memory::{self, Wish};
use crate::hyperv::port::PLATFORM;
use crate::hyperv::{devices::DeviceState, local, storage};
use crate::memory::heap;
use crate::status::{self, Report};
use crate::task::{self, deferred};
use crate::time::Deadline as Until;

/// Ways to break the ring that the client reads.
const WAYS: [Misbehaviour; 4] = [
    Misbehaviour::WriteIndex(7),
    Misbehaviour::WriteIndex(0xffff_fff8),
    Misbehaviour::Packet {
        data_offset8: 0,
        length8: 3,
    },
    Misbehaviour::Packet {
        data_offset8: 2,
        length8: 0xffff,
    },
];
/// What is in the status table.
const REASON: &str = "the peer broke the ring";
const SOON: Deadline = Deadline::seconds(5);
const STORAGE: Guid = Guid::literal("5e1f7e57-0000-4000-8000-0000000bad57");
const BALLOON: Guid = Guid::literal("5e1f7e57-0000-4000-8000-0000000bad1d");

fn text(error: impl Display) -> String {
    error.to_string()
}

fn soon(what: &str, condition: impl FnMut() -> bool) -> Verdict {
    ensure!(
        task::wait_until(Until::after_ms(5000), condition),
        "waited in vain until {what}"
    );
    Ok(())
}

/// Breaks a ring, and tells the runner of which channel and device the kernel has to complain.
fn break_ring(host: &Host, channel: ChannelId, instance: Guid, how: Misbehaviour) -> Verdict {
    status::mark("ring-broken", format_args!("{channel} of device {instance}"));
    host.misbehave(channel, how).map_err(text)?;
    // The client looks before the other end writes what is right again.
    drop(deferred::enter_dispatch());
    Ok(())
}

/// Channels that nobody of the kernel's drivers uses.
pub(super) fn channels() -> Verdict {
    let host = local::host().ok_or("there is no host inside this kernel")?;
    let calm = Pair::open(host)?;
    let mut before = None;
    for how in WAYS {
        let broken = Pair::open(host)?;
        echo_once(&broken, 1)?;
        break_ring(host, broken.channel(), broken.instance(), how)?;
        ensure!(echo_once(&broken, 2).is_err(), "{how:?}: a broken channel answers");
        // Again and again: it is said once.
        for number in 0..10 {
            ensure!(echo_once(&broken, number).is_err(), "a broken channel answers");
            host.misbehave(broken.channel(), how).map_err(text)?;
            echo_once(&calm, number)?;
        }
        let report = Report::collect();
        let channel = broken.channel().0;
        let rows = report.devices.iter().filter(|device| device.channel == channel);
        let faulted = rows.filter(|device| device.state == "faulted" && device.reason.as_deref() == Some(REASON));
        ensure!(faulted.count() == 1, "{how:?}: the table has {:?}", report.devices);
        broken.dispose()?;
        drop(report);
        let free = heap::free_in_all();
        ensure!(
            before.is_none_or(|before| before == free),
            "{before:?} bytes were free after the last broken ring, {free} after {how:?}"
        );
        before = Some(free);
    }
    calm.dispose()
}

/// Devices with a driver in this kernel.
pub(super) fn drivers() -> Verdict {
    let host = local::host().ok_or("there is no host inside this kernel")?;
    let calm = Pair::open(host)?;
    storage_faults(host, &calm)?;
    dynamic_memory_faults(host, &calm)?;
    calm.dispose()
}

/// The device stays faulted while others come and go.
fn stays_faulted(host: &Host, calm: &Pair, state: impl Fn() -> DeviceState) -> Verdict {
    let is_faulted = || {
        let state = state();
        (state.state, state.reason.as_deref()) == ("faulted", Some(REASON))
    };
    soon("the device is faulted", is_faulted)?;
    for number in 0..3 {
        Pair::open(host)?.dispose()?;
        task::wait_until(Until::after_ms(50), || false);
        ensure!(is_faulted(), "after other offers the device is {:?}", state());
        echo_once(calm, number)?;
    }
    Ok(())
}

fn storage_faults(host: &Host, calm: &Pair) -> Verdict {
    let config = Config {
        instance: Some(STORAGE),
        ..Config::default()
    };
    let controller = Controller::new(host, config).map_err(text)?;
    let memory = MemoryDisk::new(&PLATFORM, 1 << 20, WriteCache::Volatile).map_err(text)?;
    let disk = Disk::new(memory, DiskConfig::default()).map_err(text)?;
    controller.attach(Address::lun(0), disk).map_err(text)?;
    controller.offer().map_err(text)?;
    soon("there is a disk", || storage::disks().len() == 1)?;
    let channel = controller.channel_id().ok_or("the controller is not offered")?;
    break_ring(host, channel, STORAGE, Misbehaviour::WriteIndex(7))?;
    stays_faulted(host, calm, || storage::controller(STORAGE))?;
    ensure!(storage::disks().is_empty(), "the disk is still there");
    controller.revoke(SOON).map_err(text)?;
    controller.offer().map_err(text)?;
    soon("the disk is there again", || storage::disks().len() == 1)?;
    let state = storage::controller(STORAGE);
    ensure!(state.state == "running", "offered anew, the controller is {state:?}");
    controller.revoke(SOON).map_err(text)?;
    soon("the disk has gone", || storage::disks().is_empty())
}

fn offer_balloon(host: &Host) -> Result<Channel<()>, String> {
    Channel::allocate_server(host)
        .map_err(text)?
        .init_set_target(DYNAMIC_MEMORY, Instance::Only(BALLOON))
        // It says nothing: what matters is the channel.
        .init_set_process_packet_callback(|_, packet| drop(packet.complete(&[])))
        .enable(SOON)
        .map_err(text)
}

fn dynamic_memory_faults(host: &Host, calm: &Pair) -> Verdict {
    dynamic_memory::wish(Wish::Open);
    let server = offer_balloon(host)?;
    soon("dynamic memory starts", || dynamic_memory::state() == "starting")?;
    break_ring(host, server.id(), BALLOON, WAYS[3])?;
    stays_faulted(host, calm, dynamic_memory::device_state)?;
    drop(server.disable(SOON).map_err(text)?);
    let server = offer_balloon(host)?;
    soon("dynamic memory starts again", || dynamic_memory::state() == "starting")?;
    dynamic_memory::wish(Wish::Closed);
    ensure!(
        dynamic_memory::await_wish(Until::after_ms(10_000)),
        "dynamic memory does not close"
    );
    drop(server.disable(SOON).map_err(text)?);
    Ok(())
}
