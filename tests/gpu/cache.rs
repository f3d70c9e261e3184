//! Filling the cache, and attention over it, on the GPU: random lives of caches, and a captured step of a growing one.

use std::sync::Arc;

use sage_attn::cudarc::driver::CudaStream;
use sage_attn::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use sage_attn::device::{AppendArgs, DecodeArgs, DeviceTensor, Gpu};
use sage_attn::plan::{Capability, DecodePlan, DecodeRequest, plan_decode};
use sage_tests::cache::{CacheCase, CacheFigures, Machine, attend, check, fill, judge};
use serde_json::json;

use crate::harness::{Buffer, gpu, record, seeds};

/// A GPU as a machine for caches; every buffer has red zones.
struct Device {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    buffers: Vec<(u64, String, Buffer)>,
    /// Whether attention goes through a captured graph.
    capture: bool,
}

impl Device {
    fn new(gpu: &Arc<Gpu>, capture: bool) -> Device {
        let stream = gpu.context().new_stream().expect("stream");
        Device { gpu: gpu.clone(), stream, buffers: Vec::new(), capture }
    }

    fn keep(&mut self, name: &str, buffer: Buffer) -> u64 {
        let address = buffer.address(&self.stream);
        self.buffers.push((address, name.into(), buffer));
        address
    }
}

impl Machine for Device {
    fn capability(&self) -> Capability {
        *self.gpu.capability()
    }

    fn upload(&mut self, name: &str, bytes: &[u8]) -> u64 {
        let buffer = Buffer::of(&self.gpu, &self.stream, bytes);
        self.keep(name, buffer)
    }

    fn alloc(&mut self, name: &str, bytes: usize) -> u64 {
        let buffer = Buffer::poisoned(&self.gpu, &self.stream, bytes);
        self.keep(name, buffer)
    }

    fn read(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        let (_, name, buffer) = self.buffers.iter().find(|(begin, ..)| *begin == address).expect("a buffer of ours");
        let all = buffer.read(&self.stream, name);
        all[..bytes].to_vec()
    }

    fn append(&mut self, args: &AppendArgs) {
        // SAFETY: every buffer is kept until the machine is dropped, and is used on its stream only.
        unsafe { self.gpu.cache_append(args, self.stream.cu_stream()) }.expect("an append");
    }

    fn mean(&mut self, k: &DeviceTensor, mean: u64) {
        // SAFETY: as above.
        unsafe { self.gpu.cache_mean(k, mean, self.stream.cu_stream()) }.expect("a mean");
    }

    fn decode(&mut self, plan: &DecodePlan, args: &DecodeArgs) {
        // SAFETY: as above; the counters were uploaded as zeros.
        let launch = || unsafe { self.gpu.decode(plan, args, self.stream.cu_stream()) }.expect("a launch");
        launch();
        if self.capture {
            self.stream.synchronize().expect("the first launch");
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            self.stream.begin_capture(mode).expect("capture");
            launch();
            let graph = self.stream.end_capture(CUgraphInstantiate_flags(0)).expect("graph").expect("a graph");
            graph.launch().expect("replay");
            self.stream.synchronize().expect("the replay");
        }
    }
}

fn largest(a: CacheFigures, b: CacheFigures) -> CacheFigures {
    CacheFigures {
        against_reference: a.against_reference.max(b.against_reference),
        against_exact: a.against_exact.max(b.against_exact),
    }
}

#[test]
fn caches_hold_and_give_what_the_reference_does() {
    let Some(gpu) = gpu() else { return };
    let (mut cases, mut worst) = (0, CacheFigures::default());
    for seed in seeds() {
        let case = CacheCase::random(seed, [4, 20][seed as usize % 2]);
        worst = largest(worst, check(&case, &mut Device::new(&gpu, seed % 8 == 0)));
        cases += 1;
    }
    let CacheFigures { against_reference, against_exact } = worst;
    let figures =
        json!({ "device": gpu.name(), "cases": cases, "worst": against_reference, "rel_l1_exact": against_exact });
    record("gpu_cache", &figures);
}

/// Same plan, same bits; other splits, same result within rounding.
#[test]
fn splits_do_not_matter_and_repeats_are_equal() {
    let Some(gpu) = gpu() else { return };
    let mut plans = 0;
    for seed in 1..20 {
        let case = CacheCase::random(seed, 20);
        let mut device = Device::new(&gpu, false);
        let filled = fill(&case, &mut device);
        for split_pages in [1, 2, 3, 7, 20] {
            let request = DecodeRequest { split_pages: Some(split_pages), ..case.request };
            let plan = plan_decode(&request, gpu.capability()).expect("a plan");
            let (out, lse) = attend(&case, &filled, &plan, &mut device);
            judge(&case, &filled, &plan, &out, &lse);
            for _ in 0..3 {
                let (again, _) = attend(&case, &filled, &plan, &mut device);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&again), bits(&out), "{}", case.describe());
            }
            plans += 1;
        }
    }
    record("gpu_cache_splits", &json!({ "device": gpu.name(), "plans": plans }));
}
