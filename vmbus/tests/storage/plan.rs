//! What a run does: batches of requests that are in flight together, and what happens between them.

use proptest::prelude::*;

/// A request, its place and length in fractions of the disk.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Read {
        disk: usize,
        at: u16,
        len: u16,
        offset: u16,
    },
    Write {
        disk: usize,
        at: u16,
        len: u16,
        offset: u16,
        seed: u8,
    },
    /// In two parts that do not meet at a page.
    WriteScattered {
        disk: usize,
        at: u16,
        len: u16,
        seed: u8,
    },
    CopyIn {
        disk: usize,
        at: u16,
        len: u16,
    },
    CopyOut {
        disk: usize,
        at: u16,
        len: u16,
        seed: u8,
    },
    Flush {
        disk: usize,
    },
    Discard {
        disk: usize,
        at: u16,
        len: u16,
    },
}

/// What goes wrong with a later request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    UnitAttention,
    AbortedAttention,
    Busy,
    TaskSetFull,
    Reset,
    NotReady,
    Reserved,
    Medium,
    Hardware,
    DoneAndBusy,
    DoneAndMedium,
    Short,
    Held,
    AnswerHeld,
    Never,
    Twice,
    Stray,
    Garbage,
}

impl Trouble {
    /// Whether a request may fail by it in the end.
    pub(crate) const fn may_fail(self) -> bool {
        !matches!(
            self,
            Self::UnitAttention
                | Self::AbortedAttention
                | Self::Busy
                | Self::TaskSetFull
                | Self::Reset
                | Self::NotReady
                | Self::DoneAndBusy
                | Self::Short
                | Self::AnswerHeld
                | Self::Held
                | Self::Twice
                | Self::Stray
        )
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Requests in flight together; the faults, each after so many requests; whether all are held and answered in another order.
    Batch {
        requests: Vec<Request>,
        troubles: Vec<(Trouble, u8)>,
        shuffle: Option<u64>,
    },
    /// The power of a disk fails.
    PowerCut { disk: usize, seed: Option<u64> },
    /// A disk is taken away and put back.
    HotPlug { disk: usize },
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) block: u32,
    pub(crate) blocks: u64,
    pub(crate) lun: u8,
    pub(crate) is_thin: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) disks: Vec<Disk>,
    pub(crate) max_transfer: u32,
    pub(crate) queue_depth: u32,
    pub(crate) commands: u32,
    pub(crate) version: usize,
    pub(crate) steps: Vec<Step>,
}

const DISKS: usize = 3;

fn disk(lun: u8) -> impl Strategy<Value = Disk> {
    (prop::sample::select(vec![512_u32, 4096]), 1_u64..96, any::<bool>()).prop_map(move |(block, blocks, is_thin)| {
        Disk {
            block,
            blocks,
            lun,
            is_thin,
        }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let place = (0..DISKS, any::<u16>(), prop_oneof![3 => 0_u16..4000, 1 => any::<u16>()]);
    // In a page: anywhere, and often at its beginning.
    let offset = prop_oneof![Just(0_u16), 0_u16..4096];
    prop_oneof![
        4 => (place.clone(), offset.clone()).prop_map(|((disk, at, len), offset)| Request::Read { disk, at, len, offset }),
        4 => (place.clone(), offset, any::<u8>()).prop_map(|((disk, at, len), offset, seed)| Request::Write { disk, at, len, offset, seed }),
        1 => (place.clone(), any::<u8>()).prop_map(|((disk, at, len), seed)| Request::WriteScattered { disk, at, len, seed }),
        1 => place.clone().prop_map(|(disk, at, len)| Request::CopyIn { disk, at, len }),
        1 => (place.clone(), any::<u8>()).prop_map(|((disk, at, len), seed)| Request::CopyOut { disk, at, len, seed }),
        2 => (0..DISKS).prop_map(|disk| Request::Flush { disk }),
        1 => place.prop_map(|(disk, at, len)| Request::Discard { disk, at, len }),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    use Trouble::*;
    prop::sample::select(vec![
        UnitAttention,
        AbortedAttention,
        Busy,
        TaskSetFull,
        Reset,
        NotReady,
        Reserved,
        Medium,
        Hardware,
        DoneAndBusy,
        DoneAndMedium,
        Short,
        Held,
        AnswerHeld,
        Never,
        Twice,
        Stray,
        Garbage,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let batch = (
        prop::collection::vec(request(), 1..12),
        prop_oneof![1 => Just(Vec::new()), 2 => prop::collection::vec((trouble(), 0_u8..8), 0..4)],
        prop::option::of(any::<u64>()),
    );
    prop_oneof![
        8 => batch.prop_map(|(requests, troubles, shuffle)| Step::Batch { requests, troubles, shuffle }),
        1 => (0..DISKS, prop::option::of(any::<u64>())).prop_map(|(disk, seed)| Step::PowerCut { disk, seed }),
        1 => (0..DISKS).prop_map(|disk| Step::HotPlug { disk }),
    ]
}

pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    let disks = (disk(1), disk(7), disk(63)).prop_map(|(a, b, c)| vec![a, b, c]);
    (
        disks,
        prop::sample::select(vec![4096_u32, 8192, 0x4_0000]),
        prop::sample::select(vec![1_u32, 3, 64]),
        prop::sample::select(vec![24_u32, 128]),
        0_usize..4,
        prop::collection::vec(step(), 1..24),
    )
        .prop_map(|(disks, max_transfer, queue_depth, commands, version, steps)| Plan {
            disks,
            max_transfer,
            queue_depth,
            commands,
            version,
            steps,
        })
}
