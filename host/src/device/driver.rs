//! The driver library: whether there is one, and its errors.

use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};

use crate::error::DeviceError;

/// Starts the driver.
///
/// # Errors
///
/// [`DeviceError::NoDriver`] without libcuda, [`DeviceError::NoDevice`] without a device,
/// [`DeviceError::DriverInit`] if it does not start.
pub(super) fn init() -> Result<(), DeviceError> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // cudarc panics where it finds no library, so the probe comes before its first call.
    if !*PRESENT.get_or_init(is_present) {
        return Err(DeviceError::NoDriver);
    }
    result::init().map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => DeviceError::NoDevice { ordinal: 0, count: 0 },
        _ => DeviceError::DriverInit { code: error.0 as u32, name: name(&error), message: message(&error) },
    })
}

/// CUDA version of the oldest driver that has every function that is called on every device; the bindings panic for
/// one that is missing. `cuMemAllocAsync` came last. Tensor maps came with 12.0, and are made after a module has been
/// loaded that needs as much.
const OLDEST: i32 = 11_020;

/// Fails if the driver is older than the bindings.
fn check_version() -> Result<(), DeviceError> {
    let version = version()?;
    if version < OLDEST {
        return Err(DeviceError::DriverTooOld { version: version_name(version), oldest: version_name(OLDEST) });
    }
    Ok(())
}

/// CUDA version of a driver that has been started, 1000 · major + 10 · minor.
fn version() -> Result<i32, DeviceError> {
    let mut version = 0;
    // SAFETY: `version` is a valid place for the one integer that the call writes.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|error| failed("cuDriverGetVersion", &error))?;
    Ok(version)
}

fn version_name(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Whether the driver library is installed. cudarc has such a probe too, but not when a dependency of the
/// program has it link the library, as candle's `cuda` feature does.
fn is_present() -> bool {
    const NAMES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    // SAFETY: loading libcuda runs its initialisers, which are those of any program that uses CUDA.
    NAMES.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

/// CUDA version the driver supports, e.g. `13.0`.
///
/// # Errors
///
/// As for starting the driver: [`DeviceError::NoDriver`], [`DeviceError::NoDevice`],
/// [`DeviceError::DriverInit`].
///
/// ```
/// match sage_attn::device::driver_version() {
///     Ok(version) => println!("a driver for CUDA {version}"),
///     Err(error) => println!("{error}"), // such as that there is none
/// }
/// ```
pub fn driver_version() -> Result<String, DeviceError> {
    init()?;
    Ok(version_name(version()?))
}

/// Number of CUDA devices.
///
/// # Errors
///
/// As [`driver_version`]; also [`DeviceError::DriverTooOld`].
///
/// ```
/// let gpus = sage_attn::device::device_count().unwrap_or(0);
/// println!("{gpus} GPUs");
/// ```
pub fn device_count() -> Result<usize, DeviceError> {
    init()?;
    check_version()?;
    let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", &error))?;
    Ok(count.max(0) as usize)
}

/// The error of a failed driver call.
pub(super) fn failed(call: &'static str, error: &DriverError) -> DeviceError {
    DeviceError::Driver { call, code: error.0 as u32, name: name(error), message: message(error) }
}

/// `CUresult` by name.
pub(super) fn name(error: &DriverError) -> String {
    error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned())
}

fn message(error: &DriverError) -> String {
    error.error_string().map_or_else(|_| "no description".into(), |text| text.to_string_lossy().into_owned())
}

/// Whether an error leaves the context unusable, so that every later call fails too (CUDA Driver API,
/// `CUresult`: "the process must be terminated and relaunched").
pub(super) fn is_sticky(error: &DriverError) -> bool {
    matches!(
        error.0,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_the_device_are_sticky() {
        assert!(is_sticky(&DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
        assert!(is_sticky(&DriverError(CUresult::CUDA_ERROR_LAUNCH_FAILED)));
        assert!(!is_sticky(&DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
        assert!(!is_sticky(&DriverError(CUresult::CUDA_ERROR_INVALID_VALUE)));
    }
}
