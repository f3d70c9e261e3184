//! Instructions that the lanes of a warp execute together.

use std::format;
use std::string::String;

use super::clocks::Published;
use super::context;
use super::fault::{FaultKind, Site};
use super::machine::{Machine, WARP, Wait};
use super::tensor;

/// What the lanes of a warp do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collective {
    /// `bar.warp.sync`.
    Sync,
    /// `shfl.sync`: operand 0 is the value, operand 1 the lane to read.
    Shuffle,
    /// `vote.sync.ballot`: bit `l` is operand 0 of lane `l`.
    Ballot,
    /// `ldmatrix.x4`: operand 0 is an address.
    LoadMatrices {
        /// Each matrix is transposed.
        transposed: bool,
    },
    /// `mma.sync`: A (4 registers), B (2), C (4).
    Mma(tensor::Shape),
}

/// Operands of a lane.
pub(crate) type Operands = [u32; 10];
/// Results of a lane.
pub(crate) type Results = [u32; 4];

/// The lanes of a warp that have reached a collective.
pub(super) struct Meeting {
    /// Lanes of the warp.
    all: u32,
    arrived: u32,
    what: Collective,
    at: Option<Site>,
    operands: [Operands; WARP],
    results: [Results; WARP],
}

impl Meeting {
    /// For a warp of `lanes` lanes.
    pub(super) fn new(lanes: usize) -> Self {
        Meeting {
            all: (u32::MAX) >> (WARP - lanes),
            arrived: 0,
            what: Collective::Sync,
            at: None,
            operands: [[0; 10]; WARP],
            results: [[0; 4]; WARP],
        }
    }

    pub(super) fn describe(&self) -> String {
        format!("lanes {:#010x} of its warp to reach {:?}", self.all & !self.arrived, self.what)
    }
}

/// The running thread takes part in a collective of its warp.
pub(crate) fn meet(at: &'static std::panic::Location<'static>, what: Collective, operands: &[u32]) -> Results {
    context::call_waiting(
        at,
        |machine, site| machine.arrive(what, operands, site),
        |machine| machine.meetings[machine.current / WARP].results[machine.current % WARP],
    )
}

impl Machine {
    fn arrive(&mut self, what: Collective, operands: &[u32], at: Site) -> Result<Option<Results>, FaultKind> {
        let (warp, lane) = (self.current / WARP, self.current % WARP);
        let meeting = &mut self.meetings[warp];
        match meeting.at {
            Some(there) if meeting.arrived != 0 && (meeting.what != what || there != at) => {
                return Err(FaultKind::Divergent {
                    here: format!("{what:?}"),
                    there: format!("{:?}", meeting.what),
                    other_thread: (warp * WARP) as u32 + meeting.arrived.trailing_zeros(),
                    other_at: there,
                });
            }
            _ => (meeting.what, meeting.at) = (what, Some(at)),
        }
        meeting.arrived |= 1 << lane;
        meeting.operands[lane][..operands.len()].copy_from_slice(operands);
        if meeting.arrived != meeting.all {
            self.wait(Wait::Warp, at);
            return Ok(None);
        }
        meeting.arrived = 0;
        let others = meeting.all & !(1 << lane);
        self.execute(warp, what, at)?;
        for other in (0..WARP).filter(|other| others & 1 << other != 0) {
            self.wake(warp * WARP + other);
        }
        Ok(Some(self.meetings[warp].results[lane]))
    }

    /// All lanes are there.
    fn execute(&mut self, warp: usize, what: Collective, at: Site) -> Result<(), FaultKind> {
        let first = warp * WARP;
        let Meeting { all, operands, .. } = self.meetings[warp];
        let lanes = (0..WARP).filter(|lane| all & 1 << lane != 0);
        let mut results = [[0; 4]; WARP];
        match what {
            Collective::Sync => {
                let mut published = Published::default();
                lanes.clone().for_each(|lane| self.release(first + lane, &mut published));
                lanes.for_each(|lane| self.acquire(first + lane, &published));
            }
            Collective::Shuffle => {
                for lane in lanes {
                    // A lane outside the warp gives the reader its own value [shfl.sync].
                    let source = operands[lane][1] as usize;
                    let source = if source < WARP { source } else { lane };
                    results[lane][0] = operands[source][0];
                }
            }
            Collective::Ballot => {
                let ballot = lanes.filter(|&lane| operands[lane][0] != 0).fold(0, |ballot, lane| ballot | 1 << lane);
                results.iter_mut().for_each(|result| result[0] = ballot);
            }
            Collective::LoadMatrices { transposed } => {
                let mut rows = [[0u8; 16]; WARP];
                for (lane, row) in rows.iter_mut().enumerate() {
                    *row = self.shared.load(self.view(first + lane), operands[lane][0], at)?;
                }
                tensor::matrices(&rows, transposed, &mut results);
            }
            Collective::Mma(shape) => tensor::multiply(shape, &operands, &mut results),
        }
        self.meetings[warp].results = results;
        Ok(())
    }
}
