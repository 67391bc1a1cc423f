#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::client_frames::target(bytes));
