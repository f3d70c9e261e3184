//! The host on a driver that fails: every call of it, with every kind of error, and always a typed error, nothing
//! leaked, nothing released twice. `tests/mock/driver` is that driver.

// It takes the place of libcuda through the search path of Linux's loader.
#![cfg(target_os = "linux")]

mod driver_errors;
mod every_call;
mod lifetimes;
mod mock;
mod sticky;
mod work;
