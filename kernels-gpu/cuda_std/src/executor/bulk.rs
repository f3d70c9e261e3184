//! Bulk copies [cp.async.bulk, cp.async.bulk.tensor], which land some time after they start.

use std::format;
use std::string::String;
use std::vec::Vec;

use super::clocks::Published;
use super::fault::{Fault, FaultKind, Site};
use super::machine::Machine;

/// A tensor map for [`crate::executor`]: what `cuTensorMapEncodeTiled` is told, for a tensor of three
/// dimensions. A test puts [`TensorMap::encode`] where the kernel expects the driver's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Address of element `[0, 0, 0]`, a multiple of 16.
    pub base: u64,
    /// Bytes of an element: 1, 2 or 4.
    pub element_bytes: u32,
    /// Elements along x, y and z.
    pub extents: [u32; 3],
    /// Bytes from one row (y) to the next and from one plane (z) to the next, multiples of 16.
    pub strides: [u64; 2],
    /// Elements of a box along x, y and z, each at most 256.
    pub box_extents: [u32; 3],
    /// Bytes of a row within which 16-byte chunks are permuted: 0 (not at all), 32, 64 or 128.
    pub swizzle_bytes: u32,
}

/// First word of an encoded map.
const MAGIC: u64 = 0x7465_6e73_6f72_6d61;

impl TensorMap {
    /// The map as a kernel is given it, in place of a `CUtensorMap`.
    pub fn encode(&self) -> [u64; 16] {
        let [x, y, z] = self.extents.map(u64::from);
        let [bx, by, bz] = self.box_extents.map(u64::from);
        let mut words = [0; 16];
        words[..11].copy_from_slice(&[MAGIC, self.base, x, y, z, self.strides[0], self.strides[1], bx, by, bz, 0]);
        words[10] = u64::from(self.element_bytes) << 32 | u64::from(self.swizzle_bytes);
        words
    }

    pub(crate) fn decode(words: &[u64; 16]) -> Result<TensorMap, FaultKind> {
        let illegal = |what: String| Err(FaultKind::Illegal(what));
        if words[0] != MAGIC {
            return illegal("the address is not that of a tensor map".into());
        }
        let map = TensorMap {
            base: words[1],
            extents: [2, 3, 4].map(|i| words[i] as u32),
            strides: [words[5], words[6]],
            box_extents: [7, 8, 9].map(|i| words[i] as u32),
            element_bytes: (words[10] >> 32) as u32,
            swizzle_bytes: words[10] as u32,
        };
        let row = map.box_extents[0] * map.element_bytes;
        if map.box_extents.iter().any(|&extent| !(1..=256).contains(&extent)) || !row.is_multiple_of(16) {
            return illegal(format!("a box is at most 256 long and whole chunks of 16 bytes wide: {map:?}"));
        }
        if map.swizzle_bytes != 0 && row > map.swizzle_bytes {
            return illegal(format!("a row of the box is wider than its swizzle: {map:?}"));
        }
        if [map.base, map.strides[0], map.strides[1]].iter().any(|x| !x.is_multiple_of(16)) {
            return illegal(format!("base and strides are multiples of 16: {map:?}"));
        }
        Ok(map)
    }
}

/// Where the byte lies whose place would be `address` without a swizzle: address bits 4 to 6 are changed by
/// the bits from 7 on, as many as the swizzle has chunks for.
pub(super) fn swizzled(address: u32, swizzle_bytes: u32) -> u32 {
    let mask = (swizzle_bytes / 16).saturating_sub(1);
    address ^ ((address >> 7) & mask) << 4
}

/// 16 bytes of a copy; a byte without a value at the source has none at the destination.
type Chunk = [Option<u8>; 16];

/// A copy under way: 16-byte chunks with their places.
pub(crate) struct Flight {
    chunks: Vec<(u32, Chunk)>,
    barrier: u32,
    /// What the thread that started it had done and seen.
    published: Published,
    at: Site,
}

impl Machine {
    /// Starts a copy of `chunks` that completes on `barrier`.
    fn start_flight(&mut self, chunks: Vec<(u32, Chunk)>, barrier: u32, at: Site) -> Result<(), FaultKind> {
        self.check_copy_barrier(barrier)?;
        for &(to, _) in &chunks {
            self.shared.begin_copy(self.view(self.current), to, 16, true, at)?;
        }
        let mut published = Published::default();
        self.release(self.current, &mut published);
        self.flights.push(Flight { chunks, barrier, published, at });
        Ok(())
    }

    fn load_bulk<const N: usize>(&mut self, address: u64) -> Result<[Option<u8>; N], FaultKind> {
        self.memory().load_bulk(self.view(self.current), address)
    }

    /// `cp.async.bulk` from global to shared memory.
    pub(crate) fn copy_bulk(
        &mut self,
        to: u32,
        from: u64,
        bytes: u32,
        barrier: u32,
        at: Site,
    ) -> Result<(), FaultKind> {
        if !bytes.is_multiple_of(16) {
            return Err(FaultKind::Illegal(format!("a bulk copy of {bytes} bytes, which is no multiple of 16")));
        }
        let mut chunks = Vec::with_capacity(bytes as usize / 16);
        for offset in (0..bytes).step_by(16) {
            chunks.push((to + offset, self.load_bulk(from + u64::from(offset))?));
        }
        self.start_flight(chunks, barrier, at)
    }

    /// `cp.async.bulk.tensor.3d` from global to shared memory: the box at `origin`.
    pub(crate) fn copy_tensor(
        &mut self,
        to: u32,
        map: &[u64; 16],
        origin: [u32; 3],
        barrier: u32,
        at: Site,
    ) -> Result<(), FaultKind> {
        let map = TensorMap::decode(map)?;
        // [cp.async.bulk.tensor]; a swizzle whose pattern starts in the middle would need a base offset.
        let align = (map.swizzle_bytes * 8).max(128);
        if !to.is_multiple_of(align) {
            return Err(FaultKind::Illegal(format!("the box's address {to:#x} is not a multiple of {align}")));
        }
        let [width, rows, planes] = map.box_extents;
        let row_bytes = width * map.element_bytes;
        let mut chunks = Vec::with_capacity((row_bytes * rows * planes / 16) as usize);
        for row in 0..rows * planes {
            let (y, z) = (origin[1].wrapping_add(row % rows), origin[2].wrapping_add(row / rows));
            for first in (0..row_bytes).step_by(16) {
                let mut chunk = [Some(0); 16];
                let elements = 16 / map.element_bytes;
                let x = origin[0].wrapping_add(first / map.element_bytes);
                if y < map.extents[1] && z < map.extents[2] {
                    let from = map.base + u64::from(z) * map.strides[1] + u64::from(y) * map.strides[0];
                    // Coordinates are signed: what lies before the tensor is outside too.
                    for element in (0..elements).filter(|element| x.wrapping_add(*element) < map.extents[0]) {
                        let size = map.element_bytes as usize;
                        let address = from + u64::from(x.wrapping_add(element)) * size as u64;
                        let bytes = &mut chunk[element as usize * size..][..size];
                        match size {
                            1 => bytes.copy_from_slice(&self.load_bulk::<1>(address)?),
                            2 => bytes.copy_from_slice(&self.load_bulk::<2>(address)?),
                            _ => bytes.copy_from_slice(&self.load_bulk::<4>(address)?),
                        }
                    }
                }
                chunks.push((swizzled(to + row * row_bytes + first, map.swizzle_bytes), chunk));
            }
        }
        self.start_flight(chunks, barrier, at)
    }

    /// A copy lands.
    pub(super) fn land(&mut self, flight: Flight) -> Result<(), Fault> {
        let Some((actor, moment)) = self.copy_moment(flight.barrier) else {
            let kind = FaultKind::Barrier { barrier: flight.barrier, what: "it is gone".into() };
            return Err(self.fault(Some(flight.at), kind));
        };
        for (to, data) in &flight.chunks {
            self.shared.finish_bulk(actor, moment, *to, data, flight.at);
        }
        self.complete_bytes(flight.barrier, flight.chunks.len() as u32 * 16, &flight.published);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const MAP: TensorMap = TensorMap {
        base: 0x7_0000_0000,
        element_bytes: 1,
        extents: [128, 300, 4],
        strides: [128, 38_400],
        box_extents: [128, 64, 1],
        swizzle_bytes: 128,
    };

    #[test]
    fn maps_round_trip_and_bad_ones_are_refused() {
        assert_eq!(TensorMap::decode(&MAP.encode()), Ok(MAP));
        assert!(TensorMap::decode(&[0; 16]).is_err());
        assert!(TensorMap::decode(&TensorMap { swizzle_bytes: 64, ..MAP }.encode()).is_err());
        assert!(TensorMap::decode(&TensorMap { box_extents: [128, 257, 1], ..MAP }.encode()).is_err());
        assert!(TensorMap::decode(&TensorMap { strides: [120, 38_400], ..MAP }.encode()).is_err());
    }

    /// Every chunk of eight rows has its own place in them, and the same chunk of eight rows falls into
    /// different groups of banks.
    #[test]
    fn swizzles_permute_chunks() {
        for swizzle in [32, 64, 128] {
            let mut seen = vec![false; swizzle as usize * 8];
            for address in (0..swizzle * 8).step_by(16) {
                let place = swizzled(address, swizzle);
                assert_eq!(place / swizzle, address / swizzle, "a chunk stays in its row");
                assert!(!std::mem::replace(&mut seen[place as usize], true));
            }
        }
        assert_eq!(swizzled(0x1230, 0), 0x1230);
    }
}
