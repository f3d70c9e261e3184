//! Attention of tensors in host memory: upload, launch, download.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream};

use super::Gpu;
use super::args::{DeviceMemory, DeviceTensor, LaunchArgs};
use super::memory::Memory;
use super::side::{HostSide, SideArgs};
use crate::error::{Error, Invalid, Operand};
use crate::plan::{PackedPlan, Plan};
use crate::problem::{Problem, TensorSpec};

/// What [`Gpu::run_host`] computes.
///
/// Example: [`Gpu`](crate::device::Gpu).
#[derive(Clone, Debug, PartialEq)]
pub struct HostResult {
    /// Bytes of the output from its first element to its last, as the plan's problem lays it out.
    /// Bytes between rows, if there are gaps, mean nothing.
    pub out: Vec<u8>,
    /// `[B, Hq, M]`, if the plan returns the log-sum-exp.
    pub lse: Option<Vec<f32>>,
    /// Milliseconds of the attention kernel, and of ΔS if Q is smoothed.
    pub kernel_ms: f64,
    /// Milliseconds of smoothing, quantization and attention, without the copies.
    pub e2e_ms: f64,
}

/// Submits work on tensors that are on the device; yields events before the first step, before the first chunk and
/// after the last of each plan.
type TimedLaunch<'a> = dyn Fn(&LaunchArgs, &SideArgs) -> Result<Vec<[CudaEvent; 3]>, Error> + 'a;

impl Gpu {
    /// Runs `plan` on host memory and waits for the result. `q`, `k` and `v` are the bytes of the
    /// tensors from the first element to the last, as the plan's problem lays them out.
    ///
    /// # Errors
    ///
    /// [`Invalid::SpanBeyondBuffer`] if an input is too short, otherwise [`DeviceError`](crate::error::DeviceError).
    pub fn run_host(&self, plan: &Plan, q: &[u8], k: &[u8], v: &[u8]) -> Result<HostResult, Error> {
        self.run_host_with(plan, q, k, v, &HostSide::default())
    }

    /// [`Gpu::run_host`] with slopes, a bias, a mask or sinks, as the plan was made for.
    ///
    /// # Errors
    ///
    /// As [`Gpu::run_host`]; also [`Invalid::SidePresence`] and [`Invalid::SideTooShort`].
    pub fn run_host_with(
        &self,
        plan: &Plan,
        q: &[u8],
        k: &[u8],
        v: &[u8],
        side: &HostSide<'_>,
    ) -> Result<HostResult, Error> {
        self.bind()?;
        self.prepare(plan)?;
        let stream = self.own_stream()?;
        let launch = |args: &LaunchArgs, side: &SideArgs| Ok(vec![self.launch_timed(plan, (args, side), &stream)?]);
        let workspace_bytes = plan.workspace().total_bytes();
        self.run_on((plan.problem(), workspace_bytes), [q, k, v], side, &stream, &launch)
    }

    /// Runs the packed sequences of `plan` on host memory and waits for the result: one copy of each tensor, one
    /// workspace. `q`, `k`, `v` and `side` are the packed ones. Each sequence's log-sum-exp is `[Hq, M of the
    /// sequence]`, after that of the one before.
    ///
    /// # Errors
    ///
    /// As [`Gpu::run_host_with`].
    pub fn run_host_packed(
        &self,
        plan: &PackedPlan,
        q: &[u8],
        k: &[u8],
        v: &[u8],
        side: &HostSide<'_>,
    ) -> Result<HostResult, Error> {
        self.bind()?;
        plan.parts().iter().try_for_each(|(_, plan)| self.prepare(plan))?;
        let stream = self.own_stream()?;
        let launch = |args: &LaunchArgs, side: &SideArgs| {
            let timed = plan.parts().iter().map(|part| {
                let (args, side) = args.of_part(plan, side, part)?;
                self.launch_timed(&part.1, (&args, &side), &stream)
            });
            timed.collect()
        };
        self.run_on((plan.problem(), plan.workspace_bytes()), [q, k, v], side, &stream, &launch)
    }

    /// Copies the tensors of `problem` to the device, has `launch` submit the work to `stream`, and copies the
    /// result back.
    fn run_on(
        &self,
        problem: (&Problem, usize),
        tensors: [&[u8]; 3],
        side: &HostSide<'_>,
        stream: &Arc<CudaStream>,
        launch: &TimedLaunch<'_>,
    ) -> Result<HostResult, Error> {
        let result = self.try_run_on(problem, tensors, side, stream, launch);
        if result.is_err() {
            // Copies from page-locked memory of the caller may still be under way. A second error
            // would say no more than the first.
            let _ = self.check("running the kernels", stream.synchronize());
        }
        // What this call could not release is this call's error, not the next one's.
        let released = self.settle("releasing events");
        let result = result?;
        released?;
        Ok(result)
    }

    /// [`Gpu::run_on`], which leaves copies under way if it fails.
    fn try_run_on(
        &self,
        (problem, workspace_bytes): (&Problem, usize),
        [q, k, v]: [&[u8]; 3],
        side: &HostSide<'_>,
        stream: &Arc<CudaStream>,
        launch: &TimedLaunch<'_>,
    ) -> Result<HostResult, Error> {
        let side = side.spans(problem)?.map(|bytes| bytes.map(|bytes| Memory::upload(self, stream, bytes)).transpose());
        let [alibi, bias, mask, sinks] = side;
        let (alibi, bias, mask, sinks) = (alibi?, bias?, mask?, sinks?);
        let q = self.upload(stream, Operand::Q, q, problem.q())?;
        let k = self.upload(stream, Operand::K, k, problem.k())?;
        let v = self.upload(stream, Operand::V, v, problem.v())?;
        let out_bytes = problem.out().span_elems(Operand::Out)? * problem.out().dtype.bytes();
        let out = Memory::new(self, stream, out_bytes)?;
        let lse = problem.return_lse().then(|| Memory::new(self, stream, problem.lse_elems() * 4)).transpose()?;
        let workspace = Memory::new(self, stream, workspace_bytes)?;
        let ptr = |memory: &Option<Memory<'_>>| memory.as_ref().map(Memory::ptr);
        let args = LaunchArgs {
            q: DeviceTensor { ptr: q.ptr(), spec: *problem.q() },
            k: DeviceTensor { ptr: k.ptr(), spec: *problem.k() },
            v: DeviceTensor { ptr: v.ptr(), spec: *problem.v() },
            out: DeviceTensor { ptr: out.ptr(), spec: *problem.out() },
            lse: ptr(&lse),
            workspace: DeviceMemory { ptr: workspace.ptr(), bytes: workspace.bytes() },
        };
        let side = SideArgs { alibi: ptr(&alibi), bias: ptr(&bias), mask: ptr(&mask), sinks: ptr(&sinks) };
        let events = launch(&args, &side)?;
        let out = out.download()?;
        let lse = lse.map(|lse| lse.download()).transpose()?;
        self.check("running the kernels", stream.synchronize())?;
        let elapsed =
            |from: &CudaEvent, to: &CudaEvent| self.check("timing the kernels", from.elapsed_ms(to)).map(f64::from);
        let mut kernel_ms = 0.0;
        for [_, attend, end] in &events {
            kernel_ms += elapsed(attend, end)?;
        }
        let e2e_ms = match (events.first(), events.last()) {
            (Some([start, ..]), Some([.., end])) => elapsed(start, end)?,
            _ => 0.0,
        };
        Ok(HostResult {
            out,
            lse: lse.map(|bytes| bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()),
            kernel_ms,
            e2e_ms,
        })
    }

    /// Launches with events before the first step, before the first chunk and after the last.
    fn launch_timed(
        &self,
        plan: &Plan,
        (args, side): (&LaunchArgs, &SideArgs),
        stream: &Arc<CudaStream>,
    ) -> Result<[CudaEvent; 3], Error> {
        args.check(plan, side)?;
        let record = || self.check("recording an event", stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)));
        let start = record()?;
        if !plan.entries().is_empty() {
            // SAFETY: `run_host` allocated every buffer in this context on this stream with at least
            // the bytes the plan needs, uses them on this stream only, and frees them in its order.
            unsafe { self.submit(plan.setup_steps(), plan, (args, side), stream.cu_stream()) }?;
        }
        let attend = record()?;
        if !plan.entries().is_empty() {
            // SAFETY: as above.
            unsafe { self.submit(plan.chunk_steps(), plan, (args, side), stream.cu_stream()) }?;
        }
        Ok([start, attend, record()?])
    }

    /// Copies the span of a tensor to the device.
    fn upload<'a>(
        &'a self,
        stream: &'a CudaStream,
        operand: Operand,
        bytes: &[u8],
        spec: &TensorSpec,
    ) -> Result<Memory<'a>, Error> {
        let element = spec.dtype.bytes();
        let span = spec.span_elems(operand)?;
        let Some(bytes) = bytes.get(..span * element) else {
            return Err(Invalid::SpanBeyondBuffer { needed: span, len: bytes.len() / element }.into());
        };
        Ok(Memory::upload(self, stream, bytes)?)
    }
}
