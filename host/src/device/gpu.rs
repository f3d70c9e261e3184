//! One GPU: its context, its capability, its loaded kernels, and whether it still works.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use sage_spec::symbol::Arch;

use super::driver;
use super::module::Module;
use crate::error::DeviceError;
use crate::plan::{Capability, Plan};

/// A GPU with the kernels that have been loaded on it. All methods may be called from any thread.
///
/// ```no_run
/// use sage_attn::device::Gpu;
/// use sage_attn::error::Operand;
/// use sage_attn::problem::TensorSpec;
/// use sage_attn::{Attention, DType, Layout, plan};
///
/// let gpu = Gpu::shared(0)?;
/// println!("{}, compute capability {}.{}", gpu.name(), gpu.capability().major, gpu.capability().minor);
/// let spec = TensorSpec::new(Operand::Q, DType::BF16, &[1, 8, 4096, 128], Layout::Hnd)?;
/// let plan = plan::plan(&Attention::new().problem(spec, spec, spec, spec)?, gpu.capability())?;
/// gpu.prepare(&plan)?; // loads the kernels, which a graph capture could not
/// # Ok::<(), sage_attn::Error>(())
/// ```
pub struct Gpu {
    /// The context; dropped after the modules, which need it.
    context: Arc<CudaContext>,
    name: String,
    total_bytes: usize,
    capability: Capability,
    modules: Mutex<HashMap<Arch, Arc<Module>>>,
    stream: Mutex<Option<Arc<CudaStream>>>,
    fault: OnceLock<Arc<str>>,
}

impl Gpu {
    /// Opens the primary context of device `ordinal`.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoDriver`], [`DeviceError::DriverTooOld`], [`DeviceError::NoDevice`],
    /// [`DeviceError::DriverInit`] or [`DeviceError::Driver`].
    pub fn open(ordinal: usize) -> Result<Arc<Gpu>, DeviceError> {
        let count = driver::device_count()?;
        if ordinal >= count {
            return Err(DeviceError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(|error| driver::failed("opening the device", &error))?;
        Gpu::with_context(context)
    }

    /// Uses a context of the caller, who may share its buffers and streams.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Driver`] if the device cannot be queried.
    pub fn with_context(context: Arc<CudaContext>) -> Result<Arc<Gpu>, DeviceError> {
        let query = |attribute| -> Result<i32, DeviceError> {
            context.attribute(attribute).map_err(|error| driver::failed("cuDeviceGetAttribute", &error))
        };
        let unsigned = |attribute| Ok::<u32, DeviceError>(query(attribute)?.max(0) as u32);
        let capability = Capability {
            major: unsigned(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: unsigned(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            sm_count: unsigned(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            smem_opt_in: unsigned(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        };
        let name = context.name().map_err(|error| driver::failed("cuDeviceGetName", &error))?;
        let total_bytes = context.total_mem().map_err(|error| driver::failed("cuDeviceTotalMem", &error))?;
        Ok(Arc::new(Gpu {
            context,
            name,
            total_bytes,
            capability,
            modules: Mutex::default(),
            stream: Mutex::default(),
            fault: OnceLock::new(),
        }))
    }

    /// The [`Gpu`] of device `ordinal` that all callers in this process share, opened on first use in the
    /// device's primary context.
    ///
    /// # Errors
    ///
    /// As [`Gpu::open`].
    pub fn shared(ordinal: usize) -> Result<Arc<Gpu>, DeviceError> {
        static SHARED: Mutex<Option<HashMap<usize, Arc<Gpu>>>> = Mutex::new(None);
        let mut shared = lock(&SHARED);
        let gpus = shared.get_or_insert_default();
        if let Some(gpu) = gpus.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Gpu::open(ordinal)?;
        gpus.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    /// The [`Gpu`] that all callers with the same context share, made on first use and kept until the process
    /// ends. For libraries that are handed a context again and again, and with it no place to keep a [`Gpu`].
    ///
    /// # Errors
    ///
    /// As [`Gpu::with_context`].
    pub fn shared_with_context(context: &Arc<CudaContext>) -> Result<Arc<Gpu>, DeviceError> {
        static SHARED: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());
        let mut gpus = lock(&SHARED);
        // A Gpu keeps its context alive, so that a context that compares equal is the same one.
        if let Some(gpu) = gpus.iter().find(|gpu| gpu.context() == context) {
            return Ok(gpu.clone());
        }
        let gpu = Gpu::with_context(context.clone())?;
        gpus.push(gpu.clone());
        Ok(gpu)
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Index of the device.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Memory of the device, in bytes.
    pub fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// What plans need to know.
    pub fn capability(&self) -> &Capability {
        &self.capability
    }

    /// Loads the kernels of `plan`, so that a launch finds them ready. [`Gpu::launch`] does it by
    /// itself; call this before capturing a launch into a graph, because loading cannot be captured.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] if a module is missing, altered or rejected, or lacks a kernel.
    pub fn prepare(&self, plan: &Plan) -> Result<(), DeviceError> {
        if plan.entries().is_empty() {
            return Ok(());
        }
        self.bind()?;
        let module = self.module(plan.arch())?;
        plan.entries().iter().try_for_each(|entry| module.function(self, entry).map(drop))
    }

    /// The module for `arch`, opened on first use.
    pub(super) fn module(&self, arch: Arch) -> Result<Arc<Module>, DeviceError> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(&arch) {
            return Ok(module.clone());
        }
        let module = Arc::new(Module::open(self, arch)?);
        modules.insert(arch, module.clone());
        Ok(module)
    }

    /// The stream of [`Gpu::run_host`], created on first use.
    pub(super) fn own_stream(&self) -> Result<Arc<CudaStream>, DeviceError> {
        let mut stream = lock(&self.stream);
        if let Some(stream) = &*stream {
            return Ok(stream.clone());
        }
        let created = self.check("creating a stream", self.context.new_stream())?;
        Ok(stream.insert(created).clone())
    }

    /// Uninitialised device memory, freed in the order of `stream` when dropped. (Should the driver be unable to make
    /// the two events that cudarc gives a buffer, cudarc loses the memory.)
    ///
    /// # Errors
    ///
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Poisoned`] or [`DeviceError::Driver`].
    pub fn alloc(&self, stream: &Arc<CudaStream>, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        self.bind()?;
        // SAFETY: the memory is uninitialised, but every bit pattern is a `u8`, and no reference to
        // its elements ever exists on the host.
        self.check_allocation(bytes, unsafe { stream.alloc::<u8>(bytes.max(1)) })
    }

    /// Makes the context current for the calling thread.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Poisoned`] after a fault, otherwise [`DeviceError::Driver`].
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        if let Some(cause) = self.fault.get() {
            return Err(DeviceError::Poisoned { cause: cause.clone() });
        }
        self.settle("releasing something earlier")?;
        self.check("making the context current", self.context.bind_to_thread())
    }

    /// Takes up an error that cudarc has kept: what its destructors and guards meet has nobody to go to, so that
    /// the next call of the context would get it, whatever that does.
    pub(super) fn settle(&self, call: &'static str) -> Result<(), DeviceError> {
        self.check(call, self.context.check_err())
    }

    /// Turns the result of a driver call into ours, and remembers the first fault that sticks.
    pub(super) fn check<T>(&self, call: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| {
            let failure = driver::failed(call, &error);
            if !driver::is_sticky(&error) {
                return failure;
            }
            let first = self.fault.get().is_none();
            let cause = self.fault.get_or_init(|| failure.to_string().into()).clone();
            if first { failure } else { DeviceError::Poisoned { cause } }
        })
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("ordinal", &self.ordinal())
            .field("name", &self.name)
            .field("capability", &self.capability)
            .field("fault", &self.fault.get())
            .finish_non_exhaustive()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Kernels may still be running; their code must not go away under them. A context with a
        // fault runs nothing, and an error here has nobody to go to. `CudaContext::synchronize` would not wait
        // if it had an error to tell first.
        if self.fault.get().is_none() && !lock(&self.modules).is_empty() {
            make_current(&self.context);
            let _ = result::ctx::synchronize();
        }
    }
}

/// Makes `context` current for a destructor, which goes on if that fails: what it releases knows its context.
/// `CudaContext::bind_to_thread` would do nothing if it had an error to tell first.
pub(super) fn make_current(context: &CudaContext) {
    // SAFETY: whoever has a `CudaContext` keeps the driver's context alive.
    let _ = unsafe { result::ctx::set_current(context.cu_ctx()) };
}

/// Locks `mutex`. What our mutexes hold is valid at every point where a panic could strike.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
