//! What gmem's lock-free parts stand on when [loom](https://docs.rs/loom) runs them in every order that the memory model allows.
//!
//! A crate with such parts takes its atomics, cells and futexes from a module of its own, which is those of the standard library and of `rustix`, or with
//! `--cfg loom` these. Without that flag this crate is empty.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p gmem-loom -p gmem-linux -p gmem-accel --lib loom
//! ```
//!
//! `LOOM_MAX_PREEMPTIONS` says how often in one order a thread loses the processor where it could have gone on; if it is not set, each model has its own number.
//! The models that must fail, the canaries, need up to 2: with 1, leave them out by `-- --skip canary`.
//! With `LOOM_LOG=trace` every step is told.
#![cfg(loom)]
#![forbid(unsafe_code)]

pub mod atomic;
pub mod futex;
pub mod thread;

pub use loom::sync::{Mutex, MutexGuard};
pub use loom::{self, cell, hint};
use std::sync::Arc;

/// As in the standard library, for one static that starts as a constant: loom's threads share one of the system's, hence its variables.
#[macro_export]
macro_rules! thread_local {
    ($(#[$doc:meta])* static $name:ident: $type:ty = const $initial:block;) => {
        $crate::loom::thread_local! { $(#[$doc])* static $name: $type = $initial; }
    };
}

/// Runs `body` in every order of its threads and with every value that its loads may see, and panics if one of them does, or if all threads wait.
pub fn model(body: impl Fn() + Send + Sync + 'static) {
    model_within(3, body);
}

/// The same, in every order with at most so many `preemptions`: for bodies so long that more would take minutes.
pub fn model_within(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(body);
}

/// Runs `bodies` at the same time on `shared`, one of them on the calling thread, and waits until all have ended.
pub fn together<T: Send + Sync + 'static>(shared: &Arc<T>, mut bodies: Vec<Box<dyn FnOnce(&T) + Send>>) {
    let last = bodies.pop();
    let others: Vec<_> = bodies
        .into_iter()
        .map(|body| {
            let shared = shared.clone();
            thread::spawn(move || body(&shared))
        })
        .collect();
    if let Some(body) = last {
        body(shared);
    }
    // A panic of a thread ends the model before anyone gets here.
    others.into_iter().for_each(|t| t.join().expect("no panic"));
}
