//! libFuzzer's target `frames`: any bytes, any decoder.
#![no_main]

mod frames;

libfuzzer_sys::fuzz_target!(|input: &[u8]| frames::try_bytes(input));
