//! The shared memory of a CTA.

use std::format;
use std::ops::Range;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::clocks::View;
use super::fault::{Access, FaultKind, Site, Space};
use super::shadow::{Numbers, Shadow, Touch};

/// Address of the first byte of dynamic shared memory. Not 0: on recent hardware the first KiB belongs to
/// the system, and an address that lacks its base should miss.
pub(crate) const BASE: u32 = 1024;

/// What a byte holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Undefined,
    Value,
    InFlight,
    Object,
}

/// Dynamic shared memory, addressed from [`BASE`].
pub(super) struct Shared {
    data: Vec<u8>,
    state: Vec<State>,
    shadow: Shadow,
}

/// Words of an access, as (touch, offsets of its bytes in the access).
fn touches(offset: usize, bytes: usize, at: Site) -> impl Iterator<Item = (Touch, Range<usize>)> {
    (offset / 4..(offset + bytes).div_ceil(4)).map(move |word| {
        let (first, end) = (offset.max(word * 4), (offset + bytes).min(word * 4 + 4));
        let mask = (first..end).fold(0, |mask, byte| mask | 1 << (byte % 4));
        let address = BASE + first as u32;
        (Touch { word, mask, address, at }, first - offset..end - offset)
    })
}

impl Shared {
    /// `bytes` bytes without values; `pollution` is what they hold nevertheless.
    pub(super) fn new(bytes: usize, numbers: Numbers, pollution: u8) -> Self {
        Shared {
            data: vec![pollution; bytes],
            state: vec![State::Undefined; bytes],
            shadow: Shadow::new(bytes, numbers),
        }
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

    /// Checks that no copy is writing the bytes and that they are plain memory.
    fn is_plain(&self, access: Access, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        for (byte, state) in self.state[offset..offset + bytes].iter().enumerate() {
            let address = BASE + (offset + byte) as u32;
            match state {
                State::InFlight => return Err(FaultKind::InFlight { access, address }),
                State::Object => return Err(FaultKind::Object { access, address }),
                State::Undefined | State::Value => {}
            }
        }
        Ok(())
    }

    fn has_values(&self, offset: usize, bytes: usize) -> Result<(), FaultKind> {
        self.is_plain(Access::Read, offset, bytes)?;
        match self.state[offset..offset + bytes].iter().position(|&state| state != State::Value) {
            Some(byte) => Err(FaultKind::Uninitialised {
                space: Space::Shared,
                address: u64::from(BASE) + (offset + byte) as u64,
                hint: String::from("nothing with a value was written there in this CTA"),
            }),
            None => Ok(()),
        }
    }

    /// A thread reads `N` bytes.
    pub(super) fn load<const N: usize>(
        &mut self,
        view: View<'_>,
        address: u32,
        at: Site,
    ) -> Result<[u8; N], FaultKind> {
        let offset = self.locate(Access::Read, address, N, N)?;
        self.has_values(offset, N)?;
        for (touch, _) in touches(offset, N, at) {
            self.shadow.read(view, touch)?;
        }
        Ok(self.data[offset..offset + N].try_into().expect("the range has N bytes"))
    }

    /// A thread writes `data`.
    pub(super) fn store(&mut self, view: View<'_>, address: u32, data: &[u8], at: Site) -> Result<(), FaultKind> {
        let offset = self.locate(Access::Write, address, data.len(), data.len())?;
        self.is_plain(Access::Write, offset, data.len())?;
        for (touch, bytes) in touches(offset, data.len(), at) {
            let same = self.data[offset..][bytes.clone()] == data[bytes];
            self.shadow.write(view, touch, same)?;
        }
        self.put(offset, data);
        Ok(())
    }

    /// The asynchronous proxy reads `N` bytes.
    pub(super) fn load_async<const N: usize>(
        &mut self,
        view: View<'_>,
        address: u32,
        at: Site,
    ) -> Result<[u8; N], FaultKind> {
        let data = self.load(view, address, at)?;
        for (touch, _) in touches((address - BASE) as usize, N, at) {
            self.is_fenced(view, Access::Read, touch)?;
        }
        Ok(data)
    }

    fn is_fenced(&self, view: View<'_>, access: Access, touch: Touch) -> Result<(), FaultKind> {
        match self.shadow.hidden_from_proxy(view, touch) {
            Some((writer, written_at)) => {
                Err(FaultKind::Unfenced { access, address: touch.address, writer, written_at })
            }
            None => Ok(()),
        }
    }

    /// A thread starts a copy to `bytes` bytes, through the asynchronous proxy if `bulk`: whoever touches them
    /// before it has landed is at fault.
    pub(super) fn begin_copy(
        &mut self,
        view: View<'_>,
        address: u32,
        bytes: usize,
        bulk: bool,
        at: Site,
    ) -> Result<(), FaultKind> {
        let offset = self.locate(Access::Write, address, bytes, 16)?;
        self.is_plain(Access::Write, offset, bytes)?;
        for (touch, _) in touches(offset, bytes, at) {
            if bulk {
                self.is_fenced(view, Access::Write, touch)?;
            }
            self.shadow.write(view, touch, false)?;
        }
        self.state[offset..offset + bytes].fill(State::InFlight);
        Ok(())
    }

    /// The copy lands, as a write of `actor` at `moment`.
    pub(super) fn finish_copy(&mut self, actor: usize, moment: u32, address: u32, data: &[u8], at: Site) {
        let offset = (address - BASE) as usize;
        for (touch, _) in touches(offset, data.len(), at) {
            self.shadow.land(actor, moment, touch);
        }
        self.put(offset, data);
    }

    /// As [`Shared::finish_copy`], for a copy some of whose bytes have no value.
    pub(super) fn finish_bulk(&mut self, actor: usize, moment: u32, address: u32, data: &[Option<u8>; 16], at: Site) {
        self.finish_copy(actor, moment, address, &data.map(Option::unwrap_or_default), at);
        let offset = (address - BASE) as usize;
        for (state, byte) in self.state[offset..].iter_mut().zip(data) {
            *state = if byte.is_some() { State::Value } else { State::Undefined };
        }
    }

    /// A thread makes 8 bytes an mbarrier.
    pub(super) fn make_object(&mut self, view: View<'_>, address: u32, at: Site) -> Result<(), FaultKind> {
        let offset = self.locate(Access::Write, address, 8, 8)?;
        self.is_plain(Access::Write, offset, 8)?;
        for (touch, _) in touches(offset, 8, at) {
            self.shadow.write(view, touch, false)?;
        }
        self.state[offset..offset + 8].fill(State::Object);
        Ok(())
    }

    fn put(&mut self, offset: usize, data: &[u8]) {
        self.data[offset..offset + data.len()].copy_from_slice(data);
        self.state[offset..offset + data.len()].fill(State::Value);
    }
}
