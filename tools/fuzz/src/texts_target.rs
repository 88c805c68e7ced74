//! libFuzzer's target `texts`: any text, any reader of keys, peers and lists.
#![no_main]

mod texts;

libfuzzer_sys::fuzz_target!(|input: &[u8]| texts::try_text(input));
