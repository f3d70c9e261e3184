//! Kernels of the conformance tests that serve the tests here: they fill shared memory, compare results, convert
//! numbers. They are taken from the folder `SAGE_CONFORMANCE_PTX`.

use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::Arc;

use conformance_kernels::Buffers;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, result, sys};
use sage_attn::device::Gpu;
use sage_spec::symbol::Arch;

/// Threads of a CTA, in every launch.
pub const THREADS: u32 = 128;

/// A kernel's handle, as a number: handles of the shared context stay valid on all threads.
pub struct Kernel {
    function: usize,
    shared_bytes: u32,
}

impl Kernel {
    /// The kernel `symbol` of the module `arch`, with as much shared memory; `None`, and a line that says so, if there
    /// is no such folder.
    pub fn load(gpu: &Gpu, arch: Arch, symbol: &str, shared_bytes: u32) -> Option<Kernel> {
        let folder = std::env::var_os("SAGE_CONFORMANCE_PTX")?;
        let path = Path::new(&folder).join(format!("{}.ptx", arch.target()));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => CString::new(text).expect("PTX has no zero byte"),
            Err(error) => {
                println!("SKIPPED {symbol}: {}: {error}", path.display());
                return None;
            }
        };
        gpu.context().bind_to_thread().expect("the context");
        // SAFETY: the text is a module of the conformance tests, which is never unloaded; the context is current.
        unsafe {
            let module = result::module::load_data(text.as_ptr().cast()).expect("the module loads");
            let name = CString::new(symbol).expect("a symbol");
            let function = result::module::get_function(module, name).expect("a kernel");
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function, attribute, shared_bytes as i32).expect("shared memory");
            Some(Kernel { function: function as usize, shared_bytes })
        }
    }

    /// Launches it with `buffers.threads` threads, a multiple of [`THREADS`].
    ///
    /// # Safety
    ///
    /// The buffers are what the kernel asks for, and live until the launch has ended.
    pub unsafe fn launch(&self, stream: &Arc<CudaStream>, buffers: &Buffers) {
        let mut arguments = [std::ptr::from_ref(buffers).cast_mut().cast::<c_void>()];
        let (grid, block) = ((buffers.threads / THREADS, 1, 1), (THREADS, 1, 1));
        let function = self.function as sys::CUfunction;
        // SAFETY: all kernels take this one argument; forwarded contract.
        unsafe { result::launch_kernel(function, grid, block, self.shared_bytes, stream.cu_stream(), &mut arguments) }
            .expect("a launch");
    }

    /// The words that it writes for these of its input, `outputs` for each of `threads` threads.
    pub fn map(&self, stream: &Arc<CudaStream>, input: &[u32], threads: u32, outputs: usize) -> Vec<u32> {
        let input = stream.clone_htod(input).expect("upload");
        let mut output = stream.alloc_zeros::<u32>(threads as usize * outputs).expect("memory");
        let buffers = Buffers {
            input: input.device_ptr(stream).0,
            output: output.device_ptr_mut(stream).0,
            image_bytes: self.shared_bytes,
            threads,
            ..Buffers::default()
        };
        // SAFETY: a thread reads its share of the input and writes its words; the download waits for it.
        unsafe { self.launch(stream, &buffers) };
        stream.clone_dtoh(&output).expect("download")
    }
}
