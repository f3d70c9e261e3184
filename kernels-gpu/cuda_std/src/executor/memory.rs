//! Device memory: allocations at made-up addresses, with what is known about each byte.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::clocks::View;
use super::fault::{Access, FaultKind, Space};

/// Where the first allocation lies: no address of a kernel is a pointer of the host by accident.
const BASE: u64 = 0x7_0000_0000;
/// Alignment of allocations, as `cuMemAlloc` promises.
const ALIGN: u64 = 256;
/// Unmapped bytes between allocations.
const GAP: u64 = 1 << 16;
/// Byte that memory holds before it is written, unless a test says another: NaN in every float format, −1 as an
/// integer.
const POISON: u8 = 0xff;

/// The byte has a value.
const INIT: u8 = 1;
/// No kernel may touch the byte.
const FORBIDDEN: u8 = 2;
/// The present launch has read the byte through the constant path.
const READ_CONSTANT: u8 = 4;

/// The device memory of a machine.
///
/// Addresses are numbers that only [`crate::executor`] understands; they are the same in every run.
pub struct Memory {
    allocations: Vec<Allocation>,
    poison: u8,
    /// The last allocation hit.
    recent: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

struct Allocation {
    name: String,
    base: u64,
    data: Vec<u8>,
    state: Vec<u8>,
    /// Per half word, who last wrote it in the present launch.
    writers: Vec<Writer>,
    /// Whether a kernel has written since `writers` was cleared.
    is_dirty: bool,
}

/// Who has written a half word: nobody in this launch, atomic operations, or an actor and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    Nobody,
    Atomic,
    Actor(u32, u32),
}

impl Writer {
    /// Whether the viewer may read or overwrite what was written.
    fn before(self, view: View<'_>) -> bool {
        match self {
            Writer::Nobody => true,
            Writer::Atomic => false,
            Writer::Actor(actor, moment) => view.ordered(actor as usize, moment),
        }
    }
}

/// How a kernel reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// `ld.global.nc`: the byte may not be written in this launch.
    Constant,
    /// Any other read.
    Weak,
}

impl Memory {
    /// No memory.
    pub fn new() -> Self {
        Memory::poisoned(POISON)
    }

    /// No memory; bytes that nobody has written will be `poison`.
    pub fn poisoned(poison: u8) -> Self {
        Memory { allocations: Vec::new(), poison, recent: 0 }
    }

    /// Allocates `bytes` bytes without values, at a multiple of 256. Faults call the allocation `name`.
    pub fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        let base = match self.allocations.is_empty() {
            true => BASE,
            false => (self.end() + GAP).next_multiple_of(ALIGN),
        };
        self.push(name, base, bytes);
        base
    }

    /// Allocates `bytes` bytes at `address`, beyond everything that is allocated: rows of a tensor that lie far
    /// apart need no memory between them.
    ///
    /// # Panics
    ///
    /// If an allocation lies at `address` or beyond.
    pub fn alloc_at(&mut self, name: &str, address: u64, bytes: usize) {
        assert!(address >= self.end(), "{address:#x} lies before the end of what is allocated");
        self.push(name, address, bytes);
    }

    /// The end of all allocations.
    pub fn end(&self) -> u64 {
        self.allocations.last().map_or(BASE, |last| last.base + last.data.len() as u64)
    }

    fn push(&mut self, name: &str, base: u64, bytes: usize) {
        self.allocations.push(Allocation {
            name: name.into(),
            base,
            data: vec![self.poison; bytes],
            state: vec![0; bytes],
            writers: vec![Writer::Nobody; bytes.div_ceil(2)],
            is_dirty: false,
        });
    }

    /// Allocates a copy of `data`.
    pub fn upload(&mut self, name: &str, data: &[u8]) -> u64 {
        let base = self.alloc(name, data.len());
        self.write(base, data);
        base
    }

    /// Copies `data` to `address`.
    ///
    /// # Panics
    ///
    /// If the bytes are not all in one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        let (allocation, at) = self.find_mut(address, data.len());
        allocation.data[at..at + data.len()].copy_from_slice(data);
        allocation.state[at..at + data.len()].iter_mut().for_each(|state| *state |= INIT);
    }

    /// Takes the values of `bytes` bytes away: reading them is a fault until a kernel writes them.
    ///
    /// # Panics
    ///
    /// If the bytes are not all in one allocation.
    pub fn undefine(&mut self, address: u64, bytes: usize) {
        let poison = self.poison;
        let (allocation, at) = self.find_mut(address, bytes);
        allocation.data[at..at + bytes].fill(poison);
        allocation.state[at..at + bytes].iter_mut().for_each(|state| *state &= !INIT);
    }

    /// Makes every access of a kernel to `bytes` bytes a fault: gaps between rows, for instance.
    ///
    /// # Panics
    ///
    /// If the bytes are not all in one allocation.
    pub fn forbid(&mut self, address: u64, bytes: usize) {
        let (allocation, at) = self.find_mut(address, bytes);
        allocation.state[at..at + bytes].iter_mut().for_each(|state| *state |= FORBIDDEN);
    }

    /// The bytes from `address` on, whether or not they have values.
    ///
    /// # Panics
    ///
    /// If the bytes are not all in one allocation.
    pub fn read(&self, address: u64, bytes: usize) -> &[u8] {
        let (allocation, at) = self.find(address, bytes);
        &allocation.data[at..at + bytes]
    }

    /// First of `bytes` bytes from `address` on that has no value, as an offset.
    ///
    /// # Panics
    ///
    /// If the bytes are not all in one allocation.
    pub fn first_undefined(&self, address: u64, bytes: usize) -> Option<usize> {
        let (allocation, at) = self.find(address, bytes);
        allocation.state[at..at + bytes].iter().position(|state| state & INIT == 0)
    }

    fn index_of(&self, address: u64, bytes: usize) -> Option<usize> {
        let holds = |allocation: &Allocation| allocation.holds(address, bytes);
        if self.allocations.get(self.recent).is_some_and(holds) {
            return Some(self.recent);
        }
        let after = self.allocations.partition_point(|allocation| allocation.base <= address);
        let index = after.checked_sub(1)?;
        holds(&self.allocations[index]).then_some(index)
    }

    fn find(&self, address: u64, bytes: usize) -> (&Allocation, usize) {
        let index = self.index_of(address, bytes).unwrap_or_else(|| panic!("{}", self.near(address)));
        (&self.allocations[index], (address - self.allocations[index].base) as usize)
    }

    fn find_mut(&mut self, address: u64, bytes: usize) -> (&mut Allocation, usize) {
        let index = self.index_of(address, bytes).unwrap_or_else(|| panic!("{}", self.near(address)));
        let allocation = &mut self.allocations[index];
        let at = (address - allocation.base) as usize;
        (allocation, at)
    }

    /// Where `address` is, in words.
    fn near(&self, address: u64) -> String {
        let after = self.allocations.partition_point(|allocation| allocation.base <= address);
        match after.checked_sub(1).map(|index| &self.allocations[index]) {
            Some(Allocation { name, base, data, .. }) => {
                format!("byte {} of \"{name}\", which has {} bytes", address - base, data.len())
            }
            None => match self.allocations.first() {
                Some(first) => format!("{} bytes before \"{}\"", first.base - address, first.name),
                None => "nothing is allocated".into(),
            },
        }
    }

    /// Forgets who read and wrote what.
    pub(super) fn begin_launch(&mut self) {
        for allocation in &mut self.allocations {
            allocation.state.iter_mut().for_each(|state| *state &= !READ_CONSTANT);
            if std::mem::take(&mut allocation.is_dirty) {
                allocation.writers.fill(Writer::Nobody);
            }
        }
    }

    /// Checks that a kernel may touch the bytes; the allocation and the offset.
    fn locate(
        &mut self,
        access: Access,
        address: u64,
        bytes: usize,
        align: usize,
    ) -> Result<(usize, usize), FaultKind> {
        if !address.is_multiple_of(align as u64) {
            return Err(FaultKind::Misaligned { space: Space::Global, address, align });
        }
        let out_of_bounds = |hint| FaultKind::OutOfBounds { space: Space::Global, access, address, bytes, hint };
        let Some(index) = self.index_of(address, bytes) else {
            return Err(out_of_bounds(self.near(address)));
        };
        self.recent = index;
        let at = (address - self.allocations[index].base) as usize;
        if self.allocations[index].state[at..at + bytes].iter().any(|state| state & FORBIDDEN != 0) {
            return Err(out_of_bounds(format!("a gap: {}", self.near(address))));
        }
        Ok((index, at))
    }

    /// A kernel reads `N` bytes.
    pub(super) fn load<const N: usize>(
        &mut self,
        view: View<'_>,
        address: u64,
        align: usize,
        how: Read,
    ) -> Result<[u8; N], FaultKind> {
        let (index, at) = self.locate(Access::Read, address, N, align)?;
        let allocation = &mut self.allocations[index];
        let range = at..at + N;
        if let Some(byte) = allocation.state[range.clone()].iter().position(|state| state & INIT == 0) {
            let address = address + byte as u64;
            return Err(FaultKind::Uninitialised { space: Space::Global, address, hint: self.near(address) });
        }
        let is_bad = |&writer: &Writer| match how {
            Read::Constant => writer != Writer::Nobody,
            Read::Weak => !writer.before(view),
        };
        if let Some(half) = allocation.writers[halves(at, N)].iter().position(is_bad) {
            return Err(self.conflict(Access::Read, address + 2 * half as u64));
        }
        if how == Read::Constant {
            allocation.state[range.clone()].iter_mut().for_each(|state| *state |= READ_CONSTANT);
        }
        Ok(allocation.data[range].try_into().expect("the range has N bytes"))
    }

    /// A bulk copy reads `N` bytes: what they are, and which of them have values. Those that have none are
    /// missing at the destination too.
    pub(super) fn load_bulk<const N: usize>(
        &mut self,
        view: View<'_>,
        address: u64,
    ) -> Result<[Option<u8>; N], FaultKind> {
        let (index, at) = self.locate(Access::Read, address, N, N)?;
        let allocation = &self.allocations[index];
        if let Some(half) = allocation.writers[halves(at, N)].iter().position(|writer| !writer.before(view)) {
            return Err(self.conflict(Access::Read, address + 2 * half as u64));
        }
        Ok(std::array::from_fn(|i| (allocation.state[at + i] & INIT != 0).then_some(allocation.data[at + i])))
    }

    /// A kernel writes `data`.
    pub(super) fn store(&mut self, view: View<'_>, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let (index, at) = self.locate(Access::Write, address, data.len(), data.len())?;
        let allocation = &mut self.allocations[index];
        let range = at..at + data.len();
        let constant = allocation.state[range.clone()].iter().position(|state| state & READ_CONSTANT != 0);
        let written = allocation.writers[halves(at, data.len())].iter().position(|writer| !writer.before(view));
        if let Some(byte) = constant.or(written.map(|half| 2 * half)) {
            return Err(self.conflict(Access::Write, address + byte as u64));
        }
        allocation.data[range.clone()].copy_from_slice(data);
        allocation.writers[halves(at, data.len())].fill(Writer::Actor(view.actor as u32, view.now));
        allocation.is_dirty = true;
        allocation.state[range].iter_mut().for_each(|state| *state |= INIT);
        Ok(())
    }

    /// A kernel replaces a word by `change(word)` in one step; the old word.
    pub(super) fn atomic(&mut self, address: u64, change: impl FnOnce(u32) -> u32) -> Result<u32, FaultKind> {
        let (index, at) = self.locate(Access::Write, address, 4, 4)?;
        let allocation = &mut self.allocations[index];
        let range = at..at + 4;
        if allocation.state[range.clone()].iter().any(|state| state & INIT == 0) {
            return Err(FaultKind::Uninitialised { space: Space::Global, address, hint: self.near(address) });
        }
        let constant = allocation.state[range.clone()].iter().any(|state| state & READ_CONSTANT != 0);
        let written = allocation.writers[halves(at, 4)].iter().any(|writer| matches!(writer, Writer::Actor(..)));
        if constant || written {
            return Err(self.conflict(Access::Write, address));
        }
        allocation.writers[halves(at, 4)].fill(Writer::Atomic);
        allocation.is_dirty = true;
        let word = &mut allocation.data[range];
        let old = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        word.copy_from_slice(&change(old).to_le_bytes());
        Ok(old)
    }

    fn conflict(&self, access: Access, address: u64) -> FaultKind {
        FaultKind::GlobalConflict { access, address, hint: self.near(address) }
    }
}

/// The half words of `bytes` bytes from `at` on.
fn halves(at: usize, bytes: usize) -> std::ops::Range<usize> {
    at / 2..(at + bytes).div_ceil(2)
}

impl Allocation {
    fn holds(&self, address: u64, bytes: usize) -> bool {
        let Some(at) = address.checked_sub(self.base) else {
            return false;
        };
        at.checked_add(bytes as u64).is_some_and(|end| end <= self.data.len() as u64)
    }
}
