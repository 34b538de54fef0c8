//! The scripted host: a platform with memory at invented addresses, and a machine whose registers are a table.
#![expect(unsafe_code, reason = "implements the platform and the machine, for tests")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::boxed::Box;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::vec::Vec;

use crate::Platform;
use crate::hyperv::Hypervisor;
use crate::hyperv::machine::{Cpuid, Machine};
use crate::memory::Gpa;
use crate::platform::{DispatchToken, NotMapped, OutOfPages, PageUse, ProcessorIndex};

#[derive(Clone, Copy)]
struct Block {
    base: NonNull<u8>,
    page_count: usize,
    gpa: u64,
    page_use: PageUse,
}

// SAFETY: plain memory; the tests reach it through atomics only.
unsafe impl Send for Block {}

fn layout(page_count: usize) -> Layout {
    Layout::from_size_align(page_count * 4096, 4096).unwrap()
}

/// Memory for the host and the guest, at guest-physical addresses that are no addresses of the test's.
#[derive(Default)]
pub(super) struct FakePlatform {
    blocks: Mutex<Vec<Block>>,
    blocks_made: AtomicU64,
    pub(super) pages_left: Mutex<Option<usize>>,
    pub(super) processor: AtomicU32,
    pub(super) dispatch_depth: AtomicUsize,
}

impl FakePlatform {
    pub(super) fn leak() -> &'static Self {
        crate::testing::watch();
        Box::leak(Box::default())
    }

    pub(super) fn pages_in_use(&self) -> usize {
        self.blocks.lock().unwrap().iter().map(|block| block.page_count).sum()
    }

    pub(super) fn uses(&self) -> Vec<PageUse> {
        self.blocks.lock().unwrap().iter().map(|block| block.page_use).collect()
    }

    fn find(&self, gpa: u64, len: usize) -> Option<NonNull<u8>> {
        let blocks = self.blocks.lock().unwrap();
        let block = blocks
            .iter()
            .find(|block| gpa >= block.gpa && gpa + len as u64 <= block.gpa + block.page_count as u64 * 4096)?;
        let offset = usize::try_from(gpa - block.gpa).unwrap();
        // SAFETY: inside the block, as just found.
        Some(unsafe { block.base.add(offset) })
    }

    /// The 32-bit word at a guest-physical address, as the host sees it.
    pub(super) fn word32(&self, gpa: u64) -> &AtomicU32 {
        let pointer = self
            .find(gpa, 4)
            .expect("the host touched memory that it was not given");
        // SAFETY: inside a live block; tests do not keep the reference beyond the block.
        unsafe { AtomicU32::from_ptr(pointer.as_ptr().cast()) }
    }

    /// The 64-bit word at a guest-physical address, as the host sees it.
    pub(super) fn word64(&self, gpa: u64) -> &AtomicU64 {
        let pointer = self
            .find(gpa, 8)
            .expect("the host touched memory that it was not given");
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(pointer.as_ptr().cast()) }
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let start = self
            .find(gpa, len)
            .expect("the host touched memory that it was not given");
        (0..len)
            .map(|index| {
                // SAFETY: inside the block.
                let byte = unsafe { start.add(index) };
                // SAFETY: inside the block, initialised.
                unsafe { byte.read() }
            })
            .collect()
    }
}

// SAFETY: blocks are page-aligned, zeroed, exclusive and true to `translate`.
unsafe impl Platform for FakePlatform {
    fn allocate_pages(&self, page_count: usize, page_use: PageUse) -> Result<NonNull<u8>, OutOfPages> {
        if let Some(left) = &mut *self.pages_left.lock().unwrap() {
            *left = left.checked_sub(page_count).ok_or(OutOfPages { page_count })?;
        }
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout(page_count)) }).unwrap();
        let number = self.blocks_made.fetch_add(1, Ordering::Relaxed);
        self.blocks.lock().unwrap().push(Block {
            base,
            page_count,
            gpa: 0x1_0000_0000 + number * 0x10_0000,
            page_use,
        });
        Ok(base)
    }

    unsafe fn release_pages(&self, base: NonNull<u8>, page_count: usize) {
        let mut blocks = self.blocks.lock().unwrap();
        let index = blocks
            .iter()
            .position(|block| block.base == base && block.page_count == page_count);
        blocks.remove(index.expect("released what was not allocated"));
        // SAFETY: allocated with this layout, and forgotten.
        unsafe { dealloc(base.as_ptr(), layout(page_count)) };
    }

    fn translate(&self, address: NonNull<u8>) -> Result<Gpa, NotMapped> {
        let address = address.addr().get();
        let blocks = self.blocks.lock().unwrap();
        blocks
            .iter()
            .find_map(|block| {
                let offset = address.checked_sub(block.base.addr().get())?;
                (offset < block.page_count * 4096).then(|| Gpa::new(block.gpa + offset as u64))
            })
            .ok_or(NotMapped { address })
    }

    fn current_processor(&self) -> ProcessorIndex {
        ProcessorIndex(self.processor.load(Ordering::Relaxed))
    }

    fn schedule_deferred(&self, _processor: ProcessorIndex) {}

    fn enter_dispatch(&self) -> DispatchToken {
        self.dispatch_depth.fetch_add(1, Ordering::Relaxed);
        DispatchToken(7)
    }

    fn leave_dispatch(&self, token: DispatchToken) {
        assert_eq!(token, DispatchToken(7));
        self.dispatch_depth.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the guest did that the host notices, reading apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Write(u32, u64),
    Call { control: u64, input: u64, output: u64 },
    Message(Vec<u8>),
}

type Hook = Box<dyn Fn(&FakeMachine, u32, u64) + Send>;
type CallHook = Box<dyn Fn() + Send + Sync>;
type Timestamp = Box<dyn FnMut(&FakeMachine) -> u64 + Send>;

/// A machine whose CPUID and registers are tables. Touching a register that is not in the table is an exception.
pub(super) struct FakeMachine {
    pub(super) platform: &'static FakePlatform,
    pub(super) leaves: Mutex<BTreeMap<u32, Cpuid>>,
    pub(super) registers: Mutex<BTreeMap<u32, u64>>,
    pub(super) stuck: Mutex<Vec<u32>>,
    pub(super) events: Mutex<Vec<Event>>,
    pub(super) reads: Mutex<Vec<u32>>,
    pub(super) results: Mutex<Vec<u64>>,
    pub(super) on_write: Mutex<Option<Hook>>,
    /// Runs while the first call is in the hypervisor.
    pub(super) on_call: Mutex<Option<CallHook>>,
    pub(super) on_timestamp: Mutex<Option<Timestamp>>,
    /// Counted rather than recorded, where a test runs for long.
    pub(super) end_of_message_count: AtomicU64,
    /// Somebody has the hypercall page.
    is_taken: AtomicBool,
}

impl FakeMachine {
    pub(super) fn leak(leaves: &[(u32, [u32; 4])], registers: &[(u32, u64)]) -> &'static Self {
        Box::leak(Box::new(Self {
            platform: FakePlatform::leak(),
            leaves: Mutex::new(
                leaves
                    .iter()
                    .map(|(leaf, [eax, ebx, ecx, edx])| {
                        (
                            *leaf,
                            Cpuid {
                                eax: *eax,
                                ebx: *ebx,
                                ecx: *ecx,
                                edx: *edx,
                            },
                        )
                    })
                    .collect(),
            ),
            registers: Mutex::new(registers.iter().copied().collect()),
            stuck: Mutex::default(),
            events: Mutex::default(),
            reads: Mutex::default(),
            results: Mutex::default(),
            on_write: Mutex::default(),
            on_call: Mutex::default(),
            on_timestamp: Mutex::default(),
            end_of_message_count: AtomicU64::new(0),
            is_taken: AtomicBool::new(false),
        }))
    }

    pub(super) fn set(&self, register: u32, value: u64) {
        self.registers.lock().unwrap().insert(register, value);
    }

    pub(super) fn get(&self, register: u32) -> u64 {
        self.registers.lock().unwrap()[&register]
    }

    pub(super) fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    pub(super) fn take_writes(&self) -> Vec<(u32, u64)> {
        self.take_events()
            .into_iter()
            .map(|event| match event {
                Event::Write(register, value) => (register, value),
                other => panic!("not a register write: {other:x?}"),
            })
            .collect()
    }

    pub(super) fn hypervisor(&'static self) -> &'static Hypervisor {
        Box::leak(Box::new(Hypervisor::detect_on(self).unwrap()))
    }
}

// SAFETY: touches nothing of the caller's but the memory that it was given.
unsafe impl Machine for FakeMachine {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> Cpuid {
        // Beyond the largest leaf, Intel's processors answer with the largest basic leaf: nonsense for the caller.
        const NONSENSE: Cpuid = Cpuid {
            eax: 0x0bad_cafe,
            ebx: 0x0bad_cafe,
            ecx: 0x0bad_cafe,
            edx: 0x0bad_cafe,
        };
        self.leaves.lock().unwrap().get(&leaf).copied().unwrap_or(NONSENSE)
    }

    fn timestamp(&self) -> u64 {
        match &mut *self.on_timestamp.lock().unwrap() {
            Some(timestamp) => timestamp(self),
            None => 0,
        }
    }

    unsafe fn read_msr(&self, register: u32) -> u64 {
        self.reads.lock().unwrap().push(register);
        match self.registers.lock().unwrap().get(&register) {
            Some(value) => *value,
            None => panic!("general protection: rdmsr {register:#x}"),
        }
    }

    unsafe fn write_msr(&self, register: u32, value: u64) {
        if register == 0x4000_0084 {
            self.end_of_message_count.fetch_add(1, Ordering::SeqCst);
        }
        self.events.lock().unwrap().push(Event::Write(register, value));
        match self.registers.lock().unwrap().get_mut(&register) {
            Some(_) if self.stuck.lock().unwrap().contains(&register) => {}
            Some(place) => *place = value,
            None => panic!("general protection: wrmsr {register:#x}, {value:#x}"),
        }
        if let Some(hook) = &*self.on_write.lock().unwrap() {
            hook(self, register, value);
        }
    }

    unsafe fn hypercall(&self, page: NonNull<u8>, control: u64, input: u64, output: u64) -> u64 {
        let place = self.get(0x4000_0001);
        assert_eq!(place & 1, 1, "a call into a page that is off");
        assert_eq!(
            self.platform.translate(page).unwrap().get(),
            place & !0xfff,
            "a call elsewhere"
        );
        assert_ne!(self.get(0x4000_0000), 0, "a call without a guest OS id");
        self.events.lock().unwrap().push(Event::Call { control, input, output });
        if control == 0x5c {
            assert_eq!(input % 8, 0, "alignment");
            assert_eq!(input / 4096, (input + 255) / 4096, "crosses a page");
            self.events
                .lock()
                .unwrap()
                .push(Event::Message(self.platform.bytes(input, 256)));
        }
        let hook = self.on_call.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        let mut results = self.results.lock().unwrap();
        if results.is_empty() { 0 } else { results.remove(0) }
    }

    fn take_hypercall_page(&self) -> bool {
        !self.is_taken.swap(true, Ordering::SeqCst)
    }

    fn give_hypercall_page_back(&self) {
        assert!(self.is_taken.swap(false, Ordering::SeqCst), "by who has it");
    }
}

// The tables of leaves are put together from the TLFS and from what is known of each host; they are not dumps.

/// Hyper-V of Windows Server 2022, a Gen2 machine.
pub(super) const HYPER_V: &[(u32, [u32; 4])] = &[
    (0x0000_0000, [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
    (0x0000_0001, [0x0005_0657, 0x0004_0800, 0xfeda_3203, 0x1f8b_fbff]),
    (0x4000_0000, [0x4000_000c, 0x7263_694d, 0x666f_736f, 0x7648_2074]),
    (0x4000_0001, [0x3123_7648, 0, 0, 0]),
    (0x4000_0002, [0x0000_4f7c, 0x000a_0000, 0x0000_0002, 0x0200_0a3c]),
    (0x4000_0003, [0x0000_ae7f, 0x003b_8030, 0x0000_0022, 0xe0be_d7b2]),
    (0x4000_0004, [0x0006_0e2c, 0x0000_0fff, 0x0000_0030, 0x0000_0000]),
    (0x4000_0005, [0x0000_00f0, 0x0000_0400, 0x0000_5d00, 0x0000_0000]),
    (0x4000_000a, [0x000e_0101, 0, 0, 0]),
    (0x4000_000c, [0x0000_0000, 0x0000_0000, 0, 0]),
];

/// QEMU with `hv-relaxed,hv-vpindex,hv-time,hv-synic,hv-stimer,hv-vapic,hv-runtime,hv-crash` and `kvm=off`.
pub(super) const QEMU: &[(u32, [u32; 4])] = &[
    (0x0000_0000, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
    (0x0000_0001, [0x0080_0f12, 0x0001_0800, 0xfed8_3203, 0x178b_fbff]),
    (0x4000_0000, [0x4000_0005, 0x7263_694d, 0x666f_736f, 0x7648_2074]),
    (0x4000_0001, [0x3123_7648, 0, 0, 0]),
    (0x4000_0002, [0x0000_3839, 0x000a_0000, 0, 0]),
    (0x4000_0003, [0x0000_027f, 0x0000_0030, 0, 0x0000_0408]),
    (0x4000_0004, [0x0000_0028, 0xffff_ffff, 0, 0]),
    (0x4000_0005, [0xffff_ffff, 0x0000_0040, 0, 0]),
];

/// OpenVMM on KVM: no version, no right to post messages (which works), AutoEOI deprecated, no TSC page.
pub(super) const OPENVMM: &[(u32, [u32; 4])] = &[
    (0x0000_0000, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
    (0x0000_0001, [0x0005_0657, 0x0001_0800, 0xfeda_3203, 0x1f8b_fbff]),
    (0x4000_0000, [0x4000_0005, 0x7263_694d, 0x666f_736f, 0x7648_2074]),
    (0x4000_0001, [0x3123_7648, 0, 0, 0]),
    (0x4000_0002, [0, 0, 0, 0]),
    (0x4000_0003, [0x0000_087e, 0, 0, 0x0000_0500]),
    (0x4000_0004, [0x0000_0200, 0xffff_ffff, 0, 0]),
    (0x4000_0005, [0x0000_0040, 0x0000_0040, 0, 0]),
];

/// Registers as a machine has them after a reset: interrupt sources masked, all else zero, reserved bits set here and there
/// to see whether they stay.
pub(super) fn registers_after_reset() -> Vec<(u32, u64)> {
    let mut registers = std::vec![
        (0x4000_0000, 0),
        (0x4000_0001, 0x0f4),
        (0x4000_0002, 3),
        (0x4000_0020, 123_456),
        (0x4000_0021, 0x006),
        (0x4000_0022, 2_500_000_000),
        (0x4000_0023, 200_000_000),
        (0x4000_0080, 0x10),
        (0x4000_0082, 0x0aa),
        (0x4000_0083, 0x0cc),
        (0x4000_0084, 0),
    ];
    registers.extend((0x90..0xa0).map(|sint| (0x4000_0000 + sint, 0x1_0000)));
    registers.extend((0xb0..0xb8).map(|timer| (0x4000_0000 + timer, 0)));
    registers
}

/// A machine like QEMU's, and its hypervisor object.
pub(super) fn qemu() -> (&'static FakeMachine, &'static Hypervisor) {
    let machine = FakeMachine::leak(QEMU, &registers_after_reset());
    (machine, machine.hypervisor())
}
