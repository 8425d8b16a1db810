//! Hands the fuzzer's bytes to `rescind::fuzzing::session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescind::fuzzing::session(data));
