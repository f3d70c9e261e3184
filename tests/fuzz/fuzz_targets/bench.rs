#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sage_fuzz_targets::bench::run(data));
