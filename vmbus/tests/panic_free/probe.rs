//! A program of nothing but what a host's bytes reach in `protocol`, `ring`, `hyperv` and the devices' messages. Its panic handler calls a function that nobody
//! defines: if a path to a panic is left, the program does not link.
#![no_std]
#![no_main]

mod stub;

use core::hint::black_box;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

use vmbus::device::dynamic_memory::protocol::{Capabilities, Information, Message, Ranges};
use vmbus::device::storage::protocol::{
    Address, Answer, Direction, Execute, Operation, Packet as StoragePacket, Sense, Version, parse_notice,
};
use vmbus::device::storage::scsi::{self, Capacity, Cdb, Inquiry};
use vmbus::hyperv::{Hypervisor, Synic, SynicConfig};

use vmbus::protocol::channel::{ModifyChannelResponse, OpenChannel, OpenChannelResult};
use vmbus::protocol::contact::{UnloadResponse, VersionResponse};
use vmbus::protocol::gpadl::{GpadlBody, GpadlCreated, GpadlHeader, GpadlRange, GpadlTorndown};
use vmbus::protocol::offer::{AllOffersDelivered, OfferChannel, RescindChannelOffer};
use vmbus::protocol::{ChannelId, ChannelMessage, GpadlId, Guid, MessageType, OpenId, VpIndex};
use vmbus::ring::{
    Consumer, External, ExternalToSend, GpaRangeToSend, Header, Packet, PacketToSend, Producer, SharedRing,
};

use stub::STUB;

unsafe extern "C" {
    fn a_path_to_a_panic_is_left() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe { a_path_to_a_panic_is_left() }
}

/// Every message of a host, and of a guest as the offering side reads them.
fn read_message(bytes: &[u8]) {
    let _ = black_box(MessageType::of(bytes).map(|kind| kind.row().is_some()));
    if let Ok(offer) = OfferChannel::decode(bytes) {
        black_box((offer.class(), offer.instance(), offer.channel(), offer.connection()));
        black_box((offer.subchannel_index(), offer.is_dedicated_interrupt()));
    }
    black_box(RescindChannelOffer::decode(bytes).map(|rescind| rescind.channel()).is_ok());
    black_box(AllOffersDelivered::decode(bytes).is_ok());
    black_box(UnloadResponse::decode(bytes).is_ok());
    if let Ok(result) = OpenChannelResult::decode(bytes) {
        black_box((result.channel(), result.open_id(), result.status()));
    }
    if let Ok(created) = GpadlCreated::decode(bytes) {
        black_box((created.channel(), created.gpadl(), created.status()));
    }
    black_box(GpadlTorndown::decode(bytes).map(|torndown| torndown.gpadl()).is_ok());
    if let Ok(modified) = ModifyChannelResponse::decode(bytes) {
        black_box((modified.channel(), modified.status()));
    }
    if let Ok(response) = VersionResponse::decode(bytes) {
        black_box((response.is_supported(), response.state(), response.features()));
    }
    if let Ok(header) = GpadlHeader::decode(bytes) {
        black_box((header.range().is_ok(), GpadlHeader::pages(bytes).fold(0, u64::wrapping_add)));
    }
    if let Ok(body) = GpadlBody::decode(bytes) {
        black_box((body.number(), GpadlBody::pages(bytes).fold(0, u64::wrapping_add)));
    }
    if let Ok(text) = core::str::from_utf8(bytes) {
        black_box(Guid::parse(text).is_ok());
    }
}

/// What a guest sends.
fn make_messages(numbers: [u32; 4], user_data: [u8; 120]) {
    let [channel, gpadl, offset, len] = numbers;
    let (channel, gpadl) = (ChannelId(channel), GpadlId(gpadl));
    let open = OpenChannel::new(channel, OpenId(offset), gpadl, len, VpIndex(len), user_data);
    black_box(open.encode().as_slice());
    if let Ok(range) = GpadlRange::new(offset as usize, len as usize) {
        let page = |index: usize| Ok::<u64, ()>(index as u64);
        black_box((range.page_count(), range.message_count()));
        black_box(GpadlHeader::describe(channel, gpadl, range, page).is_ok());
        black_box(GpadlBody::describe(offset as usize, gpadl, range, page).is_ok());
    }
}

fn read_packet(packet: &Packet<'_>) {
    black_box((packet.payload(), packet.transaction_id(), packet.packet_type()));
    match packet.external() {
        External::None => {}
        External::GpaDirect(ranges) => {
            black_box((ranges.count(), ranges.total_bytes()));
            for range in ranges.iter() {
                black_box((range.byte_count, range.byte_offset));
            }
        }
        External::TransferPages(pages) => {
            if let Ok(ranges) = pages.within(black_box(1 << 20)) {
                ranges.for_each(|range| {
                    black_box(range);
                });
            }
        }
        _ => {}
    }
}

fn read_ring(ring: SharedRing<()>) {
    let Ok(mut consumer) = Consumer::attach(ring, [0_u64; 512]) else { return };
    consumer.mask();
    for _ in 0..black_box(8) {
        if let Ok(packet) = consumer.next() {
            read_packet(&packet);
        }
        let mut slot = [0_u64; 64];
        if let Ok(peek) = consumer.peek() {
            let mut bytes = [0; 24];
            black_box(peek.load_payload(black_box(3), &mut bytes));
            if let Ok(packet) = peek.take_into(&mut slot) {
                read_packet(&packet);
            }
        }
        black_box(consumer.commit());
    }
    black_box((consumer.unmask().is_ok(), consumer.peer_signals_room(), consumer.fault()));
}

fn write_ring(ring: SharedRing<()>, bytes: &[u8]) {
    let Ok(mut producer) = Producer::attach(ring) else { return };
    black_box(producer.send(Header::in_band_with_completion(7), bytes).is_ok());
    let pfns = [black_box(5), black_box(9)];
    let range = GpaRangeToSend {
        byte_count: black_box(5000),
        byte_offset: black_box(9),
        pfns: &pfns,
    };
    let packet = PacketToSend {
        header: Header::gpa_direct(8),
        external: ExternalToSend::GpaDirect(core::slice::from_ref(&range)),
        pieces: &[bytes, bytes],
    };
    if producer.write(&packet).is_err() {
        black_box(producer.wait_for_room(black_box(4000)).is_ok());
        producer.stop_waiting();
    }
    producer.revert();
    black_box((producer.commit(), producer.refresh_room().is_ok(), producer.limit(), producer.fault()));
}

/// Answers of a storage controller and of its disks, and what the driver sends.
fn read_storage(bytes: &[u8], numbers: [u32; 4]) {
    black_box(parse_notice(bytes).is_ok());
    if let Ok(answer) = Answer::parse(bytes) {
        black_box((answer.status, answer.properties().is_ok()));
        if let Ok(executed) = answer.executed() {
            black_box((executed.srb, executed.scsi, executed.transferred, Sense::parse(executed.sense).is_some()));
        }
    }
    if let Some(inquiry) = Inquiry::parse(bytes) {
        black_box((inquiry.kind, inquiry.vendor.as_str(), inquiry.product.as_str(), inquiry.revision.as_str()));
    }
    black_box((Capacity::parse_10(bytes), Capacity::parse_16(bytes)));
    black_box(scsi::luns(bytes).fold(0, u8::wrapping_add));
    black_box((scsi::is_write_protected(bytes), scsi::knows_write_through(bytes), scsi::vpd_pages(bytes)));
    black_box((scsi::parse_serial(bytes), scsi::parse_identity(bytes)));
    black_box((scsi::parse_block_limits(bytes), scsi::parse_provisioning(bytes)));
    let [a, b, c, d] = numbers;
    black_box(StoragePacket::control(Operation(a), None).bytes());
    black_box(StoragePacket::query_version(Version::V6_2).bytes());
    for cdb in [Cdb::read(a.into(), b), Cdb::write_through(c.into(), d), Cdb::report_luns(a)] {
        let execute = Execute {
            address: Address::default(),
            cdb,
            direction: Direction::In,
            transfer_bytes: b,
        };
        black_box(execute.packet(Version::V4_2).bytes());
    }
    black_box(scsi::unmap_parameters(a.into(), b));
}

/// Messages of dynamic memory, there and back.
fn read_dynamic_memory(bytes: &[u8], numbers: [u32; 4]) {
    let mut buffer = [0; 256];
    if let Ok((transaction, message)) = Message::parse(bytes) {
        if let Message::UnballoonRequest { ranges, .. } | Message::BalloonResponse { ranges, .. } = message {
            for range in ranges.as_slice() {
                black_box((range.start(), range.page_count(), range.pages()));
            }
        }
        black_box(message.emit(transaction, &mut buffer).is_ok());
    }
    let [a, b, ..] = numbers;
    let information = Message::Information(Information::MaxPageCount(a.into()));
    black_box(information.emit(b, &mut buffer).is_ok());
    let report = Message::CapabilitiesReport { capabilities: Capabilities(a.into()), min_page_count: b.into(), max_page_number: 7 };
    black_box(report.emit(a, &mut buffer).is_ok());
    black_box(Ranges::new(&[]).is_some());
}

/// What the hypervisor says of itself, the message slot in normal and in a crash, and the event flags.
fn read_hypervisor(hypervisor: &'static Hypervisor) {
    black_box((hypervisor.now(), hypervisor.tsc_frequency_hz(), hypervisor.vp_index()));
    let Ok(synic) = Synic::enable(hypervisor, &STUB, SynicConfig::vmbus(black_box(0x30))) else { return };
    black_box((synic.has_message(2), synic.has_event_flags(2)));
    for message in [synic.take_message(2), synic.take_message_in_emergency(black_box(3))].into_iter().flatten() {
        black_box((message.message_type(), message.sender(), message.timer_expiry()));
        read_message(message.payload());
    }
    synic.set_flag_limit(black_box(5000));
    synic.take_event_flags(black_box(2), |flag| {
        black_box(flag);
    });
    black_box(synic.disable().is_ok());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn _start(control: *mut u8, data: *mut u8, size: u32, bytes: *const u8, len: usize) {
    let bytes = unsafe { core::slice::from_raw_parts(bytes, len) };
    read_message(bytes);
    let mut user_data = [0; 120];
    user_data.fill(black_box(1));
    make_messages(black_box([1, 2, 3, 4]), user_data);
    read_storage(bytes, black_box([1, 2, 3, 4]));
    read_dynamic_memory(bytes, black_box([1, 2, 3, 4]));
    if let Ok(hypervisor) = Hypervisor::detect_on(&STUB) {
        let hypervisor = ManuallyDrop::new(hypervisor);
        // SAFETY: it stays as long as this function, which ends with the program.
        read_hypervisor(unsafe { &*ptr::from_ref(&*hypervisor) });
    }
    if let (Some(control), Some(data)) = (NonNull::new(control), NonNull::new(data)) {
        if let Ok(ring) = unsafe { SharedRing::new(control, data, size, ()) } {
            read_ring(ring);
        }
        if let Ok(ring) = unsafe { SharedRing::new(control, data, size, ()) } {
            write_ring(ring, bytes);
        }
    }
}
