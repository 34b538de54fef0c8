//! What a disk may hold, sector by sector: several contents where a request has failed or the power was cut.

pub(crate) const SECTOR: usize = 512;

type Bytes = [u8; SECTOR];

#[derive(Clone)]
struct Sector {
    /// What a read may bring.
    seen: Vec<Bytes>,
    /// What may be there after a power cut.
    kept: Vec<Bytes>,
    /// Counts writes, so that a flush knows what it covers.
    version: u64,
    /// Writes in flight.
    busy: u32,
}

/// A disk of plain bytes.
pub(crate) struct Model {
    sectors: Vec<Sector>,
}

/// What a flush covers if it succeeds.
pub(crate) struct Covered(Vec<(u64, bool)>);

fn add(list: &mut Vec<Bytes>, bytes: &Bytes) {
    if !list.contains(bytes) {
        list.push(*bytes);
    }
}

fn sector_of(bytes: &[u8]) -> Bytes {
    bytes.try_into().unwrap()
}

impl Model {
    pub(crate) fn new(len: usize) -> Self {
        let empty = Sector {
            seen: vec![[0; SECTOR]],
            kept: vec![[0; SECTOR]],
            version: 0,
            busy: 0,
        };
        Self {
            sectors: vec![empty; len / SECTOR],
        }
    }

    pub(crate) fn begin_write(&mut self, at: usize, data: &[u8]) {
        for (sector, bytes) in self.sectors[at / SECTOR..].iter_mut().zip(data.chunks(SECTOR)) {
            sector.version += 1;
            sector.busy += 1;
            let bytes = sector_of(bytes);
            add(&mut sector.seen, &bytes);
            add(&mut sector.kept, &bytes);
        }
    }

    /// A write has ended: if it was done, its data is there.
    pub(crate) fn end_write(&mut self, at: usize, data: &[u8], is_done: bool) {
        for (sector, bytes) in self.sectors[at / SECTOR..].iter_mut().zip(data.chunks(SECTOR)) {
            sector.busy -= 1;
            if is_done {
                sector.seen = vec![sector_of(bytes)];
            }
        }
    }

    /// These sectors may be as they are, or zero.
    pub(crate) fn discard(&mut self, at: usize, len: usize) {
        for sector in &mut self.sectors[at / SECTOR..(at + len) / SECTOR] {
            sector.version += 1;
            add(&mut sector.seen, &[0; SECTOR]);
            add(&mut sector.kept, &[0; SECTOR]);
        }
    }

    /// A read has brought this: it has to be something that may be there, and from now on it is what is there.
    pub(crate) fn check_read(&mut self, at: usize, data: &[u8]) {
        for (index, bytes) in data.chunks(SECTOR).enumerate() {
            let number = at / SECTOR + index;
            let sector = &mut self.sectors[number];
            let bytes = sector_of(bytes);
            assert!(
                sector.seen.contains(&bytes),
                "sector {number} holds what was never written there"
            );
            sector.seen = vec![bytes];
        }
    }

    pub(crate) fn begin_flush(&self) -> Covered {
        Covered(
            self.sectors
                .iter()
                .map(|sector| (sector.version, sector.busy > 0))
                .collect(),
        )
    }

    /// A flush has succeeded: what was there before it began is kept.
    pub(crate) fn end_flush(&mut self, covered: &Covered) {
        for (sector, (version, was_busy)) in self.sectors.iter_mut().zip(&covered.0) {
            if sector.version == *version && !was_busy {
                sector.kept = sector.seen.clone();
            }
        }
    }

    /// After a power cut this is on the disk.
    pub(crate) fn check_after_power_cut(&mut self, data: &[u8]) {
        for (number, (sector, bytes)) in self.sectors.iter_mut().zip(data.chunks(SECTOR)).enumerate() {
            let bytes = sector_of(bytes);
            assert!(
                sector.kept.contains(&bytes),
                "sector {number} has lost what was flushed"
            );
            (sector.seen, sector.kept) = (vec![bytes], vec![bytes]);
        }
    }
}
