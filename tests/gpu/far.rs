//! Tensors whose entries lie up to and beyond 2³¹ and 2³² elements apart, in real memory: the same bits as without gaps.
//! A log-sum-exp has no strides; one of 2³¹ elements would need 137 GB for the codes of its queries alone.

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, LaunchArgs, SideArgs};
use sage_attn::plan::plan;
use sage_attn::problem::{BiasSpec, DType, Modifiers, PairSpec, Problem, Request, TensorSpec};
use sage_spec::Dims;
use sage_spec::symbol::{Arch, STEMS, Stem};
use sage_tests::case::Case;
use sage_tests::generate::Random;
use sage_tests::judge::POISON;
use sage_tests::setup::Setup;
use serde_json::json;

use crate::harness::{Buffer, gpu, record};
use crate::watchdog::beat;

/// Two tiles of queries and three of keys.
const DIMS: Dims =
    Dims { batch: 3, num_heads_q: 3, num_heads_kv: 3, seqlen_q: 130, seqlen_kv: 130, head_dim: 64, head_dim_v: 64 };

/// What may be far apart.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operand {
    Q,
    K,
    V,
    Out,
    Bias,
    Mask,
}

/// Which operand is stretched, and along which of `[batch, head, token]`.
type Stretch = (Operand, usize);

/// `[batch, head, token, feature]` strides of a tensor without gaps.
fn packed([_, heads, tokens, width]: [usize; 4]) -> [i64; 4] {
    [heads * tokens * width, tokens * width, width, 1].map(|stride| stride as i64)
}

/// The same, but the last entry along `axis` lies beyond 2³² elements, and one halfway beyond 2³¹. Strides are
/// multiples of eight, or not.
fn stretched(shape: [usize; 4], axis: usize, aligned: bool) -> [i64; 4] {
    let mut strides = packed(shape);
    let apart = (1u64 << 32).div_ceil(shape[axis] as u64 - 1).next_multiple_of(8) as i64;
    strides[axis] = apart + if aligned { 8 } else { 31 };
    strides
}

/// Byte offsets of the rows of a tensor, in the order of one without gaps.
fn rows(shape: [usize; 4], strides: [i64; 4], size: usize) -> impl Iterator<Item = u64> {
    let [batch, heads, tokens, _] = shape;
    (0..batch * heads * tokens).map(move |row| {
        let at = [row / (heads * tokens), row / tokens % heads, row % tokens];
        let elements: i64 = at.iter().zip(strides).map(|(&at, stride)| at as i64 * stride).sum();
        elements as u64 * size as u64
    })
}

/// Where the operands of a launch lie: one in a large piece of memory, the others each in their own.
struct Memory<'a> {
    gpu: &'a Gpu,
    stream: Arc<CudaStream>,
    far: u64,
    far_bytes: usize,
    near: Vec<Buffer>,
}

impl<'a> Memory<'a> {
    /// `None`, and a line that says so, if the device has too little of it.
    fn new(gpu: &'a Gpu, size: usize) -> Option<Memory<'a>> {
        let far_bytes = ((1 << 32) + (1 << 27)) * size;
        if gpu.total_bytes() < 2 * far_bytes {
            println!("SKIPPED: {far_bytes} bytes are more than half of this GPU's memory");
            return None;
        }
        let stream = gpu.context().new_stream().expect("stream");
        gpu.context().bind_to_thread().expect("the context");
        // SAFETY: freed by `drop`.
        let far = unsafe { result::malloc_sync(far_bytes) }.expect("memory");
        Some(Memory { gpu, stream, far, far_bytes, near: Vec::new() })
    }

    /// NaN everywhere in the large piece.
    fn poison(&mut self) {
        self.near.clear();
        // SAFETY: the memory is as large.
        unsafe { result::memset_d8_sync(self.far, POISON, self.far_bytes) }.expect("a memset");
    }

    /// Puts a tensor without gaps somewhere; its address and strides.
    fn place(&mut self, bytes: &[u8], shape: [usize; 4], size: usize, strides: Option<[i64; 4]>) -> (u64, [i64; 4]) {
        let Some(strides) = strides else {
            let buffer = Buffer::of(self.gpu, &self.stream, bytes);
            let address = buffer.address(&self.stream);
            self.near.push(buffer);
            return (address, packed(shape));
        };
        for (row, bytes) in rows(shape, strides, size).zip(bytes.chunks_exact(shape[3] * size)) {
            assert!(row as usize + bytes.len() <= self.far_bytes);
            // SAFETY: the row lies in the large piece.
            unsafe { result::memcpy_htod_sync(self.far + row, bytes) }.expect("upload");
        }
        (self.far, strides)
    }

    /// Reads a tensor, without gaps.
    fn fetch(&self, address: u64, shape: [usize; 4], size: usize, strides: [i64; 4]) -> Vec<u8> {
        let mut bytes = vec![0u8; shape.iter().product::<usize>() * size];
        for (row, bytes) in rows(shape, strides, size).zip(bytes.chunks_exact_mut(shape[3] * size)) {
            // SAFETY: the row lies in memory that `place` has put it in.
            unsafe { result::memcpy_dtoh_sync(bytes, address + row) }.expect("download");
        }
        beat();
        bytes
    }

    /// Output and log-sum-exp of `case`, whose modifiers have these data.
    fn results(&mut self, case: &Case, bias: &[u8], mask: &[u8], stretch: Option<Stretch>, aligned: bool) -> Vec<u8> {
        self.poison();
        let strides =
            |operand, shape| stretch.filter(|(of, _)| *of == operand).map(|(_, axis)| stretched(shape, axis, aligned));
        let tensor = |memory: &mut Memory<'_>, operand, bytes: &[u8], spec: &TensorSpec| {
            let (ptr, strides) = memory.place(bytes, spec.shape, spec.dtype.bytes(), strides(operand, spec.shape));
            DeviceTensor { ptr, spec: TensorSpec { strides, ..*spec } }
        };
        let q = tensor(self, Operand::Q, &case.q.bytes(), &case.q.spec);
        let k = tensor(self, Operand::K, &case.k.bytes(), &case.k.spec);
        let v = tensor(self, Operand::V, &case.v.bytes(), &case.v.spec);
        let spec = case.problem.out();
        let out_bytes = spec.shape.iter().product::<usize>() * spec.dtype.bytes();
        let out = tensor(self, Operand::Out, &vec![POISON; out_bytes], spec);
        let pairs = [DIMS.batch, DIMS.num_heads_q, DIMS.seqlen_q, DIMS.seqlen_kv];
        let mut modifiers = *case.problem.modifiers();
        let mut side = SideArgs::default();
        if let Some(of) = &mut modifiers.bias {
            let (ptr, to) = self.place(bias, pairs, of.dtype.bytes(), strides(Operand::Bias, pairs));
            (side.bias, of.pairs.strides) = (Some(ptr), to);
        }
        if let Some(of) = &mut modifiers.mask {
            let (ptr, to) = self.place(mask, pairs, 1, strides(Operand::Mask, pairs));
            (side.mask, of.strides) = (Some(ptr), to);
        }
        let request = Request { modifiers, ..case.problem.request().clone() };
        let problem = Problem::new(request).expect("valid strides");
        let plan = plan(&problem, self.gpu.capability()).expect("a plan");
        let lse = Buffer::poisoned(self.gpu, &self.stream, problem.lse_elems() * 4);
        let workspace = Buffer::poisoned(self.gpu, &self.stream, plan.workspace().total_bytes());
        let args = LaunchArgs {
            q,
            k,
            v,
            out,
            lse: Some(lse.address(&self.stream)),
            workspace: DeviceMemory { ptr: workspace.address(&self.stream), bytes: plan.workspace().total_bytes() },
        };
        // Copies and memsets were on the default stream, which nobody else waits for.
        self.gpu.context().synchronize().expect("uploads");
        // SAFETY: all rows lie in memory that was placed above and lives until the downloads below have waited.
        unsafe { self.gpu.launch_with(&plan, &args, &side, self.stream.cu_stream()) }
            .unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
        self.stream.synchronize().unwrap_or_else(|error| panic!("{}: {error}", case.describe()));
        let mut bytes = self.fetch(out.ptr, out.spec.shape, out.spec.dtype.bytes(), out.spec.strides);
        bytes.extend(lse.read(&self.stream, "lse"));
        bytes
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; every launch has been waited for.
        let freed = unsafe { result::free_sync(self.far) };
        assert!(freed.is_ok() || std::thread::panicking(), "{freed:?}");
    }
}

/// Every kernel with every one of `operands` stretched along every axis.
fn check(name: &str, dtype: DType, aligned: bool, operands: &[Operand]) {
    let Some(gpu) = gpu() else { return };
    let capability = *gpu.capability();
    let Some(mut memory) = Memory::new(&gpu, dtype.bytes()) else { return };
    let has_modifiers = operands.contains(&Operand::Bias);
    let runs = |stem: &Stem| {
        stem.arch.loads_on(capability.major, capability.minor) && !(has_modifiers && stem.arch == Arch::Sm90a)
    };
    let mut problems = 0;
    for stem in STEMS.into_iter().filter(runs) {
        let mut case = Setup { dtype, out_dtype: dtype, causal: true, ..Setup::new(stem, DIMS) }.noisy();
        let shape = [DIMS.batch, DIMS.num_heads_q, DIMS.seqlen_q, DIMS.seqlen_kv];
        let (mut bias, mut mask) = (Vec::new(), Vec::new());
        if has_modifiers {
            let pairs = PairSpec { shape, strides: packed(shape) };
            let modifiers =
                Modifiers { bias: Some(BiasSpec { dtype, pairs }), mask: Some(pairs), ..Modifiers::default() };
            let request = Request { modifiers, ..case.problem.request().clone() };
            case.problem = Problem::new(request).expect("valid modifiers");
            let mut random = Random(7);
            let pairs = shape.iter().product();
            bias = (0..pairs).flat_map(|_| half::f16::from_f32(random.normal()).to_le_bytes()).collect();
            mask = (0..pairs).map(|_| u8::from(random.unit() < 0.7)).collect();
        }
        let near = memory.results(&case, &bias, &mask, None, aligned);
        assert!(near.iter().any(|&byte| byte != POISON), "{}: nothing was written", case.describe());
        for &operand in operands {
            for axis in 0..3 {
                let far = memory.results(&case, &bias, &mask, Some((operand, axis)), aligned);
                assert!(far == near, "{}: {operand:?} stretched along axis {axis}", case.describe());
                problems += 1;
            }
        }
    }
    record(name, &json!({ "device": gpu.name(), "problems": problems, "different": 0 }));
}

#[test]
fn tensors_of_16_bits_along_every_axis() {
    check("gpu_far_16", DType::F16, true, &[Operand::Q, Operand::K, Operand::V, Operand::Out]);
}

#[test]
fn tensors_of_32_bits_along_every_axis() {
    check("gpu_far_32", DType::F32, false, &[Operand::Q, Operand::K, Operand::V, Operand::Out]);
}

#[test]
fn biases_and_masks_along_every_axis() {
    check("gpu_far_modifiers", DType::F16, true, &[Operand::Bias, Operand::Mask]);
}
