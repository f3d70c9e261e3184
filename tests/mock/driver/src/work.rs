//! Streams, events, modules and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::state::*;

/// Dynamic shared memory that every kernel may use.
const SMEM_BYTES: u32 = 48 << 10;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SMEM: c_uint = 8;
/// `CU_JIT_ERROR_LOG_BUFFER`.
const ERROR_LOG: c_uint = 5;

/// # Safety
///
/// `stream` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuStreamCreate");
    code(context.map(|context| {
        let handle = driver.handle();
        driver.streams.insert(handle, context);
        // SAFETY: the caller's promise.
        unsafe { stream.write(handle) }
    }))
}

/// Destroys; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuStreamDestroy");
    match driver.streams.remove(&stream) {
        Some(context) => code(result.and_then(|()| driver.check_fault(context))),
        None => driver.violation(format!("{stream:#x} is destroyed, but is not a stream"), INVALID_HANDLE),
    }
}

/// Waits for nothing.
#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuStreamSynchronize").and_then(|_| driver.stream(stream, "synchronize"));
    code(context.and_then(|context| driver.check_fault(context)))
}

/// Orders nothing: everything is done at once.
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuStreamWaitEvent").and_then(|_| driver.stream(stream, "wait"));
    code(result.and_then(|_| of_event(&mut driver, event)).map(drop))
}

/// # Safety
///
/// `context` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamGetCtx(stream: Handle, context: *mut Handle) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuStreamGetCtx").and_then(|()| driver.stream(stream, "cuStreamGetCtx"));
    // SAFETY: the caller's promise.
    code(result.map(|handle| unsafe { context.write(handle) }))
}

/// The context of an event, and whether it was recorded.
fn of_event(driver: &mut State, event: Handle) -> Result<(Handle, bool), Code> {
    let known = driver.events.get(&event).copied();
    known.ok_or_else(|| driver.violation(format!("{event:#x} is not an event"), INVALID_HANDLE))
}

/// # Safety
///
/// `event` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut Handle, _flags: c_uint) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuEventCreate");
    code(context.map(|context| {
        let handle = driver.handle();
        driver.events.insert(handle, (context, false));
        // SAFETY: the caller's promise.
        unsafe { event.write(handle) }
    }))
}

/// Destroys; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuEventDestroy");
    match driver.events.remove(&event) {
        Some((context, _)) => code(result.and_then(|()| driver.check_fault(context))),
        None => driver.violation(format!("{event:#x} is destroyed, but is not an event"), INVALID_HANDLE),
    }
}

/// Records.
#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuEventRecord").and_then(|_| driver.stream(stream, "cuEventRecord"));
    code(result.and_then(|of_stream| {
        let (context, _) = of_event(&mut driver, event)?;
        if of_stream != context {
            return Err(driver.violation("event and stream are of two contexts".into(), INVALID_HANDLE));
        }
        driver.events.insert(event, (context, true));
        Ok(())
    }))
}

/// Waits for nothing.
#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuEventSynchronize");
    code(result.and_then(|_| of_event(&mut driver, event)).map(drop))
}

/// # Safety
///
/// `ms` is a place for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: Handle, end: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuEventElapsedTime");
    code(result.and_then(|_| {
        let recorded = of_event(&mut driver, start)?.1 && of_event(&mut driver, end)?.1;
        if !recorded {
            return Err(driver.violation("an event is timed that was not recorded".into(), INVALID_HANDLE));
        }
        // SAFETY: the caller's promise.
        unsafe { ms.write(1.0) };
        Ok(())
    }))
}

/// Takes PTX as text; a failure leaves a line in the error log.
///
/// # Safety
///
/// `image` is text that ends in zero; there are `count` options with their values, among which
/// `CU_JIT_ERROR_LOG_BUFFER` is a buffer of at least 64 bytes; `module` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_char,
    count: c_uint,
    options: *const c_uint,
    values: *const *mut c_void,
) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuModuleLoadDataEx");
    if context.is_err() {
        for index in 0..count as usize {
            // SAFETY: the caller's promise.
            let (option, value) = unsafe { (*options.add(index), *values.add(index)) };
            if option == ERROR_LOG {
                const LINE: &[u8] = b"ptxas fatal : the mock refuses\nas it was told\n\0";
                // SAFETY: the caller's buffer has that room.
                unsafe { std::ptr::copy_nonoverlapping(LINE.as_ptr(), value.cast(), LINE.len()) };
            }
        }
    }
    code(context.map(|context| {
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
        let entries = text.split(".visible .entry ").skip(1);
        let entries = entries.filter_map(|text| text.split('(').next()).map(str::to_owned).collect();
        let handle = driver.handle();
        driver.modules.insert(handle, Module { context, entries });
        // SAFETY: the caller's promise.
        unsafe { module.write(handle) }
    }))
}

/// # Safety
///
/// `name` is text that ends in zero; `function` is a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuModuleGetFunction");
    code(result.and_then(|_| {
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let Some(of_module) = driver.modules.get(&module) else {
            return Err(driver.violation(format!("{module:#x} is not a module"), INVALID_HANDLE));
        };
        if !of_module.entries.contains(&name) {
            return Err(NOT_FOUND);
        }
        let handle = driver.handle();
        driver.functions.insert(handle, Function { module, smem_bytes: SMEM_BYTES });
        // SAFETY: the caller's promise.
        unsafe { function.write(handle) };
        Ok(())
    }))
}

/// Unloads; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuModuleUnload");
    if driver.modules.remove(&module).is_none() {
        return driver.violation(format!("{module:#x} is unloaded, but is not a module"), INVALID_HANDLE);
    }
    driver.functions.retain(|_, function| function.module != module);
    code(result.map(drop))
}

/// Lets a kernel use more shared memory.
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: Handle, attribute: c_uint, value: c_int) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuFuncSetAttribute");
    code(result.and_then(|_| {
        let most = driver.config().smem_opt_in;
        let bytes = u32::try_from(value).ok().filter(|&bytes| attribute == MAX_DYNAMIC_SMEM && bytes <= most);
        let bytes = bytes.ok_or(INVALID_VALUE)?;
        match driver.functions.get_mut(&function) {
            Some(function) => function.smem_bytes = bytes,
            None => return Err(driver.violation(format!("{function:#x} is not a kernel"), INVALID_HANDLE)),
        }
        Ok(())
    }))
}

/// Checks a launch, and runs nothing.
#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    smem_bytes: c_uint,
    stream: Handle,
    params: *const *const c_void,
    _extra: *const *const c_void,
) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuLaunchKernel").and_then(|_| driver.stream(stream, "cuLaunchKernel"));
    code(context.and_then(|of_stream| {
        let known = driver.functions.get(&function).map(|function| (function.smem_bytes, function.module));
        let of_module = known.and_then(|(_, module)| driver.modules.get(&module)).map(|module| module.context);
        let Some((allowed, _)) = known.filter(|_| of_module == Some(of_stream)) else {
            return Err(driver.violation(format!("{function:#x} is launched, but is no kernel here"), INVALID_HANDLE));
        };
        let grid = [(grid_x, i32::MAX as u32), (grid_y, 65_535), (grid_z, 65_535)];
        let threads = u64::from(block_x) * u64::from(block_y) * u64::from(block_z);
        let good = grid.iter().all(|&(extent, most)| (1..=most).contains(&extent))
            && (1..=1024).contains(&threads)
            && smem_bytes <= allowed
            && !params.is_null();
        if good {
            return Ok(());
        }
        let what = format!("a launch of {grid:?} CTAs of {threads} threads with {smem_bytes} of {allowed} bytes");
        Err(driver.violation(what, INVALID_VALUE))
    }))
}

/// Leaves a map of zeros, which no kernel reads.
///
/// # Safety
///
/// `map` has 128 bytes; there are three extents and two strides.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuTensorMapEncodeTiled(
    map: *mut [u64; 16],
    _data_type: c_uint,
    rank: c_uint,
    address: *mut c_void,
    extents: *const [u64; 3],
    strides: *const [u64; 2],
) -> Code {
    let mut driver = driver();
    let result = driver.call(c"cuTensorMapEncodeTiled");
    // SAFETY: the caller's promise.
    let (extents, strides) = unsafe { (*extents, *strides) };
    code(result.and_then(|()| {
        let good = rank == 3
            && address.addr().is_multiple_of(16)
            && extents.iter().all(|&extent| (1..=1 << 32).contains(&extent))
            && strides.iter().all(|&stride| stride.is_multiple_of(16) && stride < 1 << 40);
        if !good {
            let what = format!("a tensor map at {address:?} of {extents:?} with strides {strides:?}");
            return Err(driver.violation(what, INVALID_VALUE));
        }
        // SAFETY: the caller's promise.
        unsafe { map.write([0; 16]) };
        Ok(())
    }))
}
