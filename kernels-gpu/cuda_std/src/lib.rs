#![no_std]
//! Device standard library.
