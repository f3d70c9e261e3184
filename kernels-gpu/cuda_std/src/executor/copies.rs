//! `cp.async`: copies of a thread to shared memory, in groups [cp.async].

use std::collections::VecDeque;
use std::format;
use std::vec::Vec;

use super::fault::{FaultKind, Site};
use super::machine::Machine;
use super::memory::Read;

/// A copy under way. Its data is read when it starts and lands when it is waited for: the latest moment
/// there is, so that a read without a wait always finds the old bytes.
#[derive(Clone, Copy)]
struct Copy16 {
    to: u32,
    data: [u8; 16],
    at: Site,
}

/// Copies of a thread.
#[derive(Default)]
pub(super) struct Copies {
    open: Vec<Copy16>,
    groups: VecDeque<Vec<Copy16>>,
}

impl Copies {
    /// Fails if a copy was never waited for.
    pub(super) fn check_finished(&self) -> Result<(), FaultKind> {
        let copies = self.open.len() + self.groups.iter().map(Vec::len).sum::<usize>();
        let first = self.groups.iter().flatten().chain(&self.open).next();
        match first {
            Some(copy) => Err(FaultKind::Unawaited {
                what: format!("{copies} cp.async are under way, the first from {}", copy.at),
            }),
            None => Ok(()),
        }
    }
}

impl Machine {
    /// `cp.async` of 16 bytes.
    pub(crate) fn copy_async(&mut self, to: u32, from: u64, at: Site) -> Result<(), FaultKind> {
        let data = self.load_global::<16>(from, Read::Weak)?;
        self.shared.begin_copy(self.view(self.current), to, 16, false, at)?;
        self.copies[self.current].open.push(Copy16 { to, data, at });
        Ok(())
    }

    /// `cp.async.commit_group`.
    pub(crate) fn commit_copies(&mut self) {
        let copies = &mut self.copies[self.current];
        let group = std::mem::take(&mut copies.open);
        copies.groups.push_back(group);
    }

    /// `cp.async.wait_group newest`.
    pub(crate) fn wait_copies(&mut self, newest: usize) {
        while self.copies[self.current].groups.len() > newest {
            let group = self.copies[self.current].groups.pop_front().unwrap_or_default();
            for Copy16 { to, data, at } in group {
                let moment = self.view(self.current).now;
                self.shared.finish_copy(self.base + self.current, moment, to, &data, at);
            }
        }
    }
}
