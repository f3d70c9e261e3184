#![no_std]
//! Device kernels.
