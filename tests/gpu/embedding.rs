//! What engines do with a launch: capture it into a graph, and submit from many threads to many streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conformance_kernels::Buffers;
use sage_attn::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use sage_attn::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, result};
use sage_attn::device::{DeviceMemory, DeviceTensor, Gpu, LaunchArgs};
use sage_attn::error::Operand;
use sage_attn::plan::{Plan, Slot};
use sage_attn::problem::TensorSpec;
use serde_json::json;

use crate::conformance::{Kernel, THREADS};
use crate::harness::{gpu, number, plan_of, record, run};
use crate::watchdog::beat;
use sage_tests::case::{Case, Limits};
use sage_tests::judge::POISON;

/// Random cases that launch something on this device.
fn cases(gpu: &Gpu, count: usize) -> Vec<Case> {
    let capability = gpu.capability();
    let fits = |case: &Case| {
        let loads = case.stem.arch.loads_on(capability.major, capability.minor);
        loads && case.problem.dims().seqlen_kv > 0 && !case.problem.is_empty()
    };
    (1..).map(|seed| Case::random(seed, Limits::GPU)).filter(fits).take(count).collect()
}

/// A plan with memory of its own on one stream.
pub struct Session {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    plan: Plan,
    inputs: [CudaSlice<u8>; 3],
    /// The output and, at the next multiple of 256 bytes, the log-sum-exp; whole words.
    results: CudaSlice<u8>,
    workspace: CudaSlice<u8>,
    args: LaunchArgs,
}

impl Session {
    pub fn new(gpu: &Arc<Gpu>, stream: &Arc<CudaStream>, case: &Case) -> Session {
        let plan = plan_of(gpu, case);
        let upload = |bytes: &[u8]| {
            let mut memory = gpu.alloc(stream, bytes.len()).expect("memory");
            stream.memcpy_htod(bytes, &mut memory).expect("upload");
            memory
        };
        let inputs = [&case.q, &case.k, &case.v].map(|tensor| upload(&tensor.bytes()));
        let spec = *case.problem.out();
        let out_bytes = (spec.span_elems(Operand::Out).expect("span") * spec.dtype.bytes()).next_multiple_of(256);
        let lse_bytes = if case.problem.return_lse() { case.problem.lse_elems() * 4 } else { 0 };
        let results = upload(&vec![POISON; out_bytes + lse_bytes]);
        let bytes = plan.workspace().total_bytes();
        let workspace = upload(&vec![POISON; bytes]);
        // Addresses are taken before any capture, which cudarc's own bookkeeping of uses would end.
        let address = |memory: &CudaSlice<u8>| memory.device_ptr(stream).0;
        let tensor = |memory: &CudaSlice<u8>, spec: &TensorSpec| DeviceTensor { ptr: address(memory), spec: *spec };
        let args = LaunchArgs {
            q: tensor(&inputs[0], &case.q.spec),
            k: tensor(&inputs[1], &case.k.spec),
            v: tensor(&inputs[2], &case.v.spec),
            out: tensor(&results, &spec),
            lse: (lse_bytes > 0).then(|| address(&results) + out_bytes as u64),
            workspace: DeviceMemory { ptr: address(&workspace), bytes },
        };
        stream.synchronize().expect("uploads");
        Session { gpu: gpu.clone(), stream: stream.clone(), plan, inputs, results, workspace, args }
    }

    /// The attention kernel, which comes last.
    pub fn symbol(&self) -> &str {
        &self.plan.entries().last().expect("there is something to do").symbol
    }

    pub fn launch(&self) {
        // SAFETY: the buffers are this session's own, made for this plan, and used on this stream only.
        unsafe { self.gpu.launch(&self.plan, &self.args, self.stream.cu_stream()) }.expect("a launch");
    }

    pub fn upload(&mut self, case: &Case) {
        for (memory, tensor) in self.inputs.iter_mut().zip([&case.q, &case.k, &case.v]) {
            self.stream.memcpy_htod(&tensor.bytes(), memory).expect("upload");
        }
    }

    pub fn poison(&mut self) {
        let bytes = self.results.len();
        let (ptr, _in_use) = self.results.device_ptr_mut(&self.stream);
        // SAFETY: the buffer is this session's own, and used on this stream only.
        unsafe { result::memset_d8_async(ptr, POISON, bytes, self.stream.cu_stream()) }.expect("a memset");
    }

    /// Contents of a buffer of the workspace.
    pub fn slot(&self, slot: Slot) -> Vec<u8> {
        let buffer = self.plan.workspace().get(slot).expect("the plan uses it");
        let range = buffer.offset_bytes..buffer.offset_bytes + buffer.bytes;
        let bytes = self.stream.clone_dtoh(&self.workspace.slice(range)).expect("download");
        beat();
        bytes
    }

    /// Every byte of the results.
    pub fn results(&self) -> Vec<u8> {
        let bytes = self.stream.clone_dtoh(&self.results).expect("download");
        beat();
        bytes
    }

    /// Launches again and again; the first launch, if any, whose results are not `expected`. They are compared where they
    /// lie, by the kernel `differences`.
    pub fn repeat(&mut self, differences: &Kernel, launches: usize, expected: &[u8]) -> Option<usize> {
        /// Threads that compare.
        const COUNTERS: usize = 128 * THREADS as usize;
        let image = self.stream.clone_htod(expected).expect("upload");
        let mut counts = self.stream.alloc_zeros::<u32>(launches * COUNTERS).expect("memory");
        let first = counts.device_ptr_mut(&self.stream).0;
        for launch in 0..launches {
            self.poison();
            self.launch();
            let buffers = Buffers {
                input: self.results.device_ptr(&self.stream).0,
                image: image.device_ptr(&self.stream).0,
                output: first + (launch * COUNTERS * 4) as u64,
                image_bytes: expected.len() as u32,
                threads: COUNTERS as u32,
            };
            // SAFETY: results and image have the same length, each launch has its own counters, and the download waits.
            unsafe { differences.launch(&self.stream, &buffers) };
        }
        let counts = self.stream.clone_dtoh(&counts).expect("download");
        beat();
        counts.chunks_exact(COUNTERS).position(|counts| counts.iter().any(|&count| count > 0))
    }
}

#[test]
fn a_captured_launch_replays_with_other_inputs_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    let mut stems = std::collections::BTreeSet::new();
    let rounds = number("SAGE_GPU_REPLAYS", 3);
    let (mut graphs, mut replays) = (0, 0);
    for mut case in cases(&gpu, 40) {
        let stream = gpu.context().new_stream().expect("stream");
        let mut session = Session::new(&gpu, &stream, &case);
        gpu.prepare(&session.plan).expect("kernels");
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("capture");
        session.launch();
        let status = stream.capture_status().expect("status");
        assert_eq!(status, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE, "{}", case.describe());
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("graph").expect("a graph");
        for round in 0..rounds {
            case.refill(1000 * case.seed + round);
            session.upload(&case);
            session.poison();
            session.launch();
            let direct = session.results();
            assert!(direct.iter().any(|&byte| byte != 0xff), "{}: nothing was written", case.describe());
            session.poison();
            graph.launch().expect("replay");
            assert!(session.results() == direct, "{}: replay {round} differs", case.describe());
            replays += 1;
        }
        graphs += 1;
        stems.insert(case.stem.name);
    }
    record(
        "gpu_graphs",
        &json!({ "device": gpu.name(), "graphs": graphs, "replays": replays, "kernels": stems, "bit_equal": true }),
    );
}

#[test]
fn threads_and_streams_do_not_disturb_each_other() {
    const THREADS: usize = 16;
    const STREAMS: usize = 8;
    let Some(gpu) = gpu() else { return };
    let seconds = number("SAGE_GPU_SECONDS", 5);
    let cases = cases(&gpu, 24);
    // The truth, one at a time on an otherwise idle device.
    let expected: Vec<Vec<u8>> = cases
        .iter()
        .map(|case| {
            run(&gpu, case); // also fences every buffer in
            let session = Session::new(&gpu, &gpu.context().new_stream().expect("stream"), case);
            session.launch();
            session.results()
        })
        .collect();
    let launches = AtomicU64::new(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (gpu, cases, expected, launches) = (&gpu, &cases, &expected, &launches);
            scope.spawn(move || {
                let mut sessions: Vec<(usize, Session)> = (0..STREAMS)
                    .map(|stream| {
                        let index = (thread * STREAMS + stream) * 7 % cases.len();
                        let stream = gpu.context().new_stream().expect("stream");
                        (index, Session::new(gpu, &stream, &cases[index]))
                    })
                    .collect();
                while Instant::now() < end {
                    for (_, session) in &mut sessions {
                        session.poison();
                    }
                    for (_, session) in &sessions {
                        session.launch();
                    }
                    for (index, session) in &sessions {
                        assert!(session.results() == expected[*index], "{} differs", cases[*index].describe());
                    }
                    launches.fetch_add(STREAMS as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let launches = launches.into_inner();
    assert!(launches > 0);
    record(
        "gpu_threads",
        &json!({
            "device": gpu.name(), "threads": THREADS, "streams_of_each": STREAMS, "seconds": seconds,
            "launches": launches, "bit_equal": true,
        }),
    );
}
