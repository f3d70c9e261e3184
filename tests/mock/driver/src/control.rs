//! What tests call besides the driver API.

use std::ffi::{CStr, c_char};

use crate::state::{Code, State, driver};
use crate::{Config, Live};

/// Sets what the driver pretends to be.
#[unsafe(no_mangle)]
extern "C" fn mock_configure(config: Config) {
    driver().config = Some(config);
}

/// Counts calls anew, and makes call number `call` (from 1; 0 is none) fail with `code`.
#[unsafe(no_mangle)]
extern "C" fn mock_fail(call: u64, code: Code) {
    let mut driver = driver();
    driver.calls.clear();
    driver.failure = (call > 0).then_some((call, code));
}

/// Calls since then.
#[unsafe(no_mangle)]
extern "C" fn mock_calls() -> u64 {
    driver().calls.len() as u64
}

/// Name of call number `call` (from 1), null if there was none.
#[unsafe(no_mangle)]
extern "C" fn mock_call_name(call: u64) -> *const c_char {
    let driver = driver();
    let index = usize::try_from(call).ok().and_then(|call| call.checked_sub(1));
    index.and_then(|index| driver.calls.get(index)).map_or(std::ptr::null(), |name| name.as_ptr())
}

/// What is alive.
#[unsafe(no_mangle)]
extern "C" fn mock_live() -> Live {
    driver().live()
}

/// Writes the violations, one a line, to `text`, as far as they fit; returns their length.
///
/// # Safety
///
/// `text` has room for `capacity` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn mock_violations(text: *mut u8, capacity: usize) -> usize {
    let all = State::violations_text(&driver());
    let len = all.len().min(capacity);
    // SAFETY: the caller's buffer has that room.
    unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), text, len) };
    all.len()
}

impl State {
    fn violations_text(&self) -> String {
        self.violations.join("\n")
    }
}

const NAMES: [(Code, &CStr); 8] = [
    (1, c"CUDA_ERROR_INVALID_VALUE"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY"),
    (100, c"CUDA_ERROR_NO_DEVICE"),
    (222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    (500, c"CUDA_ERROR_NOT_FOUND"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED"),
    (803, c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
];

fn name_of(code: Code) -> Option<*const c_char> {
    let known = NAMES.iter().find(|(known, _)| *known == code).map(|(_, name)| name.as_ptr());
    known.filter(|_| driver().config().nameless == 0)
}

/// Not counted: it is only called about a failure, of which there is one.
///
/// # Safety
///
/// `name` is a place for a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    // SAFETY: the caller's promise.
    unsafe { *name = name_of(code).unwrap_or(std::ptr::null()) };
    Code::from(name_of(code).is_none())
}

/// # Safety
///
/// As [`cuGetErrorName`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    // SAFETY: the caller's promise.
    unsafe { cuGetErrorName(code, text) }
}
