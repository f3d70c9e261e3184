//! Who last read and wrote each word of shared memory.

use std::vec;
use std::vec::Vec;

use super::clocks::Clocks;
use super::fault::{Access, FaultKind, Site};

/// An access: moment `clock` of `thread`. `mask` has a bit for each byte of the word.
#[derive(Clone, Copy)]
struct Entry {
    clock: u32,
    thread: u16,
    mask: u8,
    at: Site,
}

impl Entry {
    /// Whether an access of `thread` to the bytes `mask` comes after this one or touches other bytes.
    fn before(&self, clocks: &Clocks, thread: usize, mask: u8) -> bool {
        let other = usize::from(self.thread);
        self.mask & mask == 0 || other == thread || clocks.ordered(thread, other, self.clock)
    }

    fn race(&self, access: Access, address: u32, other: Access) -> FaultKind {
        FaultKind::Race { access, address, other, other_thread: self.thread.into(), other_at: self.at }
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
    cells: Vec<Cell>,
    lists: Vec<Vec<Entry>>,
}

/// One access to part of a word.
#[derive(Clone, Copy)]
pub(super) struct Touch {
    pub(super) thread: usize,
    /// Index of the word.
    pub(super) word: usize,
    /// Bytes of the word.
    pub(super) mask: u8,
    /// Shared address of the first byte, for the message.
    pub(super) address: u32,
    pub(super) at: Site,
}

impl Touch {
    fn entry(&self, clocks: &Clocks) -> Entry {
        Entry { clock: clocks.now(self.thread), thread: self.thread as u16, mask: self.mask, at: self.at }
    }
}

impl Shadow {
    pub(super) fn new(bytes: usize) -> Self {
        Shadow { cells: vec![Cell::default(); bytes.div_ceil(4)], lists: Vec::new() }
    }

    /// Checks and notes a read.
    pub(super) fn read(&mut self, clocks: &Clocks, touch: Touch) -> Result<(), FaultKind> {
        let cell = &mut self.cells[touch.word];
        if let Some(write) = cell.write
            && !write.before(clocks, touch.thread, touch.mask)
        {
            return Err(write.race(Access::Read, touch.address, Access::Write));
        }
        let entry = touch.entry(clocks);
        match &mut cell.read {
            Some(last) if last.thread == entry.thread && last.clock == entry.clock => last.mask |= entry.mask,
            Some(last) if !last.before(clocks, touch.thread, 0xff) => {
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
    pub(super) fn write(&mut self, clocks: &Clocks, touch: Touch, same: bool) -> Result<(), FaultKind> {
        let cell = &mut self.cells[touch.word];
        let entry = touch.entry(clocks);
        if let Some(write) = cell.write
            && !same
            && !write.before(clocks, touch.thread, touch.mask)
        {
            return Err(write.race(Access::Write, touch.address, Access::Write));
        }
        let list = cell.more_reads.checked_sub(1).map(|index| &mut self.lists[index as usize]);
        let more = list.iter().flat_map(|list| list.iter());
        let racing = cell.read.iter().chain(more).find(|read| !read.before(clocks, touch.thread, touch.mask));
        if let Some(read) = racing {
            return Err(read.race(Access::Write, touch.address, Access::Read));
        }
        cell.read = None;
        if let Some(list) = list {
            list.clear();
        }
        match &mut cell.write {
            Some(last) if last.thread == entry.thread && last.clock == entry.clock => last.mask |= entry.mask,
            write => *write = Some(entry),
        }
        Ok(())
    }

    /// The last generic write of the word, if the asynchronous proxy asked by `thread` would not see it.
    pub(super) fn hidden_from_proxy(&self, clocks: &Clocks, touch: Touch) -> Option<(u32, Site)> {
        let write = self.cells[touch.word].write?;
        let hidden = write.mask & touch.mask != 0 && !clocks.proxied(touch.thread, write.thread.into(), write.clock);
        hidden.then_some((write.thread.into(), write.at))
    }

    /// Forgets the word: what is there now came from the asynchronous proxy.
    pub(super) fn forget(&mut self, word: usize) {
        let cell = &mut self.cells[word];
        cell.write = None;
        cell.read = None;
        if let Some(index) = cell.more_reads.checked_sub(1) {
            self.lists[index as usize].clear();
        }
    }
}

/// Keeps the latest read of each thread: it is ordered after the earlier ones.
fn compact(list: &mut Vec<Entry>) {
    list.sort_by_key(|entry| (entry.thread, std::cmp::Reverse(entry.clock)));
    list.dedup_by(|later, first| {
        let same = later.thread == first.thread;
        if same {
            first.mask |= later.mask;
        }
        same
    });
}
