//! Device memory.

use std::ffi::c_void;

use crate::state::*;

/// Addresses are multiples of this, as the driver's are.
const ALIGN: usize = 256;

/// Allocates in `context`.
fn allocate(driver: &mut State, context: Handle, len: usize) -> Result<Handle, Code> {
    if len == 0 {
        return Err(INVALID_VALUE);
    }
    let device = driver.contexts.get(&context).map(|context| context.device);
    let on_device = |handle: Handle| driver.contexts.get(&handle).map(|context| context.device) == device;
    let used: u64 = driver.allocations.values().filter(|m| on_device(m.context)).map(|m| m.len as u64).sum();
    if used.saturating_add(len as u64) > driver.config().memory_bytes {
        return Err(OUT_OF_MEMORY);
    }
    // What nobody has written is NaN in every format.
    let bytes = vec![0xFF; len + ALIGN];
    let offset = bytes.as_ptr().align_offset(ALIGN);
    let address = bytes.as_ptr().addr() + offset;
    driver.allocations.insert(address, Allocation { context, bytes, offset, len });
    Ok(address)
}

/// Frees memory; `result` is what the call returns besides.
fn free(driver: &mut State, address: u64, result: Result<(), Code>) -> Code {
    if driver.allocations.remove(&(address as Handle)).is_none() {
        return driver.violation(format!("{address:#x} is freed, but is not allocated"), INVALID_VALUE);
    }
    code(result)
}

/// The bytes of `len` at `address`, which must be of `context`.
fn bytes<'a>(
    driver: &'a mut State,
    what: &str,
    address: u64,
    len: usize,
    context: Handle,
) -> Result<&'a mut [u8], Code> {
    let address = address as Handle;
    let found = driver.allocations.range(..=address).next_back().map(|(&base, memory)| (base, memory));
    let inside = found.filter(|(base, memory)| {
        memory.context == context && address - base <= memory.len && len <= memory.len - (address - base)
    });
    let Some(base) = inside.map(|(base, _)| base) else {
        let what = format!("{what}: {len} bytes at {address:#x} are not allocated in this context");
        return Err(driver.violation(what, INVALID_VALUE));
    };
    let Some(memory) = driver.allocations.get_mut(&base) else { return Err(INVALID_VALUE) };
    let begin = memory.offset + (address - base);
    Ok(&mut memory.bytes[begin..begin + len])
}

/// # Safety
///
/// `address` is a place for an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, len: usize, stream: Handle) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuMemAllocAsync").and_then(|_| driver.stream(stream, "cuMemAllocAsync"));
    let allocated = context.and_then(|context| allocate(&mut driver, context, len));
    // SAFETY: the caller's promise.
    code(allocated.map(|base| unsafe { address.write(base as u64) }))
}

/// # Safety
///
/// As [`cuMemAllocAsync`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, len: usize) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuMemAlloc");
    let allocated = context.and_then(|context| allocate(&mut driver, context, len));
    // SAFETY: the caller's promise.
    code(allocated.map(|base| unsafe { address.write(base as u64) }))
}

/// Frees; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuMemFreeAsync").and_then(|_| driver.stream(stream, "cuMemFreeAsync"));
    free(&mut driver, address, result.map(drop))
}

/// Frees; an error is one of earlier work.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Code {
    let mut driver = driver();
    let result = driver.call_in_context(c"cuMemFree");
    free(&mut driver, address, result.map(drop))
}

/// # Safety
///
/// Both are places for a number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    let mut driver = driver();
    let context = driver.call_in_context(c"cuMemGetInfo");
    code(context.map(|_| {
        let bytes = driver.config().memory_bytes;
        // SAFETY: the caller's promise.
        unsafe {
            free.write(bytes.saturating_sub(driver.live().bytes) as usize);
            total.write(bytes as usize);
        }
    }))
}

/// # Safety
///
/// `from` has `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: Handle) -> Code {
    const NAME: &str = "cuMemcpyHtoDAsync";
    let mut driver = driver();
    let context = driver.call_in_context(c"cuMemcpyHtoDAsync").and_then(|_| driver.stream(stream, NAME));
    let bytes = context.and_then(|context| bytes(&mut driver, NAME, to, len, context));
    // SAFETY: the caller's promise; device memory is a vector of our own.
    code(bytes.map(|to| unsafe { std::ptr::copy_nonoverlapping(from.cast(), to.as_mut_ptr(), len) }))
}

/// # Safety
///
/// `to` has room for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: Handle) -> Code {
    const NAME: &str = "cuMemcpyDtoHAsync";
    let mut driver = driver();
    let context = driver.call_in_context(c"cuMemcpyDtoHAsync").and_then(|_| driver.stream(stream, NAME));
    let bytes = context.and_then(|context| bytes(&mut driver, NAME, from, len, context));
    // SAFETY: the caller's promise; device memory is a vector of our own.
    code(bytes.map(|from| unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.cast(), len) }))
}

/// Fills memory.
#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, len: usize, stream: Handle) -> Code {
    const NAME: &str = "cuMemsetD8Async";
    let mut driver = driver();
    let context = driver.call_in_context(c"cuMemsetD8Async").and_then(|_| driver.stream(stream, NAME));
    let bytes = context.and_then(|context| bytes(&mut driver, NAME, to, len, context));
    code(bytes.map(|bytes| bytes.fill(value)))
}
