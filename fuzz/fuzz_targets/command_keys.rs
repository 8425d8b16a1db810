//! Hands the fuzzer's bytes to `rescind::fuzzing::command_keys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rescind::fuzzing::command_keys(data));
