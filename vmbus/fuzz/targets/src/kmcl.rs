//! The receive path of the callback API, both ends: a channel between a client and a server in one kernel, whose rings somebody
//! else writes to. Whatever lies in them, no memory is touched that was not lent, and every request ends once.

use core::time::Duration;

use arbitrary::Arbitrary;
use vmbus::Instant;
use vmbus::host::Host;
use vmbus::kmcl::{Channel, Instance};
use vmbus::protocol::Guid;
use vmbus::testing::{FakePlatform, TestHeap};

use crate::driver::{Driver, DriverStep, Log, fit};
use crate::input::input;
use crate::observe::{is_recording, note_counter};
use crate::wire::{Deed, Peer, Wire};
use crate::world::{PATIENCE, SOON, World};

#[derive(Arbitrary, Debug)]
struct Input {
    client_quota: u8,
    server_quota: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Client(DriverStep),
    Server(DriverStep),
    /// Somebody writes to the ring from the client to the server, or to the other.
    Tamper {
        to_server: bool,
        deed: Deed,
    },
    /// As above, and the end that reads is told.
    TamperAndTell {
        to_server: bool,
        deed: Deed,
    },
    Process,
}

const CLASS: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000f022");
const INSTANCE: Guid = Guid::literal("5a17e5a1-0000-4000-8000-00000000f023");

/// A ring in the kernel's memory: its control page, then one of data.
#[derive(Clone, Copy)]
struct KernelRing {
    platform: &'static FakePlatform,
    control: u64,
    data: u64,
}

impl Wire for KernelRing {
    fn size(&self) -> u32 {
        4096
    }

    fn set(&self, offset: u32, value: u32) {
        let written = self
            .platform
            .guest_write(self.control + u64::from(offset), &value.to_le_bytes());
        assert_eq!(written, Ok(()));
    }

    fn get(&self, offset: u32) -> u32 {
        let mut bytes = [0; 4];
        let read = self.platform.guest_read(self.control + u64::from(offset), &mut bytes);
        assert_eq!(read, Ok(()));
        u32::from_le_bytes(bytes)
    }

    fn store(&self, at: u32, word: u64) {
        let written = self
            .platform
            .guest_write(self.data + u64::from(at % 4096), &word.to_le_bytes());
        assert_eq!(written, Ok(()));
    }
}

/// Both ends of a channel under somebody who writes to its rings.
pub fn kmcl(data: &[u8]) {
    let Some(input) = input::<Input>(data) else { return };
    let world = World::alone();
    let live_before = TestHeap::live();
    run(world, &input);
    let faults = world.platform.faults();
    assert!(faults.is_empty(), "{faults:?}");
    assert_eq!(world.platform.live_pages(), 0, "pages are left");
    world.start_over();
    if !is_recording() {
        assert_eq!(TestHeap::live(), live_before, "the heap is as it was");
    }
}

fn run(world: &'static World, input: &Input) {
    let platform = world.platform;
    let clock = || Instant::from_reference_units(platform.look_at_clock());
    let Ok(host) = Host::new(platform, clock) else {
        panic!("memory enough");
    };
    let server = Channel::allocate_server_with(&host, Log::default());
    let server = server.map(|server| fit(server.init_set_target_interface_id(CLASS, INSTANCE), input.server_quota));
    let client = Channel::allocate_client_with(&host, Log::default());
    let client = client.map(|client| fit(client.init_set_target(CLASS, Instance::Any), input.client_quota));
    let (Ok(server), Ok(client)) = (server, client) else {
        panic!("memory enough");
    };
    let Ok(server) = server.enable(SOON) else {
        panic!("nobody is in the way of the server");
    };
    let before = platform.page_addresses();
    let Ok(client) = client.enable(SOON) else {
        panic!("nobody is in the way of the client");
    };
    let mut pages = platform.page_addresses();
    pages.retain(|page| !before.contains(page));
    let [first, first_data, second, second_data] = pages[..] else {
        panic!("two rings of two pages each, not {pages:x?}");
    };
    let ring = |control, data| KernelRing {
        platform,
        control,
        data,
    };
    let mut rings = [
        (ring(first, first_data), Peer::default()),
        (ring(second, second_data), Peer::default()),
    ];

    let (mut client, mut server) = (Driver::new(world, client), Driver::new(world, server));
    for step in input.steps.iter().take(64) {
        match step {
            Step::Client(step) => client.act(step),
            Step::Server(step) => server.act(step),
            Step::Tamper { to_server, deed } | Step::TamperAndTell { to_server, deed } => {
                let (ring, peer) = &mut rings[usize::from(!to_server)];
                // Behind what the real writer wrote.
                peer.write = (ring.get(0) % 4096) & !7;
                peer.read = (ring.get(4) % 4096) & !7;
                peer.act(ring, deed);
                if matches!(step, Step::TamperAndTell { .. }) {
                    let reader = if *to_server { &server } else { &client };
                    reader.channel.process();
                }
            }
            Step::Process => {
                host.process();
            }
        }
    }
    for (name, driver) in [("client", &client), ("server", &server)] {
        note_counter("broken", name, u64::from(driver.is_broken()));
    }
    drop(client.end());
    drop(server.end());
    world.within(PATIENCE + Duration::from_secs(1), || host.process());
}

/// Shows what the bytes mean.
pub(crate) fn show(data: &[u8]) -> String {
    format!("{:#?}", input::<Input>(data))
}
