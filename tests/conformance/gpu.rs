//! Cases on the GPU of this machine.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use conformance_kernels::Buffers;
use conformance_kernels::hopper::Mapped;
use cuda_builder::{CudaBuilder, toolchain};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut, result, sys};
use sage_attn::device::Gpu;
use sage_attn::error::DeviceError;
use sage_spec::symbol::Arch;

use crate::cases::{CONTROL_THREADS, Case, Control, Tiles};
use crate::host::SHARED_BYTES;

/// PTX by target.
pub type Modules = BTreeMap<&'static str, String>;

/// The PTX of the kernels: read, or built and written.
pub fn modules() -> Result<Modules, String> {
    let folder = std::env::var_os("SAGE_CONFORMANCE_PTX").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance"));
    let mut modules = Modules::new();
    for arch in Arch::ALL {
        let path = folder.join(format!("{}.ptx", arch.target()));
        // In the default folder nobody vouches for a file to be of today's kernels.
        if !path.exists() || std::env::var_os("SAGE_CONFORMANCE_PTX").is_none() {
            std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            let toolchain = toolchain::discover().map_err(|error| error.to_string())?;
            let target = arch.target().parse().map_err(|_| format!("the builder does not know {}", arch.target()))?;
            CudaBuilder::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/kernels"))
                .arch(target)
                .toolchain(toolchain)
                .target_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance-build"))
                .copy_to(&path)
                .build()
                .map_err(|error| error.to_string())?;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        modules.insert(arch.target(), text);
    }
    Ok(modules)
}

/// A GPU to run cases on.
pub struct Device {
    gpu: Arc<Gpu>,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

/// The GPU of this machine, if there is one.
pub fn open() -> Option<Device> {
    match Gpu::shared(0) {
        Ok(gpu) => {
            let context = gpu.context().clone();
            let stream = context.new_stream().expect("a stream");
            Some(Device { gpu, context, stream })
        }
        Err(DeviceError::NoDriver | DeviceError::NoDevice { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// The driver's tensor map of an image.
fn encode(image: u64, tiles: &Tiles) -> [u64; 16] {
    let [width, rows, planes] = tiles.extents.map(u64::from);
    let extents = [width, rows, planes];
    let strides = [width, width * rows];
    let box_extents = [tiles.box_extents[0], tiles.box_extents[1], 1];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: all arrays have the elements that the call reads, and outlive it.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            3,
            image as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            box_extents.as_ptr(),
            [1u32; 3].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            match tiles.box_extents[0] {
                64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
                _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            },
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded.result().expect("a tensor map");
    map.opaque
}

impl Device {
    /// The words that `case` writes; `None` if the GPU does not load its module.
    pub fn run(&self, modules: &Modules, case: &Case) -> Option<Vec<u32>> {
        let capability = self.gpu.capability();
        if !case.arch.loads_on(capability.major, capability.minor) {
            return None;
        }
        self.context.bind_to_thread().expect("the context");
        let stream = &self.stream;
        let input = stream.clone_htod(&case.input).expect("upload");
        let image = stream.clone_htod(if case.image.is_empty() { &[0][..] } else { &case.image[..] }).expect("upload");
        let mut output = stream.alloc_zeros::<u32>(case.threads as usize * case.outputs).expect("memory");
        let buffers = Buffers {
            input: input.device_ptr(stream).0,
            image: image.device_ptr(stream).0,
            output: output.device_ptr_mut(stream).0,
            image_bytes: case.image.len() as u32,
            threads: case.threads,
        };
        let symbol = case.symbol;
        let text = CString::new(modules[case.arch.target()].as_str()).expect("PTX has no zero byte");
        let mapped = case.tiles.map(|tiles| Mapped {
            map: encode(buffers.image, &tiles),
            buffers,
            origin: tiles.origin,
            box_bytes: tiles.box_extents[0] * tiles.box_extents[1],
        });
        let mut arguments = [match &mapped {
            Some(mapped) => std::ptr::from_ref(mapped).cast_mut().cast::<c_void>(),
            None => std::ptr::from_ref(&buffers).cast_mut().cast::<c_void>(),
        }];
        // SAFETY: the module holds the kernel, which takes this argument; buffers have the extents it says, and the
        // stream has finished before they are freed.
        unsafe {
            let module = result::module::load_data(text.as_ptr().cast()).expect("the module loads");
            let function = result::module::get_function(module, CString::new(symbol).expect("a symbol"));
            let function = function.unwrap_or_else(|error| panic!("{symbol}: {error}"));
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function, attribute, case.shared_bytes as i32)
                .unwrap_or_else(|error| panic!("{symbol}: {error}"));
            let grid = (case.threads / case.block, 1, 1);
            let stream = stream.cu_stream();
            result::launch_kernel(function, grid, (case.block, 1, 1), case.shared_bytes, stream, &mut arguments)
                .unwrap_or_else(|error| panic!("{symbol}: {error}"));
            result::stream::synchronize(stream).unwrap_or_else(|error| panic!("{symbol}: {error}"));
            result::module::unload(module).expect("unload");
        }
        Some(self.stream.clone_dtoh(&output).expect("download"))
    }

    /// Runs a kernel that has a mistake, on buffers of exactly the bytes that it may touch; what the driver says.
    pub fn run_control(&self, modules: &Modules, control: &Control) -> Result<(), String> {
        let symbol = control.name;
        self.context.bind_to_thread().expect("the context");
        let bytes = CONTROL_THREADS as usize * 4;
        let text = CString::new(modules[control.arch.target()].as_str()).expect("PTX has no zero byte");
        // SAFETY: not kept, which a tool is there to notice: the kernel may touch a word behind its buffers, and
        // reads memory without values. All of it belongs to this process, which does nothing else.
        unsafe {
            // From the driver and not from a pool, which rounds sizes up and hands out what was used before.
            let [input, image, output] = [(); 3].map(|()| result::malloc_sync(bytes).expect("memory"));
            for memory in [input, output] {
                result::memset_d8_sync(memory, 0, bytes).expect("a memset");
            }
            let buffers = Buffers { input, image, output, image_bytes: bytes as u32, threads: CONTROL_THREADS };
            let mut arguments = [std::ptr::from_ref(&buffers).cast_mut().cast::<c_void>()];
            let module = result::module::load_data(text.as_ptr().cast()).expect("the module loads");
            let function = result::module::get_function(module, CString::new(symbol).expect("a symbol"));
            let function = function.unwrap_or_else(|error| panic!("{symbol}: {error}"));
            let (grid, block, stream) = ((1, 1, 1), (CONTROL_THREADS, 1, 1), self.stream.cu_stream());
            result::launch_kernel(function, grid, block, SHARED_BYTES, stream, &mut arguments)
                .and_then(|()| result::stream::synchronize(stream))
                .map_err(|error| error.to_string())
        }
    }
}
