//! Shared memory with a past: before a kernel runs, another one fills the shared memory of every multiprocessor with NaN,
//! 0xFF or 0x80. Sanitizers do not see a read of shared memory that nobody wrote; a wrong result does.
//!
//! The kernel is one of the conformance tests'. It is taken from the folder `SAGE_CONFORMANCE_PTX`; without one shared
//! memory holds what earlier kernels left.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use conformance_kernels::Buffers;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, result, sys};
use sage_attn::device::Gpu;

const THREADS: u32 = 128;

/// The kernel's handle, as a number: handles of the shared context stay valid on all threads.
static KERNEL: OnceLock<Option<usize>> = OnceLock::new();

fn load(shared_bytes: u32) -> Option<usize> {
    let folder = std::env::var_os("SAGE_CONFORMANCE_PTX")?;
    let path = Path::new(&folder).join("sm_80.ptx");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => CString::new(text).expect("PTX has no zero byte"),
        Err(error) => {
            println!("SKIPPED pollution: {}: {error}", path.display());
            return None;
        }
    };
    // SAFETY: the text is a module of the conformance tests, which is never unloaded; the context is current.
    unsafe {
        let module = result::module::load_data(text.as_ptr().cast()).expect("the module loads");
        let function =
            result::module::get_function(module, CString::new("pollute").expect("a symbol")).expect("a kernel");
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        result::function::set_function_attribute(function, attribute, shared_bytes as i32).expect("shared memory");
        Some(function as usize)
    }
}

/// Fills the shared memory of every multiprocessor, before what `stream` runs next.
pub fn pollute(gpu: &Gpu, stream: &Arc<CudaStream>, seed: u64) {
    gpu.context().bind_to_thread().expect("the context");
    let capability = gpu.capability();
    let shared_bytes = capability.smem_opt_in as u32 / 16 * 16;
    let Some(function) = *KERNEL.get_or_init(|| load(shared_bytes)) else { return };
    let pattern = [0xffff_ffff, 0x8080_8080, f32::NAN.to_bits()][(seed % 3) as usize];
    // One CTA fits a multiprocessor at a time; four for each, so that none is passed over.
    let ctas = 4 * capability.sm_count;
    let threads = ctas * THREADS;
    let input = stream.clone_htod(&vec![pattern; threads as usize]).expect("upload");
    let mut output = stream.alloc_zeros::<u32>(threads as usize).expect("memory");
    let buffers = Buffers {
        input: input.device_ptr(stream).0,
        image: 0,
        output: output.device_ptr_mut(stream).0,
        image_bytes: shared_bytes,
        threads,
    };
    let mut arguments = [std::ptr::from_ref(&buffers).cast_mut().cast::<c_void>()];
    // SAFETY: the kernel takes this argument, whose buffers have a word a thread and live until the download below.
    unsafe {
        let function = function as sys::CUfunction;
        result::launch_kernel(
            function,
            (ctas, 1, 1),
            (THREADS, 1, 1),
            shared_bytes,
            stream.cu_stream(),
            &mut arguments,
        )
        .expect("a launch");
    }
    let words = stream.clone_dtoh(&output).expect("download");
    assert!(words.iter().all(|&word| word == pattern), "shared memory does not hold {pattern:#x}");
}
