//! Shared memory with a past: before a kernel runs, another one fills the shared memory of every multiprocessor with NaN,
//! 0xFF or 0x80. Sanitizers do not see a read of shared memory that nobody wrote; a wrong result does.
//!
//! Without that kernel, see [`Kernel`], shared memory holds what earlier ones left.

use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaStream;
use sage_attn::device::Gpu;
use sage_spec::symbol::Arch;

use crate::conformance::{Kernel, THREADS};

static KERNEL: OnceLock<Option<Kernel>> = OnceLock::new();

/// Fills the shared memory of every multiprocessor, before what `stream` runs next.
pub fn pollute(gpu: &Gpu, stream: &Arc<CudaStream>, seed: u64) {
    let capability = gpu.capability();
    let shared_bytes = capability.smem_opt_in as u32 / 16 * 16;
    let Some(kernel) = KERNEL.get_or_init(|| Kernel::load(gpu, Arch::Sm80, "pollute", shared_bytes)) else { return };
    let pattern = [0xffff_ffff, 0x8080_8080, f32::NAN.to_bits()][(seed % 3) as usize];
    // One CTA fits a multiprocessor at a time; four for each, so that none is passed over.
    let threads = 4 * capability.sm_count * THREADS;
    let words = kernel.map(stream, &vec![pattern; threads as usize], threads, 1);
    assert!(words.iter().all(|&word| word == pattern), "shared memory does not hold {pattern:#x}");
}
