//! `wgmma`: asynchronous products of a warpgroup
//! [Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions].
//!
//! Operands are read and the product is computed when it is issued, which only a correct kernel cannot tell
//! from later: until `wait_group` the accumulators hold [`IN_FLIGHT`], whose use or change is a fault, and
//! the operands count as being read.

use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::panic::Location;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::bulk::swizzled;
use super::clocks::View;
use super::context;
use super::fault::{FaultKind, Site};
use super::machine::{MBARRIERS, Machine, WARP, WARPGROUP, Wait};
use super::tensor::{self, Operand};

/// What an accumulator holds while a product is under way: a NaN that no instruction produces.
pub(crate) const IN_FLIGHT: u32 = 0xffc0_dead;

/// Faults if one of `words` is an accumulator under way.
#[inline]
pub(crate) fn check_finished<const N: usize>(at: &'static Location<'static>, words: [u32; N]) {
    if words.contains(&IN_FLIGHT) {
        context::call(at, |machine, _| machine.used_in_flight());
    }
}

/// Types of a product; K is 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// Signed 8-bit integers into s32.
    S8,
    /// FP8 E4M3 into f32.
    E4M3,
}

/// What the warps of a warpgroup do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `wgmma.fence`.
    Fence,
    /// `wgmma.commit_group`.
    Commit,
    /// `wgmma.wait_group`.
    Wait(u32),
    /// `setmaxnreg`.
    Registers(u32),
    /// `wgmma.mma_async` with `columns` columns.
    Multiply {
        /// Types.
        element: Element,
        /// N.
        columns: usize,
    },
}

/// A lane's operands of `wgmma.mma_async`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Its accumulators, `columns / 2` words.
    pub(crate) d: *mut u32,
    /// A.
    pub(crate) a: Left,
    /// Descriptor of B.
    pub(crate) b: u64,
    /// Whether D's value is added.
    pub(crate) accumulate: bool,
}

/// The A operand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// A descriptor.
    Shared(u64),
    /// Registers.
    Registers([u32; 4]),
}

/// Accumulators under way, of all lanes.
struct Accumulators {
    /// Group that will finish them.
    group: u32,
    /// Where the latest product was issued.
    at: Site,
    /// Per lane, where they are, and their value.
    lanes: Vec<(*mut u32, Vec<u32>)>,
}

/// A warpgroup.
pub(super) struct Warpgroup {
    arrived: u128,
    action: Action,
    at: Option<Site>,
    products: Vec<Option<Product>>,
    /// Products that no commit has closed.
    open: usize,
    /// Number of the open group.
    group: u32,
    /// Closed groups that nobody has waited for.
    closed: VecDeque<u32>,
    /// Whether registers may have been touched since the last fence.
    unfenced: bool,
    /// By the first lane's address.
    in_flight: BTreeMap<usize, Accumulators>,
}

impl Default for Warpgroup {
    fn default() -> Self {
        Warpgroup {
            arrived: 0,
            action: Action::Fence,
            at: None,
            products: vec![None; WARPGROUP],
            open: 0,
            group: 1,
            closed: VecDeque::new(),
            unfenced: true,
            in_flight: BTreeMap::new(),
        }
    }
}

impl Warpgroup {
    pub(super) fn describe(&self) -> String {
        let missing: Vec<usize> = (0..WARPGROUP / WARP)
            .filter(|warp| self.arrived >> (warp * WARP) & u128::from(u32::MAX) != u128::from(u32::MAX))
            .collect();
        format!("warps {missing:?} of its warpgroup to reach {:?}", self.action)
    }

    /// Fails if a product was never waited for.
    pub(super) fn check_finished(&self) -> Result<(), FaultKind> {
        match self.in_flight.values().next() {
            Some(accumulators) => {
                Err(FaultKind::Unawaited { what: format!("the wgmma at {} is under way", accumulators.at) })
            }
            None => Ok(()),
        }
    }
}

fn illegal<T>(what: String) -> Result<T, FaultKind> {
    Err(FaultKind::Illegal(what))
}

impl Machine {
    /// The running thread takes part in an action of its warpgroup.
    pub(crate) fn act(&mut self, action: Action, product: Option<Product>, at: Site) -> Result<Option<()>, FaultKind> {
        let (index, lane) = (self.current / WARPGROUP, self.current % WARPGROUP);
        let Some(warpgroup) = self.warpgroups.get_mut(index) else {
            return illegal(format!("{action:?} in a warp that belongs to no whole warpgroup"));
        };
        match warpgroup.at {
            Some(there) if warpgroup.arrived != 0 && (warpgroup.action != action || there != at) => {
                return Err(FaultKind::Divergent {
                    here: format!("{action:?}"),
                    there: format!("{:?}", warpgroup.action),
                    other_thread: (index * WARPGROUP) as u32 + warpgroup.arrived.trailing_zeros(),
                    other_at: there,
                });
            }
            _ => (warpgroup.action, warpgroup.at) = (action, Some(at)),
        }
        warpgroup.arrived |= 1 << lane;
        warpgroup.products[lane] = product;
        if warpgroup.arrived != u128::MAX {
            self.wait(Wait::Warpgroup, at);
            return Ok(None);
        }
        warpgroup.arrived = 0;
        match action {
            Action::Fence => warpgroup.unfenced = false,
            Action::Commit => self.commit_products(index),
            Action::Wait(newest) => self.wait_products(index, newest as usize)?,
            Action::Registers(registers) => {
                if !(24..=256).contains(&registers) || registers % 8 != 0 {
                    return illegal(format!("setmaxnreg takes a multiple of 8 from 24 to 256, not {registers}"));
                }
            }
            Action::Multiply { element, columns } => self.issue(index, element, columns, at)?,
        }
        for other in (0..WARPGROUP).filter(|&other| other != lane) {
            self.wake(index * WARPGROUP + other);
        }
        Ok(Some(()))
    }

    /// The running thread has used a word that looks like an accumulator under way.
    fn used_in_flight(&mut self) -> Result<(), FaultKind> {
        let warpgroup = self.warpgroups.get(self.current / WARPGROUP);
        match warpgroup.and_then(|warpgroup| warpgroup.in_flight.values().next()) {
            Some(Accumulators { at, .. }) => {
                Err(FaultKind::Unfinished { what: "an accumulator is used".into(), product_at: *at })
            }
            // A number that happens to have these bits.
            None => Ok(()),
        }
    }

    fn commit_products(&mut self, index: usize) {
        let warpgroup = &mut self.warpgroups[index];
        warpgroup.closed.push_back(warpgroup.group);
        warpgroup.group += 1;
        warpgroup.open = 0;
    }

    fn wait_products(&mut self, index: usize, newest: usize) -> Result<(), FaultKind> {
        let actor = self.base + self.waits.len() + MBARRIERS + index;
        let warpgroup = &mut self.warpgroups[index];
        let mut finished = 0;
        while warpgroup.closed.len() > newest {
            finished = warpgroup.closed.pop_front().unwrap_or(finished);
        }
        warpgroup.unfenced = true;
        let done: Vec<usize> =
            warpgroup.in_flight.iter().filter(|(_, d)| d.group <= finished).map(|(&key, _)| key).collect();
        for key in done {
            let Some(accumulators) = warpgroup.in_flight.remove(&key) else { continue };
            for (d, value) in accumulators.lanes {
                for (i, word) in value.into_iter().enumerate() {
                    // SAFETY: the lane's accumulators, which stay in place until this wait: a kernel that
                    // moves them is caught, as their old place no longer holds the mark.
                    let place = unsafe { d.add(i) };
                    // SAFETY: as above.
                    if unsafe { place.read_volatile() } != IN_FLIGHT {
                        let what = format!("accumulator {i} was changed, or moved,");
                        return Err(FaultKind::Unfinished { what, product_at: accumulators.at });
                    }
                    // SAFETY: as above.
                    unsafe { place.write_volatile(word) };
                }
            }
        }
        for thread in index * WARPGROUP..(index + 1) * WARPGROUP {
            self.grid().clocks.acquire_actor(self.base + thread, actor, finished);
        }
        Ok(())
    }

    /// Issues a product: all lanes are there.
    fn issue(&mut self, index: usize, element: Element, columns: usize, at: Site) -> Result<(), FaultKind> {
        let warpgroup = &mut self.warpgroups[index];
        let mut products = Vec::with_capacity(WARPGROUP);
        products.extend(warpgroup.products.iter_mut().filter_map(Option::take));
        let Some(&first) = products.first() else { return Ok(()) };
        let same_left = |product: &Product| match (product.a, first.a) {
            (Left::Registers(_), Left::Registers(_)) => true,
            (a, b) => a == b,
        };
        if !products.iter().all(|p| same_left(p) && p.b == first.b && p.accumulate == first.accumulate) {
            return illegal("the lanes of a warpgroup give wgmma different descriptors".into());
        }
        let earlier = warpgroup.in_flight.remove(&(first.d as usize));
        if earlier.is_none() && warpgroup.unfenced {
            return illegal("wgmma without a wgmma.fence since its registers were last accessed".into());
        }
        let words = columns / 2;
        let mut lanes: Vec<(*mut u32, Vec<u32>)> = match earlier {
            Some(earlier) => earlier.lanes,
            None => {
                // SAFETY: every lane passed a reference to that many words and sleeps now.
                let read = |d: *mut u32| unsafe { std::slice::from_raw_parts(d, words) }.to_vec();
                products.iter().map(|product| (product.d, read(product.d))).collect()
            }
        };
        if lanes.iter().zip(&products).any(|((d, value), product)| *d != product.d || value.len() != words) {
            return illegal("wgmma on part of the registers of a product under way".into());
        }
        warpgroup.open += 1;
        let group = warpgroup.group;
        if !first.accumulate {
            lanes.iter_mut().for_each(|(_, value)| value.fill(0));
        }

        let actor = self.base + self.waits.len() + MBARRIERS + index;
        let threads = index * WARPGROUP..(index + 1) * WARPGROUP;
        // A lane that leads its warp, two that do not: whoever did not synchronise for itself is among them.
        let sampled = threads.filter(|thread| matches!(thread % WARP, 0 | 1 | 31)).map(|thread| self.base + thread);
        let mut room = Default::default();
        let view = self.grid().clocks.common(sampled, actor, group, &mut room);
        let b = read_rows(&mut self.shared, view, first.b, columns, at)?;
        let a: Vec<Operand> = match first.a {
            Left::Shared(descriptor) => read_rows(&mut self.shared, view, descriptor, 64, at)?,
            Left::Registers(_) => {
                let registers = products.iter().map(|product| match product.a {
                    Left::Registers(registers) => registers,
                    Left::Shared(_) => [0; 4],
                });
                tensor::rows_of_registers(registers)
            }
        };
        let values = lanes.iter_mut().map(|(_, value)| value.as_mut_slice());
        match element {
            Element::S8 => tensor::warpgroup_integers(&a, &b, values),
            Element::E4M3 => tensor::warpgroup_floats(&a, &b, values),
        }
        for (d, value) in &lanes {
            for i in 0..value.len() {
                // SAFETY: the lane's accumulators, which nobody touches until the wait.
                unsafe { d.add(i).write_volatile(IN_FLIGHT) };
            }
        }
        let accumulators = Accumulators { group, at, lanes };
        self.warpgroups[index].in_flight.insert(first.d as usize, accumulators);
        Ok(())
    }
}

/// 32 bytes of each row of a K-major operand, by its descriptor [Matrix Descriptor Format].
fn read_rows(
    shared: &mut super::shared::Shared,
    view: View<'_>,
    descriptor: u64,
    rows: usize,
    at: Site,
) -> Result<Vec<Operand>, FaultKind> {
    let start = ((descriptor & 0x3fff) << 4) as u32;
    let stride = ((descriptor >> 32 & 0x3fff) << 4) as u32;
    let row_bytes = match descriptor >> 62 {
        1 => 128,
        2 => 64,
        3 => 32,
        _ => return illegal("the executor knows descriptors with a swizzle only".into()),
    };
    if descriptor >> 49 & 7 != 0 {
        return illegal("the executor knows descriptors with base offset 0 only".into());
    }
    let mut operand = Vec::with_capacity(rows);
    for row in 0..rows as u32 {
        let mut bytes = [0u8; 32];
        for (half, chunk) in bytes.chunks_exact_mut(16).enumerate() {
            let address = start + row / 8 * stride + row % 8 * row_bytes + 16 * half as u32;
            chunk.copy_from_slice(&shared.load_async::<16>(view, swizzled(address, row_bytes), at)?);
        }
        operand.push(bytes);
    }
    Ok(operand)
}
