//! Running plans with every buffer in the open.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, LaunchArgs, SideArgs};
use sage_attn::error::{DeviceError, Operand};
use sage_attn::plan::{Plan, Slot, plan};
use sage_attn::problem::TensorSpec;
use sage_tests::case::{Case, Tensor};
use sage_tests::judge::{Outcome, POISON, f32s, gather_between, poison};
use sage_tests::side::Side;

use crate::pollution;
use crate::watchdog::{Watch, Watched, beat};

/// Poisoned bytes on either side of each buffer.
const RED_ZONE: usize = 1024;

/// The GPU of this machine, for a test that is watched while it has it, or a line that says why it is skipped.
pub fn gpu() -> Option<Watched> {
    match Gpu::shared(0) {
        Ok(gpu) => Some(Watched { gpu, _watch: Watch::new() }),
        Err(error @ (DeviceError::NoDriver | DeviceError::NoDevice { .. })) => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The number in the environment variable `name`.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// Number of random problems and the first seed.
pub fn seeds() -> std::ops::Range<u64> {
    let first = number("SAGE_GPU_SEED", 1);
    first..first + number("SAGE_GPU_CASES", 200)
}

/// Leaves `figures` in the folder `SAGE_RESULTS`, if there is one.
pub fn record(name: &str, figures: &serde_json::Value) {
    println!("{name}: {figures}");
    if let Ok(folder) = std::env::var("SAGE_RESULTS") {
        let path = std::path::Path::new(&folder).join(format!("{name}.json"));
        std::fs::write(&path, format!("{figures:#}\n")).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// A buffer between red zones.
pub struct Buffer {
    memory: CudaSlice<u8>,
    len: usize,
    poison: u8,
}

impl Buffer {
    pub fn poisoned(gpu: &Gpu, stream: &Arc<CudaStream>, len: usize) -> Buffer {
        Buffer::of(gpu, stream, &vec![POISON; len])
    }

    pub fn of(gpu: &Gpu, stream: &Arc<CudaStream>, bytes: &[u8]) -> Buffer {
        Buffer::between(gpu, stream, bytes, POISON)
    }

    /// `bytes` between red zones of `poison`.
    fn between(gpu: &Gpu, stream: &Arc<CudaStream>, bytes: &[u8], poison: u8) -> Buffer {
        let mut padded = vec![poison; bytes.len() + 2 * RED_ZONE];
        padded[RED_ZONE..RED_ZONE + bytes.len()].copy_from_slice(bytes);
        let mut memory = gpu.alloc(stream, padded.len()).expect("memory");
        stream.memcpy_htod(&padded, &mut memory).expect("upload");
        Buffer { memory, len: bytes.len(), poison }
    }

    pub fn address(&self, stream: &Arc<CudaStream>) -> u64 {
        self.memory.device_ptr(stream).0 + RED_ZONE as u64
    }

    /// The contents; fails if a red zone was written.
    pub fn read(&self, stream: &Arc<CudaStream>, name: &str) -> Vec<u8> {
        let bytes = stream.clone_dtoh(&self.memory).expect("download");
        beat();
        let (before, rest) = bytes.split_at(RED_ZONE);
        let (inside, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|&byte| byte == self.poison), "{name}: written outside its buffer");
        inside.to_vec()
    }
}

/// The plan of `case`.
pub fn plan_of(gpu: &Gpu, case: &Case) -> Plan {
    plan(&case.problem, gpu.capability()).unwrap_or_else(|error| panic!("{}: {error}", case.describe()))
}

/// Runs `case` on `gpu` with every buffer poisoned and fenced in.
pub fn run(gpu: &Arc<Gpu>, case: &Case) -> Outcome {
    run_with(gpu, case, None)
}

/// [`run`] with modifiers.
pub fn run_with(gpu: &Arc<Gpu>, case: &Case, side: Option<&Side>) -> Outcome {
    let plan = plan_of(gpu, case);
    let stream = gpu.context().new_stream().expect("stream");
    let poison = poison(case.seed);
    let upload = |tensor: &Tensor| Buffer::between(gpu, &stream, &tensor.bytes(), poison);
    let poisoned = |len: usize| Buffer::between(gpu, &stream, &vec![poison; len], poison);
    let (q, k, v) = (upload(&case.q), upload(&case.k), upload(&case.v));
    let inputs = side.map_or([None, None, None, None], Side::bytes);
    let inputs = inputs.map(|bytes| bytes.map(|bytes| (Buffer::between(gpu, &stream, &bytes, poison), bytes)));
    let [alibi, bias, mask, sinks] =
        inputs.each_ref().map(|input| input.as_ref().map(|(buffer, _)| buffer.address(&stream)));
    let inputs_at = SideArgs { alibi, bias, mask, sinks };
    let out_spec = *case.problem.out();
    let out_bytes = out_spec.span_elems(Operand::Out).expect("span") * out_spec.dtype.bytes();
    let out = poisoned(out_bytes);
    let lse = case.problem.return_lse().then(|| poisoned(case.problem.lse_elems() * 4));
    let workspace = poisoned(plan.workspace().total_bytes());
    let tensor = |buffer: &Buffer, spec: &TensorSpec| DeviceTensor { ptr: buffer.address(&stream), spec: *spec };
    let args = LaunchArgs {
        q: tensor(&q, &case.q.spec),
        k: tensor(&k, &case.k.spec),
        v: tensor(&v, &case.v.spec),
        out: tensor(&out, &out_spec),
        lse: lse.as_ref().map(|lse| lse.address(&stream)),
        workspace: DeviceMemory { ptr: workspace.address(&stream), bytes: plan.workspace().total_bytes() },
    };
    pollution::pollute(gpu, &stream, case.seed);
    // SAFETY: every buffer was allocated above for this problem, is used on this stream only, and lives
    // until the downloads below have synchronised it.
    unsafe { gpu.launch_with(&plan, &args, &inputs_at, stream.cu_stream()) }
        .unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
    let scores = scores(gpu, &stream, case, &plan, args.workspace.ptr);
    for (buffer, tensor, name) in [(&q, &case.q, "q"), (&k, &case.k, "k"), (&v, &case.v, "v")] {
        assert!(buffer.read(&stream, name) == tensor.bytes(), "{name} was written");
    }
    for (buffer, bytes) in inputs.iter().flatten() {
        assert!(buffer.read(&stream, "side input") == *bytes, "a side input was written");
    }
    Outcome {
        out: gather_between(&out_spec, &out.read(&stream, "out"), "out", poison),
        lse: lse.map(|lse| f32s(&lse.read(&stream, "lse"))),
        workspace: workspace.read(&stream, "workspace"),
        plan,
        scores,
    }
}

/// Launches `case` on buffers of exactly the bytes that are needed, of which only inputs have values.
pub fn run_bare(gpu: &Arc<Gpu>, case: &Case, side: Option<&Side>) {
    use cudarc::driver::result;

    let plan = plan_of(gpu, case);
    let stream = gpu.context().new_stream().expect("stream");
    gpu.context().bind_to_thread().expect("the context");
    let mut allocations = Vec::new();
    let mut alloc = |bytes: usize| {
        // SAFETY: freed below. From the driver itself: a pool would round up, and hand out what was used before.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.expect("memory");
        allocations.push(address);
        address
    };
    let mut upload = |bytes: &[u8]| {
        let address = alloc(bytes.len());
        // SAFETY: the allocation has as many bytes.
        unsafe { result::memcpy_htod_sync(address, bytes) }.expect("upload");
        address
    };
    let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| DeviceTensor { ptr: upload(&x.bytes()), spec: x.spec });
    let [alibi, bias, mask, sinks] =
        side.map_or([None, None, None, None], Side::bytes).map(|bytes| bytes.map(|bytes| upload(&bytes)));
    let spec = *case.problem.out();
    let out = DeviceTensor { ptr: alloc(spec.span_elems(Operand::Out).expect("span") * spec.dtype.bytes()), spec };
    let lse = case.problem.return_lse().then(|| alloc(case.problem.lse_elems() * 4));
    let bytes = plan.workspace().total_bytes();
    let workspace = DeviceMemory { ptr: alloc(bytes), bytes };
    let args = LaunchArgs { q, k, v, out, lse, workspace };
    // Uploads were on the default stream, which the launch's does not wait for.
    gpu.context().synchronize().expect("uploads");
    // SAFETY: every buffer was allocated above for this problem and lives until the stream has run the launch.
    unsafe {
        gpu.launch_with(&plan, &args, &SideArgs { alibi, bias, mask, sinks }, stream.cu_stream())
            .unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
        result::stream::synchronize(stream.cu_stream()).unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
        allocations.into_iter().for_each(|address| result::free_sync(address).expect("free"));
    }
    beat();
}

/// Raw scores of the quantized operands that the launch left in the workspace.
fn scores(gpu: &Arc<Gpu>, stream: &Arc<CudaStream>, case: &Case, plan: &Plan, workspace: u64) -> Option<Vec<i32>> {
    use sage_attn::plan::{Entry, Kernel};
    use sage_spec::launch;
    use sage_spec::params::ScoresParams;

    let dims = case.problem.dims();
    let q_codes = plan.workspace().address(workspace, Slot::QCodes);
    // The Hopper kernels and those of wide heads have no such twin: what they do with scores shows in the output, to the last code.
    let is_hopper = case.stem.arch == sage_spec::symbol::Arch::Sm90a;
    if plan.entries().is_empty() || q_codes == 0 || is_hopper || dims.is_wide() {
        return None;
    }
    let (depth, rows, keys) = (dims.head_dim_padded(), dims.seqlen_q_padded(), dims.seqlen_kv_padded());
    let scores = Buffer::poisoned(gpu, stream, dims.batch * dims.num_heads_q * rows * keys * 4);
    let params = ScoresParams {
        q_codes,
        k_codes: plan.workspace().address(workspace, Slot::KCodes),
        scores: scores.address(stream),
        num_heads_q: dims.num_heads_q as u32,
        num_heads_kv: dims.num_heads_kv as u32,
        seqlen_q: dims.seqlen_q as u32,
        seqlen_kv: dims.seqlen_kv as u32,
    };
    let entry = Entry {
        kernel: Kernel::Attention,
        symbol: format!("{}_scores_d{depth}", case.stem.name),
        cta: launch::attention(depth, case.stem.qk, case.stem.pv),
    };
    let grid = [launch::scores_grid(dims) as u32, 1];
    // SAFETY: as in `run`; `scores` holds every padded score.
    unsafe { gpu.launch_kernel(case.stem.arch, &entry, grid, &params, stream.cu_stream()) }.expect("scores");
    let bytes = scores.read(stream, "scores");
    Some(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
