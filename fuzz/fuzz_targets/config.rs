//! Hands the fuzzer's bytes to `rescind::fuzzing::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescind::fuzzing::config(data));
