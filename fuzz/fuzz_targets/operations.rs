//! The public operations of the core on the simulated machine, calls that fail included: see `gmem_explore::bytes`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    gmem_explore::bytes::run(data);
});
