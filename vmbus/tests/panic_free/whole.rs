//! A program of all that stands on a bus: the connection, a channel, the KMCL-style client, dynamic memory and storage. Its panics
//! can be looked at: their messages and places are in the program if they are reached, and nowhere else.
#![no_std]
#![no_main]

mod stub;

use core::hint::black_box;
use core::mem::ManuallyDrop;
use core::ptr;

use stub::STUB;
use vmbus::bus::{Bus, ChannelCore, ChannelSink, Config, OpenParameters};
use vmbus::device::dynamic_memory::{self, DynamicMemory, Figures, MemoryPool, PageRange};
use vmbus::device::storage::{self, Lba};
use vmbus::hyperv::Hypervisor;
use vmbus::kmcl::{Channel, Instance, SendFlags};
use vmbus::memory::{DmaBuffer, Pfn};
use vmbus::platform::ProcessorIndex;
use vmbus::protocol::{ChannelId, Guid};
use vmbus::{Deadline, Instant};

const SOON: Deadline = Deadline::seconds(1);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    black_box(ptr::from_ref(info));
    loop {}
}

struct Sink;

impl ChannelSink for Sink {
    fn signalled(&self, channel: &ChannelCore) {
        while let Ok(packet) = channel.incoming().next() {
            black_box(packet.payload());
        }
    }
    fn rescinded(&self, _: &ChannelCore) {}
}

fn use_channel(bus: &Bus) {
    if let Ok(channel) = bus.open(ChannelId(black_box(3)), &OpenParameters::default(), Sink, SOON) {
        black_box(channel.signal().is_ok());
        black_box(channel.retarget(ProcessorIndex(black_box(1)), SOON).is_ok());
        black_box(channel.close(SOON).is_ok());
    }
}

fn use_client(bus: &Bus) {
    let Ok(channel) = Channel::allocate_client(bus) else { return };
    let channel = channel
        .init_set_target(Guid::ZERO, Instance::Any)
        .init_set_process_packet_callback(|_, mut packet| {
            black_box(packet.payload());
            black_box(packet.external_data().is_ok());
            black_box(packet.complete(&[1; 8]).is_ok());
        })
        .enable(SOON);
    let Ok(channel) = channel else { return };
    let mut answer = [0; 64];
    let memory = DmaBuffer::allocate(&STUB, black_box(5000)).ok().map(Into::into);
    black_box(channel.send_synchronous_request(&[1; 24], memory, SOON, &mut answer).is_ok());
    if let Ok(mut packet) = channel.packet_allocate() {
        packet.set_completion_routine(|_, packet, status| {
            black_box((packet.completion(), status.is_ok()));
        });
        black_box(packet.send(&answer, None, SendFlags::WAIT_FOR_COMPLETION).is_ok());
    }
    black_box(channel.process());
    black_box(channel.disable(SOON).is_ok());
}

struct Pool;

impl MemoryPool for Pool {
    fn figures(&self) -> Figures {
        black_box(Figures::default())
    }
    fn take(&mut self, max_pages: u64) -> Option<PageRange> {
        PageRange::new(Pfn::new(black_box(5)), black_box(max_pages))
    }
    fn give_back(&mut self, range: PageRange) {
        black_box(range);
    }
}

fn use_dynamic_memory(bus: &Bus) {
    let Ok(mut driver) = DynamicMemory::new(&STUB, dynamic_memory::Config::default(), Pool) else { return };
    black_box(driver.attach(bus, Instance::Any, || (), SOON).is_ok());
    black_box(driver.run(Instant::default()));
    black_box(driver.detach(SOON).is_ok());
}

fn use_storage(bus: &Bus) {
    let Ok(controller) = storage::attach(bus, storage::SCSI, SOON) else { return };
    black_box(controller.rescan(SOON).is_ok());
    let Ok(disk) = controller.wait_for_disk(SOON) else { return };
    let mut block = [0; 512];
    black_box(disk.read_into(Lba(black_box(1)), &mut block, SOON).is_ok());
    black_box(disk.write_from(Lba(black_box(2)), &block, SOON).is_ok());
    black_box((disk.flush(SOON).is_ok(), disk.discard(Lba(3), black_box(4), SOON).is_ok()));
}

fn use_all(hypervisor: &'static Hypervisor) {
    let Ok(bus) = Bus::connect(hypervisor, &STUB, Config::default()) else { return };
    bus.acknowledge_interrupt(ProcessorIndex(black_box(0)));
    bus.process(ProcessorIndex(black_box(0)));
    black_box(bus.offers().count());
    use_channel(&bus);
    use_client(&bus);
    use_dynamic_memory(&bus);
    use_storage(&bus);
    black_box((bus.disconnect(SOON).is_ok(), bus.emergency_unload()));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _start(bytes: *const u8, len: usize) {
    // SAFETY: a program that is only linked.
    let bytes = unsafe { core::slice::from_raw_parts(bytes, len) };
    black_box(bytes);
    if let Ok(hypervisor) = Hypervisor::detect_on(&STUB) {
        let hypervisor = ManuallyDrop::new(hypervisor);
        // SAFETY: it stays as long as this function, which ends with the program.
        use_all(unsafe { &*ptr::from_ref(&*hypervisor) });
    }
}
