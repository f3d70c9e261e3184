//! A plan in words.

use std::fmt::Write;

use sage_spec::symbol::Arch;
use sage_spec::{Precision, PvFormat};

use super::{Plan, Verdict};

impl Plan {
    /// The plan as text: the problem, every candidate kernel and why it won or lost, the launches and
    /// the workspace.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let (problem, dims, device) = (&self.problem, self.problem.dims(), &self.capability);
        writeln!(
            text,
            "problem    B={} Hq={} Hkv={} M={} N={} D={}{} {} -> {}{}, scales per {}, smoothing {}",
            dims.batch,
            dims.num_heads_q,
            dims.num_heads_kv,
            dims.seqlen_q,
            dims.seqlen_kv,
            dims.head_dim,
            if dims.head_dim_v == dims.head_dim { String::new() } else { format!(" Dv={}", dims.head_dim_v) },
            problem.input_dtype(),
            problem.out().dtype,
            if problem.causal() { ", causal" } else { "" },
            problem.granularity().name(),
            problem.smoothing().name(),
        )?;
        writeln!(
            text,
            "device     compute capability {}.{}, {} SMs, {} bytes of shared memory per CTA",
            device.major, device.minor, device.sm_count, device.smem_opt_in
        )?;
        for candidate in &self.candidates {
            let (mark, reason) = match &candidate.verdict {
                Verdict::Chosen(reason) => ("chosen", reason),
                Verdict::Lost(reason) => ("lost", reason),
            };
            writeln!(text, "kernel     {:<18} {mark}: {reason}", candidate.stem.name)?;
        }
        for note in self.notes() {
            writeln!(text, "note       {note}")?;
        }
        if self.entries.is_empty() {
            writeln!(text, "launch     none: there is no output element")?;
        }
        let first = self.setup_steps().chain(self.chunk_steps().take(self.entries_where(true).count()));
        for step in first {
            let times = if step.entry.kernel.per_chunk() { self.chunks.count() } else { 1 };
            writeln!(
                text,
                "launch     {:<32} {} x {} CTAs of {} threads, {} bytes of shared memory",
                step.entry.symbol,
                times,
                u64::from(step.grid[0]) * u64::from(step.grid[1]),
                step.entry.cta.threads,
                step.entry.cta.smem_bytes
            )?;
        }
        for buffer in self.workspace.buffers() {
            writeln!(text, "workspace  {:<8} {} bytes at {}", buffer.slot.name(), buffer.bytes, buffer.offset_bytes)?;
        }
        writeln!(text, "workspace  {} bytes in all", self.workspace.total_bytes())
    }

    /// What a reader should know about this kernel on this device.
    fn notes(&self) -> Vec<&'static str> {
        let device = &self.capability;
        let mut notes = Vec::new();
        if device.major >= 9 && self.stem.qk == Precision::Int4 {
            notes.push("Tensor cores from 9.0 on take 4-bit codes as 8-bit ones: INT4 gains no speed over INT8 here");
        }
        if (device.major, device.minor) == (9, 0) && self.stem.pv == PvFormat::Fp8 && self.stem.arch != Arch::Sm90a {
            notes.push("FP8 mma.sync is emulated through FP16 on 9.0: results are the same, the speed is FP16's");
        }
        notes
    }
}
