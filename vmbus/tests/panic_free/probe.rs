//! A program of nothing but what a host's bytes reach in `protocol` and `ring`. Its panic handler calls a function that nobody
//! defines: if a path to a panic is left, the program does not link.
#![no_std]
#![no_main]

use core::hint::black_box;
use core::ptr::NonNull;

use vmbus::protocol::channel::{ModifyChannelResponse, OpenChannel, OpenChannelResult};
use vmbus::protocol::contact::{UnloadResponse, VersionResponse};
use vmbus::protocol::gpadl::{GpadlBody, GpadlCreated, GpadlHeader, GpadlRange, GpadlTorndown};
use vmbus::protocol::offer::{AllOffersDelivered, OfferChannel, RescindChannelOffer};
use vmbus::protocol::{ChannelId, ChannelMessage, GpadlId, Guid, MessageType, OpenId, VpIndex};
use vmbus::ring::{
    Consumer, External, ExternalToSend, GpaRangeToSend, Header, Packet, PacketToSend, Producer, SharedRing,
};

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

#[unsafe(no_mangle)]
unsafe extern "C" fn _start(control: *mut u8, data: *mut u8, size: u32, bytes: *const u8, len: usize) {
    let bytes = unsafe { core::slice::from_raw_parts(bytes, len) };
    read_message(bytes);
    let mut user_data = [0; 120];
    user_data.fill(black_box(1));
    make_messages(black_box([1, 2, 3, 4]), user_data);
    if let (Some(control), Some(data)) = (NonNull::new(control), NonNull::new(data)) {
        if let Ok(ring) = unsafe { SharedRing::new(control, data, size, ()) } {
            read_ring(ring);
        }
        if let Ok(ring) = unsafe { SharedRing::new(control, data, size, ()) } {
            write_ring(ring, bytes);
        }
    }
}
