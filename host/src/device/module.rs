//! A PTX module on a GPU, and its kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUfunction_attribute as FunctionAttribute, CUjit_option as JitOption, CUresult,
};
use sage_spec::symbol::Arch;

use super::embedded::{self, MODULES};
use super::{Gpu, driver};
use crate::error::DeviceError;
use crate::plan::Entry;

/// Dynamic shared memory every kernel may use without asking (CUDA C++ Programming Guide, compute
/// capabilities table).
const SMEM_WITHOUT_OPT_IN_BYTES: usize = 48 << 10;

/// A kernel that can be launched.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: the driver API is thread-safe; a CUfunction is a handle that any thread may use while its
// module is loaded.
unsafe impl Send for Function {}
// SAFETY: as above; the handle is never written.
unsafe impl Sync for Function {}

/// A loaded module.
pub(super) struct Module {
    arch: Arch,
    handle: sys::CUmodule,
    context: Arc<CudaContext>,
    functions: RwLock<HashMap<String, Function>>,
}

// SAFETY: a CUmodule is a handle that any thread may use while its context exists, and `context`
// keeps it existing.
unsafe impl Send for Module {}
// SAFETY: as above; the handle is never written, and the map has its own lock.
unsafe impl Sync for Module {}

impl Module {
    /// Has the driver translate the embedded PTX for `arch`. The context of `gpu` must be current.
    pub(super) fn load(gpu: &Gpu, arch: Arch) -> Result<Module, DeviceError> {
        let target = arch.target();
        let module = embedded::find(MODULES, target)?;
        let rejected = |name, log| {
            let driver = driver::driver_version().unwrap_or_else(|_| "unknown".into());
            DeviceError::ModuleRejected {
                target,
                driver,
                name,
                log,
            }
        };
        let image = CString::new(module.ptx)
            .map_err(|_| rejected("the text contains a zero byte".into(), String::new()))?;
        let mut log = vec![0u8; 4096];
        let mut options = [
            JitOption::CU_JIT_ERROR_LOG_BUFFER,
            JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The size option is a number passed in place of a pointer.
        let mut values = [
            log.as_mut_ptr().cast::<c_void>(),
            std::ptr::without_provenance_mut(log.len()),
        ];
        let mut handle = std::ptr::null_mut();
        // SAFETY: `image` is text ending in zero; `options` and `values` are two options with the
        // values they ask for, a buffer and its length; `handle` is a valid place for the result; and
        // all of them outlive the call.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &mut handle,
                image.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match loaded {
            CUresult::CUDA_SUCCESS => Ok(Module {
                arch,
                handle,
                context: gpu.context().clone(),
                functions: RwLock::default(),
            }),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                gpu.check("loading the kernels", Err(DriverError(loaded)))
            }
            _ => {
                log.truncate(log.iter().position(|&byte| byte == 0).unwrap_or(log.len()));
                let log = String::from_utf8_lossy(&log).trim().replace('\n', "; ");
                Err(rejected(driver::name(&DriverError(loaded)), log))
            }
        }
    }

    /// The kernel of `entry`, looked up on first use and allowed the shared memory it needs. The
    /// context of `gpu` must be current.
    pub(super) fn function(&self, gpu: &Gpu, entry: &Entry) -> Result<Function, DeviceError> {
        let known = self
            .functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&entry.symbol)
            .copied();
        match known {
            Some(function) => Ok(function),
            None => self.find(gpu, entry),
        }
    }

    fn find(&self, gpu: &Gpu, entry: &Entry) -> Result<Function, DeviceError> {
        let missing = || DeviceError::SymbolMissing {
            target: self.arch.target(),
            symbol: entry.symbol.clone(),
        };
        let name = CString::new(entry.symbol.as_str()).map_err(|_| missing())?;
        // SAFETY: `self.handle` was returned by a successful load and is unloaded only by Drop.
        let function = match unsafe { result::module::get_function(self.handle, name) } {
            Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => return Err(missing()),
            result => gpu.check("finding a kernel", result)?,
        };
        let bytes = entry.cta.smem_bytes;
        if bytes > SMEM_WITHOUT_OPT_IN_BYTES {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `function` is a kernel of a loaded module.
            unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }
                .map_err(|error| DeviceError::SharedMemoryRefused {
                    symbol: entry.symbol.clone(),
                    bytes,
                    name: driver::name(&error),
                })?;
        }
        let function = Function(function);
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        functions.insert(entry.symbol.clone(), function);
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the module is loaded, and the Gpu that owns it has waited for its kernels. An
            // error has nobody to go to.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}
