//! Devices and contexts.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::state::*;

/// Starts the driver.
#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> Code {
    let mut driver = driver();
    let started = driver.call(c"cuInit").and(match driver.config().devices {
        0 => Err(NO_DEVICE),
        _ => Ok(()),
    });
    driver.started |= started.is_ok();
    code(started)
}

/// Runs a query that needs a started driver, and stores its answer.
///
/// # Safety
///
/// `to` is a place for a `T`.
unsafe fn answer<T>(name: &'static std::ffi::CStr, to: *mut T, query: impl FnOnce(&State) -> Result<T, Code>) -> Code {
    let mut driver = driver();
    let result = driver.call(name).and_then(|()| if driver.started { Ok(()) } else { Err(NOT_INITIALIZED) });
    code(result.and_then(|()| query(&driver)).map(|value| {
        // SAFETY: the caller's promise.
        unsafe { to.write(value) }
    }))
}

fn check_device(state: &State, device: c_int) -> Result<(), Code> {
    if (0..i64::from(state.config().devices)).contains(&i64::from(device)) { Ok(()) } else { Err(INVALID_DEVICE) }
}

/// # Safety
///
/// `version` is a place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    // SAFETY: the caller's promise.
    unsafe { answer(c"cuDriverGetVersion", version, |state| Ok(state.config().version as c_int)) }
}

/// # Safety
///
/// `count` is a place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    // SAFETY: the caller's promise.
    unsafe { answer(c"cuDeviceGetCount", count, |state| Ok(state.config().devices as c_int)) }
}

/// # Safety
///
/// `device` is a place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    // SAFETY: the caller's promise.
    unsafe { answer(c"cuDeviceGet", device, |state| check_device(state, ordinal).map(|()| ordinal)) }
}

/// # Safety
///
/// `value` is a place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) -> Code {
    let of = |state: &State| {
        check_device(state, device)?;
        let config = state.config();
        Ok(match attribute {
            16 => config.sm_count,
            75 => config.major,
            76 => config.minor,
            97 => config.smem_opt_in,
            115 => config.pools,
            _ => return Err(INVALID_VALUE),
        } as c_int)
    };
    // SAFETY: the caller's promise.
    unsafe { answer(c"cuDeviceGetAttribute", value, of) }
}

/// # Safety
///
/// `name` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> Code {
    const NAME: &[u8] = b"mock\0";
    let to = name.cast::<[u8; NAME.len()]>();
    let of = |state: &State| {
        check_device(state, device)?;
        if (len as usize) < NAME.len() { Err(INVALID_VALUE) } else { Ok(*b"mock\0") }
    };
    // SAFETY: the caller's promise; written only if it fits.
    unsafe { answer(c"cuDeviceGetName", to, of) }
}

/// # Safety
///
/// `bytes` is a place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> Code {
    let of = |state: &State| check_device(state, device).map(|()| state.config().memory_bytes as usize);
    // SAFETY: the caller's promise.
    unsafe { answer(c"cuDeviceTotalMem", bytes, of) }
}

/// # Safety
///
/// `context` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuDevicePrimaryCtxRetain").and_then(|()| check_device(&driver, device));
    code(result.map(|()| {
        let known = driver.contexts.iter().find(|(_, c)| c.primary && c.device == device).map(|(&handle, _)| handle);
        let handle = known.unwrap_or_else(|| driver.handle());
        let of_device = driver.contexts.entry(handle).or_default();
        (of_device.device, of_device.primary) = (device, true);
        of_device.references += 1;
        // SAFETY: the caller's promise.
        unsafe { context.write(handle) }
    }))
}

/// Releases; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuDevicePrimaryCtxRelease");
    let known = driver.contexts.iter().find(|(_, c)| c.primary && c.device == device).map(|(&handle, _)| handle);
    let Some(handle) = known else {
        return driver.violation(format!("device {device} is released, but was not retained"), INVALID_CONTEXT);
    };
    release(&mut driver, handle);
    code(result)
}

/// Drops a reference to a context, which is gone with the last.
fn release(driver: &mut State, handle: Handle) {
    let Some(context) = driver.contexts.get_mut(&handle) else { return };
    context.references -= 1;
    if context.references == 0 {
        driver.contexts.remove(&handle);
        driver.current.retain(|_, current| *current != handle);
    }
}

/// # Safety
///
/// `context` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v3(
    context: *mut Handle,
    _affinity: *mut c_void,
    _count: c_int,
    _flags: c_uint,
    device: c_int,
) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuCtxCreate").and_then(|()| check_device(&driver, device));
    code(result.map(|()| {
        let (handle, thread) = (driver.handle(), driver.thread());
        driver.contexts.insert(handle, Context { device, references: 1, ..Context::default() });
        driver.current.insert(thread, handle);
        // SAFETY: the caller's promise.
        unsafe { context.write(handle) }
    }))
}

/// Destroys; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuCtxDestroy");
    if driver.contexts.get(&context).is_none_or(|context| context.primary) {
        return driver.violation(format!("{context:#x} is no context to destroy"), INVALID_CONTEXT);
    }
    release(&mut driver, context);
    code(result)
}

/// # Safety
///
/// `context` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuCtxGetCurrent");
    code(result.map(|()| {
        let current = driver.current().unwrap_or(0);
        // SAFETY: the caller's promise.
        unsafe { context.write(current) }
    }))
}

/// Makes a context current for the calling thread.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuCtxSetCurrent").and_then(|()| match driver.contexts.contains_key(&context) {
        true => Ok(()),
        false => Err(driver.violation(format!("{context:#x} is not a context"), INVALID_CONTEXT)),
    });
    code(result.map(|()| {
        let thread = driver.thread();
        driver.current.insert(thread, context);
    }))
}

/// Waits for nothing.
#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    code(driver().call_in_context(c"cuCtxSynchronize").map(drop))
}
