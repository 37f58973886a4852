//! The driver of `docs/writing-a-device.md` proves itself, in the words of that page.

include!("driver.rs");
include!("proof.rs");
