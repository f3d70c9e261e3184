//! The shared memory of a CTA.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::clocks::Clocks;
use super::fault::{Access, FaultKind, Site, Space};
use super::shadow::{Shadow, Touch};

/// Address of the first byte of dynamic shared memory. Not 0: on recent hardware the first KiB belongs to
/// the system, and an address that lacks its base should miss.
pub(crate) const BASE: u32 = 1024;

/// What a byte holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Undefined,
    Value,
    InFlight,
}

/// Dynamic shared memory, addressed from [`BASE`].
pub(super) struct Shared {
    data: Vec<u8>,
    state: Vec<State>,
    shadow: Shadow,
}

impl Shared {
    /// `bytes` bytes without values; `pollution` is what they hold nevertheless.
    pub(super) fn new(bytes: usize, pollution: u8) -> Self {
        Shared { data: vec![pollution; bytes], state: vec![State::Undefined; bytes], shadow: Shadow::new(bytes) }
    }

    /// Offset of an access that lies inside.
    fn locate(&self, access: Access, address: u32, bytes: usize, align: usize) -> Result<usize, FaultKind> {
        if !(address as usize).is_multiple_of(align) {
            return Err(FaultKind::Misaligned { space: Space::Shared, address: address.into(), align });
        }
        let at = address.checked_sub(BASE).map(|at| at as usize);
        match at {
            Some(at) if at + bytes <= self.data.len() => Ok(at),
            _ => Err(FaultKind::OutOfBounds {
                space: Space::Shared,
                access,
                address: address.into(),
                bytes,
                hint: format!("the launch has {} bytes from {BASE:#x} on", self.data.len()),
            }),
        }
    }

    /// Words of an access, as (touch, offsets of its bytes in the access).
    fn touches(
        thread: usize,
        offset: usize,
        bytes: usize,
        at: Site,
    ) -> impl Iterator<Item = (Touch, std::ops::Range<usize>)> {
        (offset / 4..(offset + bytes).div_ceil(4)).map(move |word| {
            let (first, end) = (offset.max(word * 4), (offset + bytes).min(word * 4 + 4));
            let mask = (first..end).fold(0, |mask, byte| mask | 1 << (byte % 4));
            let address = BASE + first as u32;
            (Touch { thread, word, mask, address, at }, first - offset..end - offset)
        })
    }

    fn not_in_flight(&self, access: Access, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        match self.state[offset..offset + bytes].iter().position(|&state| state == State::InFlight) {
            Some(byte) => Err(FaultKind::InFlight { access, address: BASE + (offset + byte) as u32 }),
            None => Ok(()),
        }
    }

    fn all_defined(&self, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        self.not_in_flight(Access::Read, offset, bytes)?;
        match self.state[offset..offset + bytes].iter().position(|&state| state != State::Value) {
            Some(byte) => Err(FaultKind::Uninitialised {
                space: Space::Shared,
                address: u64::from(BASE) + (offset + byte) as u64,
                hint: String::from("no thread has written it in this CTA"),
            }),
            None => Ok(()),
        }
    }

    /// `thread` reads `N` bytes.
    pub(super) fn load<const N: usize>(
        &mut self,
        clocks: &Clocks,
        thread: usize,
        address: u32,
        at: Site,
    ) -> Result<[u8; N], FaultKind> {
        let offset = self.locate(Access::Read, address, N, N)?;
        self.all_defined(offset, N)?;
        for (touch, _) in Self::touches(thread, offset, N, at) {
            self.shadow.read(clocks, touch)?;
        }
        Ok(self.data[offset..offset + N].try_into().expect("the range has N bytes"))
    }

    /// `thread` writes `data`.
    pub(super) fn store(
        &mut self,
        clocks: &Clocks,
        thread: usize,
        address: u32,
        data: &[u8],
        at: Site,
    ) -> Result<(), FaultKind> {
        let offset = self.locate(Access::Write, address, data.len(), data.len())?;
        self.not_in_flight(Access::Write, offset, data.len())?;
        for (touch, bytes) in Self::touches(thread, offset, data.len(), at) {
            let same = self.data[offset..][bytes.clone()] == data[bytes];
            self.shadow.write(clocks, touch, same)?;
        }
        self.put(offset, data);
        Ok(())
    }

    /// `thread` starts a copy to `bytes` bytes: whoever touches them before it has landed is at fault.
    pub(super) fn begin_copy(
        &mut self,
        clocks: &Clocks,
        thread: usize,
        address: u32,
        bytes: usize,
        at: Site,
    ) -> Result<(), FaultKind> {
        let offset = self.locate(Access::Write, address, bytes, bytes.min(16))?;
        self.not_in_flight(Access::Write, offset, bytes)?;
        for (touch, _) in Self::touches(thread, offset, bytes, at) {
            self.shadow.write(clocks, touch, false)?;
        }
        self.state[offset..offset + bytes].fill(State::InFlight);
        Ok(())
    }

    /// The copy lands, as a write of `thread` now.
    pub(super) fn finish_copy(&mut self, clocks: &Clocks, thread: usize, address: u32, data: &[u8], at: Site) {
        let offset = (address - BASE) as usize;
        for (touch, _) in Self::touches(thread, offset, data.len(), at) {
            // Nobody has touched the bytes since the copy began.
            let _ = self.shadow.write(clocks, touch, true);
        }
        self.put(offset, data);
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        self.data[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(State::Value);
    }
}
