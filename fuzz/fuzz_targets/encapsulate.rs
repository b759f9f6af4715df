#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| greyhound_fuzz::encapsulate(bytes));
