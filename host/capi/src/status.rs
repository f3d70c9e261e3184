//! How calls end.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use sage_attn::Error;

/// Success.
pub const SAGE_OK: i32 = 0;
/// The request contradicts itself, or a pointer is null.
pub const SAGE_INVALID: i32 = 1;
/// The request is sound but outside what the library does.
pub const SAGE_UNSUPPORTED: i32 = 2;
/// The request is sound but this device cannot run it as asked.
pub const SAGE_PLAN: i32 = 3;
/// The driver or the device failed.
pub const SAGE_DEVICE: i32 = 4;
/// A bug of the library; the objects of the call should not be used again.
pub const SAGE_PANIC: i32 = 5;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Why the last failed call on this thread failed, as a sentence in UTF-8; empty if none has. Valid until
/// the next call on this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn sage_last_error() -> *const c_char {
    LAST_ERROR.with_borrow(|error| error.as_ptr())
}

/// Version of the library, such as `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn sage_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// A failed call.
pub(crate) struct Failure {
    status: i32,
    message: String,
}

impl Failure {
    pub(crate) fn invalid(message: impl Into<String>) -> Failure {
        Failure { status: SAGE_INVALID, message: message.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match error {
            Error::Invalid(_) | Error::Modifier(_) => SAGE_INVALID,
            Error::Unsupported(_) => SAGE_UNSUPPORTED,
            Error::Plan(_) => SAGE_PLAN,
            _ => SAGE_DEVICE,
        };
        Failure { status, message: error.to_string() }
    }
}

impl From<sage_attn::error::DeviceError> for Failure {
    fn from(error: sage_attn::error::DeviceError) -> Failure {
        Error::from(error).into()
    }
}

/// Runs the body of a function: its failure becomes a status and a sentence, and so does a panic.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        // A payload's destructor may panic as well.
        std::mem::forget(payload);
        Err(Failure { status: SAGE_PANIC, message: format!("a bug of sage-attn: {text}") })
    });
    match result {
        Ok(()) => SAGE_OK,
        Err(Failure { status, message }) => {
            // The messages hold no zero byte of their own; one from the caller's strings ends the sentence.
            let text = message.split('\0').next().unwrap_or_default();
            LAST_ERROR.set(CString::new(text).unwrap_or_default());
            status
        }
    }
}

/// The object behind `pointer`.
///
/// # Safety
///
/// `pointer` is null or a live object of its type.
pub(crate) unsafe fn object<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: forwarded contract.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::invalid(format!("{name} is a null pointer")))
}

/// The object behind `pointer`, to be changed.
///
/// # Safety
///
/// `pointer` is null or a live object of its type that nobody else uses.
pub(crate) unsafe fn object_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: forwarded contract.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::invalid(format!("{name} is a null pointer")))
}

/// Frees what `Box::into_raw` gave away.
///
/// # Safety
///
/// `pointer` is null or comes from `Box::into_raw`, and this is its last use.
pub(crate) unsafe fn free<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // The status has nowhere to go: a destructor that panics is a bug.
        let _ = guard(|| {
            // SAFETY: forwarded contract.
            drop(unsafe { Box::from_raw(pointer) });
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: the string lives until the next failure on this thread.
        unsafe { CStr::from_ptr(sage_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(guard(|| panic!("number {}", 7)), SAGE_PANIC);
        assert_eq!(last_error(), "a bug of sage-attn: number 7");
        assert_eq!(guard(|| std::panic::panic_any(7)), SAGE_PANIC);
        assert_eq!(last_error(), "a bug of sage-attn: ");
    }

    #[test]
    fn the_sentence_belongs_to_its_thread() {
        assert_eq!(guard(|| Err(Failure::invalid("here"))), SAGE_INVALID);
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
        assert_eq!(guard(|| Ok(())), SAGE_OK);
        assert_eq!(last_error(), "here");
        assert_eq!(guard(|| Err(Failure::invalid("a\0b"))), SAGE_INVALID);
        assert_eq!(last_error(), "a");
    }
}
