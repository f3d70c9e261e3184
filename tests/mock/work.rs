//! Things to do on a device, and what must be alive after them.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::f16;
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, LaunchArgs, MergeArgs, SideArgs, SliceArgs};
use sage_attn::error::Operand;
use sage_attn::plan::plan;
use sage_attn::problem::{Sequences, TensorSpec};
use sage_attn::{Attention, DType, Device, Error, Layout, MaskView, Precision, SideInputs, Smoothing, TensorView};

use crate::mock::{Live, Mock};

/// Queries, and keys, of every work: `[1, 2, ROWS, 64]`.
pub const ROWS: usize = 40;

/// Queries, keys or values.
pub fn tokens() -> Vec<f16> {
    (0..2 * ROWS * 64).map(|i| f16::from_f32((i % 13) as f32 / 13.0)).collect()
}

pub fn spec() -> TensorSpec {
    TensorSpec::new(Operand::Q, DType::F16, &[1, 2, ROWS, 64], Layout::Hnd).expect("a good shape")
}

/// What a [`Gpu`] keeps for the next call: its context, its kernels and its stream.
fn kept(live: Live) -> Live {
    Live { events: 0, allocations: 0, bytes: 0, ..live }
}

/// Fails if something is alive that only a call in progress has.
pub fn assert_nothing_in_progress(mock: &Mock, what: &str) {
    let live = mock.live();
    assert_eq!(live, kept(live), "{what}");
    assert_eq!(mock.violations(), "", "{what}");
}

/// Something to do on a device that nobody has used. It must leave nothing behind but what
/// [`Gpu::shared`] keeps.
pub type Work = fn(usize) -> Result<(), Error>;

/// Every way to use a device.
pub const ALL: [(&str, Work); 8] = [
    ("forward", forward),
    ("forward_int4", forward_int4),
    ("forward_general", forward_general),
    ("forward_packed", forward_packed),
    ("run_host", run_host),
    ("launch", launch),
    ("launch_slices", launch_slices),
    ("merge", merge),
];

/// Attention with every default, and the log-sum-exp.
pub fn forward(ordinal: usize) -> Result<(), Error> {
    forward_by(Attention::new().return_lse(true), ordinal, &SideInputs::new())
}

/// The steps that INT4 has besides.
fn forward_int4(ordinal: usize) -> Result<(), Error> {
    let smoothing = Smoothing { q: true, k: true, v: true };
    forward_by(Attention::new().precision(Precision::Int4).smoothing(smoothing), ordinal, &SideInputs::new())
}

/// The kernels with modifiers, and every side input that is memory.
fn forward_general(ordinal: usize) -> Result<(), Error> {
    let mask = [true; ROWS];
    let mask = MaskView::new(&mask, [1, 1, 1, ROWS])?;
    let side = SideInputs::new().mask(mask).alibi(&[0.5, 0.25]).sinks(&[0.0, 1.0]);
    forward_by(Attention::new().causal(true), ordinal, &side)
}

/// Packed sequences, one of which is empty.
fn forward_packed(ordinal: usize) -> Result<(), Error> {
    let sequences = Sequences::new(&[0, 10, 10, ROWS], &[0, 20, 20, ROWS])?;
    forward_by(Attention::new().return_lse(true), ordinal, &SideInputs::new().sequences(&sequences))
}

fn forward_by(attention: Attention, ordinal: usize, side: &SideInputs<'_>) -> Result<(), Error> {
    let tokens = tokens();
    let view = TensorView::new(&tokens, &[1, 2, ROWS, 64], Layout::Hnd)?;
    attention.device(Device::Cuda(ordinal)).forward_with(&view, &view, &view, side).map(drop)
}

/// A device of one's own, which is gone afterwards.
fn run_host(ordinal: usize) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal)?;
    let plan = plan(&Attention::new().problem(spec(), spec(), spec(), spec())?, gpu.capability())?;
    let bytes: Vec<u8> = tokens().iter().flat_map(|x| x.to_le_bytes()).collect();
    gpu.run_host(&plan, &bytes, &bytes, &bytes).map(drop)
}

/// Device memory and a stream of the caller, as another library has them.
struct Caller {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    tensors: Vec<CudaSlice<u8>>,
}

impl Caller {
    /// With `count` tensors, and a workspace of `workspace` bytes after them.
    fn new(gpu: Arc<Gpu>, count: usize, workspace: usize) -> Result<Caller, Error> {
        let stream = gpu.context().new_stream().map_err(driver_error)?;
        let bytes = spec().span_elems(Operand::Q)? * 2;
        let sizes = std::iter::repeat_n(bytes, count).chain([workspace]);
        let tensors = sizes.map(|bytes| gpu.alloc(&stream, bytes)).collect::<Result<_, _>>()?;
        Ok(Caller { gpu, stream, tensors })
    }

    fn address(&self, index: usize) -> u64 {
        self.tensors[index].device_ptr(&self.stream).0
    }

    fn tensor(&self, index: usize) -> DeviceTensor {
        DeviceTensor { ptr: self.address(index), spec: spec() }
    }
}

/// cudarc's error as ours, for the parts of a test that are the caller's.
fn driver_error(error: cudarc::driver::DriverError) -> Error {
    let (code, name) = (error.0 as u32, format!("{:?}", error.0));
    sage_attn::error::DeviceError::Driver { call: "the caller", code, name, message: String::new() }.into()
}

/// A launch on addresses.
fn launch(ordinal: usize) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal)?;
    let plan = plan(&Attention::new().problem(spec(), spec(), spec(), spec())?, gpu.capability())?;
    let bytes = plan.workspace().total_bytes();
    let caller = Caller::new(gpu, 4, bytes)?;
    let args = LaunchArgs {
        q: caller.tensor(0),
        k: caller.tensor(1),
        v: caller.tensor(2),
        out: caller.tensor(3),
        lse: None,
        workspace: DeviceMemory { ptr: caller.address(4), bytes },
    };
    // SAFETY: the memory is allocated, the stream is live, and kernels do not run here.
    unsafe { caller.gpu.launch_with(&plan, &args, &SideArgs::default(), caller.stream.cu_stream()) }?;
    // SAFETY: as above.
    unsafe { caller.gpu.launch_timed_steps(&plan, &args, &caller.stream) }.map(drop)
}

/// The safe launch, from a stream that the buffers were not made on.
fn launch_slices(ordinal: usize) -> Result<(), Error> {
    let gpu = Gpu::open(ordinal)?;
    let plan = plan(&Attention::new().problem(spec(), spec(), spec(), spec())?, gpu.capability())?;
    let stream = gpu.context().new_stream().map_err(driver_error)?;
    let other = gpu.context().new_stream().map_err(driver_error)?;
    let tokens = tokens();
    let upload = || stream.clone_htod(&as_bits(&tokens)).map_err(driver_error);
    let (q, k, v, mut out) = (upload()?, upload()?, upload()?, upload()?);
    let mut workspace = gpu.alloc(&stream, plan.workspace().total_bytes())?;
    // SAFETY: f16 and u16 have one size, and every pattern is one of either.
    let [q, k, v] = [&q, &k, &v].map(|x| unsafe { x.transmute::<f16>(x.len()) }.expect("of one size"));
    let len = out.len();
    // SAFETY: as above.
    let out = unsafe { out.transmute_mut::<f16>(len) }.expect("of one size");
    let args = SliceArgs { q, k, v, out, lse: None, workspace: workspace.as_view_mut() };
    gpu.launch_slices(&plan, args, &other)
}

/// cudarc's own `half` may be another version; bits are bits.
fn as_bits(tokens: &[f16]) -> Vec<u16> {
    tokens.iter().map(|x| x.to_bits()).collect()
}

/// Merging two parts.
fn merge(ordinal: usize) -> Result<(), Error> {
    let caller = Caller::new(Gpu::open(ordinal)?, 6, 256)?;
    let args = MergeArgs {
        o1: caller.tensor(0),
        lse1: caller.address(1),
        o2: caller.tensor(2),
        lse2: caller.address(3),
        out: caller.tensor(4),
        lse: Some(caller.address(5)),
    };
    // SAFETY: the memory is allocated, the stream is live, and kernels do not run here.
    unsafe { caller.gpu.merge(&args, caller.stream.cu_stream()) }
}
