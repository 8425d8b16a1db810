//! Hands the fuzzer's bytes to `rescind::fuzzing::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescind::fuzzing::journal(data));
