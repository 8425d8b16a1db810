//! Hands the fuzzer's bytes to `rescind::fuzzing::rules`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescind::fuzzing::rules(data));
