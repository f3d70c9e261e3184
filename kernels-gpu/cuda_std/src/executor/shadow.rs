//! Who last read and wrote each word of shared memory.

use std::vec;
use std::vec::Vec;

use super::clocks::View;
use super::fault::{Access, Actor, FaultKind, Site};
use super::machine::MBARRIERS;

/// An access: moment `clock` of `actor`. `mask` has a bit for each byte of the word.
#[derive(Clone, Copy)]
struct Entry {
    clock: u32,
    actor: u16,
    mask: u8,
    at: Site,
}

impl Entry {
    /// Whether an access of the viewer to the bytes `mask` comes after this one or touches other bytes.
    fn before(&self, view: View<'_>, mask: u8) -> bool {
        self.mask & mask == 0 || view.ordered(self.actor.into(), self.clock)
    }

    fn same_moment(&self, other: &Entry) -> bool {
        self.actor == other.actor && self.clock == other.clock
    }

    fn race(&self, numbers: Numbers, access: Access, address: u32, other: Access) -> FaultKind {
        FaultKind::Race { access, address, other, by: numbers.actor(self.actor), other_at: self.at }
    }
}

/// The numbers of a CTA's actors: its threads from `base` on, then its mbarriers, then its warpgroups.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    pub(super) base: usize,
    pub(super) threads: usize,
}

impl Numbers {
    /// The actor of a number.
    fn actor(self, number: u16) -> Actor {
        let number = usize::from(number) - self.base;
        match number.checked_sub(self.threads) {
            None => Actor::Thread(number as u32),
            Some(other) if other < MBARRIERS => Actor::Copy,
            Some(other) => Actor::Warpgroup((other - MBARRIERS) as u32),
        }
    }
}

/// History of a word. What a newer access is ordered after is forgotten: whoever is ordered after the newer
/// one is ordered after it too.
#[derive(Clone, Copy, Default)]
struct Cell {
    write: Option<Entry>,
    read: Option<Entry>,
    /// 1 + index of further reads, none of which is ordered after another; 0 if there are none.
    more_reads: u32,
}

/// The shadow of a CTA's shared memory.
pub(super) struct Shadow {
    numbers: Numbers,
    cells: Vec<Cell>,
    lists: Vec<Vec<Entry>>,
}

/// One access to part of a word.
#[derive(Clone, Copy)]
pub(super) struct Touch {
    /// Index of the word.
    pub(super) word: usize,
    /// Bytes of the word.
    pub(super) mask: u8,
    /// Shared address of the first byte, for the message.
    pub(super) address: u32,
    pub(super) at: Site,
}

impl Touch {
    fn entry(&self, view: View<'_>) -> Entry {
        Entry { clock: view.now, actor: view.actor as u16, mask: self.mask, at: self.at }
    }
}

impl Shadow {
    /// For `bytes` bytes.
    pub(super) fn new(bytes: usize, numbers: Numbers) -> Self {
        Shadow { numbers, cells: vec![Cell::default(); bytes.div_ceil(4)], lists: Vec::new() }
    }

    /// Checks and notes a read.
    pub(super) fn read(&mut self, view: View<'_>, touch: Touch) -> Result<(), FaultKind> {
        let cell = &mut self.cells[touch.word];
        if let Some(write) = cell.write
            && !write.before(view, touch.mask)
        {
            return Err(write.race(self.numbers, Access::Read, touch.address, Access::Write));
        }
        let entry = touch.entry(view);
        match &mut cell.read {
            Some(last) if last.same_moment(&entry) => last.mask |= entry.mask,
            Some(last) if !last.before(view, 0xff) => {
                let last = std::mem::replace(last, entry);
                if cell.more_reads == 0 {
                    self.lists.push(Vec::new());
                    cell.more_reads = self.lists.len() as u32;
                }
                let list = &mut self.lists[cell.more_reads as usize - 1];
                list.push(last);
                if list.len() >= 64 && list.len().is_power_of_two() {
                    compact(list);
                }
            }
            read => *read = Some(entry),
        }
        Ok(())
    }

    /// Checks and notes a write. `same` says that it changes nothing: threads may write the same value at
    /// the same time.
    pub(super) fn write(&mut self, view: View<'_>, touch: Touch, same: bool) -> Result<(), FaultKind> {
        let cell = &mut self.cells[touch.word];
        let entry = touch.entry(view);
        if let Some(write) = cell.write
            && !same
            && !write.before(view, touch.mask)
        {
            return Err(write.race(self.numbers, Access::Write, touch.address, Access::Write));
        }
        let list = cell.more_reads.checked_sub(1).map(|index| &mut self.lists[index as usize]);
        let more = list.iter().flat_map(|list| list.iter());
        let racing = cell.read.iter().chain(more).find(|read| !read.before(view, touch.mask));
        if let Some(read) = racing {
            return Err(read.race(self.numbers, Access::Write, touch.address, Access::Read));
        }
        cell.read = None;
        if let Some(list) = list {
            list.clear();
        }
        match &mut cell.write {
            Some(last) if last.same_moment(&entry) => last.mask |= entry.mask,
            write => *write = Some(entry),
        }
        Ok(())
    }

    /// The thread and place of the last write of the word, if the asynchronous proxy does not see it for the
    /// viewer. Actors that are no threads are part of that proxy.
    pub(super) fn hidden_from_proxy(&self, view: View<'_>, touch: Touch) -> Option<(u32, Site)> {
        let write = self.cells[touch.word].write?;
        let actor = usize::from(write.actor);
        let hidden = write.mask & touch.mask != 0
            && actor < self.numbers.base + self.numbers.threads
            && !view.proxied(actor, write.clock);
        hidden.then_some(((actor - self.numbers.base) as u32, write.at))
    }

    /// Notes a write of `actor` at `moment`, which nothing can race with: the bytes were in flight.
    pub(super) fn land(&mut self, actor: usize, moment: u32, touch: Touch) {
        let entry = Entry { clock: moment, actor: actor as u16, mask: touch.mask, at: touch.at };
        match &mut self.cells[touch.word].write {
            Some(last) if last.same_moment(&entry) => last.mask |= entry.mask,
            write => *write = Some(entry),
        }
    }
}

/// Keeps the latest read of each thread: it is ordered after the earlier ones.
fn compact(list: &mut Vec<Entry>) {
    list.sort_by_key(|entry| (entry.actor, std::cmp::Reverse(entry.clock)));
    list.dedup_by(|later, first| {
        let same = later.actor == first.actor;
        if same {
            first.mask |= later.mask;
        }
        same
    });
}
