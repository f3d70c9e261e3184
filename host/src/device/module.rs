//! A PTX module on a GPU, and its kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::CudaContext;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute, CUjit_option as JitOption, CUresult};
use sage_spec::symbol::Arch;

use super::embedded::{self, MODULES};
use super::gpu::make_current;
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

/// An embedded PTX module on a GPU. Its kernels do not refer to each other, so each is handed to the
/// driver by itself when it is first needed: translating all of them would take tens of seconds, and a
/// problem needs about eight.
pub(super) struct Module {
    arch: Arch,
    ptx: &'static str,
    context: Arc<CudaContext>,
    kernels: RwLock<HashMap<String, Kernel>>,
}

/// A kernel and the driver's module that holds it.
struct Kernel {
    _module: Loaded,
    function: Function,
}

/// A module of the driver, unloaded when dropped. Its context is current then, and none of its kernels runs.
struct Loaded(sys::CUmodule);

// SAFETY: a CUmodule is a handle that any thread may use while its context exists, and the `Module`
// that owns it keeps that existing.
unsafe impl Send for Loaded {}
// SAFETY: as above; the handle is never written.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: the module was loaded and is unloaded only here. An error has nobody to go to.
        let _ = unsafe { result::module::unload(self.0) };
    }
}

/// What precedes the first kernel of a module, and the kernel `symbol`; `None` if there is no such kernel.
fn one_kernel(ptx: &str, symbol: &str) -> Option<String> {
    const ENTRY: &str = "\n.visible .entry ";
    let header = &ptx[..ptx.find(ENTRY)? + 1];
    let begin = ptx.find(&format!("{ENTRY}{symbol}("))? + 1;
    let end = ptx[begin..].find(ENTRY).map_or(ptx.len(), |end| begin + end + 1);
    Some(format!("{header}{}", &ptx[begin..end]))
}

impl Module {
    /// The embedded module for `arch`, after comparing it with its recorded hash. Nothing is loaded yet.
    pub(super) fn open(gpu: &Gpu, arch: Arch) -> Result<Module, DeviceError> {
        Ok(Module {
            arch,
            ptx: embedded::find(MODULES, arch.target())?.ptx,
            context: gpu.context().clone(),
            kernels: RwLock::default(),
        })
    }

    /// Has the driver translate the PTX of one kernel. The context of `gpu` must be current.
    fn load(&self, gpu: &Gpu, ptx: String) -> Result<sys::CUmodule, DeviceError> {
        let rejected = |name, log| {
            let driver = driver::driver_version().unwrap_or_else(|_| "unknown".into());
            DeviceError::ModuleRejected { target: self.arch.target(), driver, name, log }
        };
        let image = CString::new(ptx).map_err(|_| rejected("the text contains a zero byte".into(), String::new()))?;
        let mut log = vec![0u8; 4096];
        let mut options = [JitOption::CU_JIT_ERROR_LOG_BUFFER, JitOption::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size option is a number passed in place of a pointer.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
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
            CUresult::CUDA_SUCCESS => Ok(handle),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => gpu.check("loading a kernel", Err(DriverError(loaded))),
            // Not of this call: an earlier kernel's fault shows here first.
            _ if driver::is_sticky(&DriverError(loaded)) => gpu.check("loading a kernel", Err(DriverError(loaded))),
            _ => {
                log.truncate(log.iter().position(|&byte| byte == 0).unwrap_or(log.len()));
                let log = String::from_utf8_lossy(&log).trim().replace('\n', "; ");
                Err(rejected(driver::name(&DriverError(loaded)), log))
            }
        }
    }

    /// The kernel of `entry`, loaded on first use and allowed the shared memory it needs. The context of
    /// `gpu` must be current.
    pub(super) fn function(&self, gpu: &Gpu, entry: &Entry) -> Result<Function, DeviceError> {
        let known = self
            .kernels
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&entry.symbol)
            .map(|kernel| kernel.function);
        match known {
            Some(function) => Ok(function),
            None => self.find(gpu, entry),
        }
    }

    fn find(&self, gpu: &Gpu, entry: &Entry) -> Result<Function, DeviceError> {
        let missing = || DeviceError::SymbolMissing { target: self.arch.target(), symbol: entry.symbol.clone() };
        let ptx = one_kernel(self.ptx, &entry.symbol).ok_or_else(missing)?;
        let name = CString::new(entry.symbol.as_str()).map_err(|_| missing())?;
        // Held while loading, so that two threads do not load the same kernel.
        let mut kernels = self.kernels.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&entry.symbol) {
            return Ok(kernel.function);
        }
        // Unloaded again if the rest fails.
        let module = Loaded(self.load(gpu, ptx)?);
        // SAFETY: the module is loaded.
        let function = match unsafe { result::module::get_function(module.0, name) } {
            Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => return Err(missing()),
            result => gpu.check("finding a kernel", result)?,
        };
        let bytes = entry.cta.smem_bytes;
        if bytes > SMEM_WITHOUT_OPT_IN_BYTES {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `function` is a kernel of a loaded module.
            let allowed = unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) };
            if let Err(error) = allowed
                && !driver::is_sticky(&error)
            {
                let (symbol, name) = (entry.symbol.clone(), driver::name(&error));
                return Err(DeviceError::SharedMemoryRefused { symbol, bytes, name });
            }
            gpu.check("allowing a kernel its shared memory", allowed)?;
        }
        let function = Function(function);
        kernels.insert(entry.symbol.clone(), Kernel { _module: module, function });
        Ok(function)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        make_current(&self.context);
        // The Gpu that owns this has waited for its kernels.
        self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_stands_alone() {
        for module in MODULES {
            let symbols = module.ptx.split(".visible .entry ").skip(1);
            for symbol in symbols.map(|text| text.split('(').next().unwrap_or_default()) {
                let text = one_kernel(module.ptx, symbol).expect("a kernel of the module");
                assert!(text.starts_with(".version"));
                assert_eq!(text.matches(".visible .entry ").count(), 1);
                assert!(text.contains(&format!(".visible .entry {symbol}(")));
            }
            assert!(one_kernel(module.ptx, "no_such_kernel").is_none());
        }
    }
}
