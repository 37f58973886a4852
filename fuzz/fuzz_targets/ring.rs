//! What a device process may write into the memory that it shares with the host, and what the host may ask of it: see `gmem_accel::fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    gmem_accel::fuzzing::run(data);
});
