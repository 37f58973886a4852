//! Atomics that loom sees, with sequential consistency.
//!
//! Loom takes a `SeqCst` access for an `AcqRel` one: a load may then see an old value where the memory model says it cannot, and code that is right would
//! fail. Here a `SeqCst` load of a word that was last changed by a `SeqCst` access sees that change, as the single order of all such accesses demands. A
//! load of a word that was last changed by anything weaker may see old values, so weakening one side of a handshake still shows. Taking the order of
//! execution for the single order is stronger than the model where accesses of one word are of both kinds; the words of gmem that matter are of one.

use loom::sync::atomic as model;
pub use loom::sync::atomic::{Ordering, fence};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool as Flag, Ordering::Relaxed};

/// What a load asks of memory when the value is known to be the newest.
fn at_most_acquire(order: Ordering) -> Ordering {
    if order == Ordering::SeqCst { Ordering::Acquire } else { order }
}

/// What a store asks of memory when it is done as a change: nothing of what it replaces.
fn order_of_change(order: Ordering) -> Ordering {
    if order == Ordering::SeqCst { Ordering::Release } else { order }
}

macro_rules! atomic {
    ($(#[$doc:meta])* $name:ident, $value:ty, $read:ident, $nothing:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            initial: $value,
            /// Made by the first thread that touches it, as loom's own can not be made in a constant. That thread must come before all others: made by
            /// `default` it does.
            word: OnceLock<model::$name>,
            /// Whether the last change was `SeqCst`.
            ordered: Flag,
        }

        impl Default for $name {
            fn default() -> Self {
                let new = Self::new(<$value>::default());
                new.word();
                new
            }
        }

        impl $name {
            /// One that holds `value`. Let one thread touch it before another can.
            pub const fn new(value: $value) -> Self {
                Self { initial: value, word: OnceLock::new(), ordered: Flag::new(true) }
            }

            fn word(&self) -> &model::$name {
                self.word.get_or_init(|| model::$name::new(self.initial))
            }

            /// As in the standard library.
            pub fn load(&self, order: Ordering) -> $value {
                if order == Ordering::SeqCst && self.ordered.load(Relaxed) {
                    self.word().$read($nothing, Ordering::Acquire)
                } else {
                    self.word().load(at_most_acquire(order))
                }
            }

            /// As in the standard library.
            pub fn store(&self, value: $value, order: Ordering) {
                // Loom leaves open which of a store and of what is here a change for a load comes first; of two changes it does not.
                self.word().swap(value, order_of_change(order));
                self.ordered.store(order == Ordering::SeqCst, Relaxed);
            }

            /// As in the standard library.
            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                let before = self.word().swap(value, order);
                self.ordered.store(order == Ordering::SeqCst, Relaxed);
                before
            }

            /// As in the standard library.
            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let answer = self.word().compare_exchange(current, new, success, failure);
                if answer.is_ok() {
                    self.ordered.store(success == Ordering::SeqCst, Relaxed);
                }
                answer
            }
        }
    };
}

macro_rules! arithmetic {
    ($name:ident, $value:ty, $($method:ident)*) => {
        impl $name {
            $(/// As in the standard library.
            pub fn $method(&self, value: $value, order: Ordering) -> $value {
                let before = self.word().$method(value, order);
                self.ordered.store(order == Ordering::SeqCst, Relaxed);
                before
            })*
        }
    };
}

atomic!(
    /// A word.
    AtomicU32, u32, fetch_add, 0
);
atomic!(
    /// Two words in one.
    AtomicU64, u64, fetch_add, 0
);
atomic!(
    /// A flag.
    AtomicBool, bool, fetch_or, false
);
arithmetic!(AtomicU32, u32, fetch_add fetch_sub fetch_or fetch_and);
arithmetic!(AtomicU64, u64, fetch_add fetch_sub fetch_or fetch_and);
arithmetic!(AtomicBool, bool, fetch_or);

#[cfg(test)]
mod models {
    use super::*;
    use crate::{model, together};
    use std::sync::Arc;

    /// Two threads that each say something and then look whether the other did: at least one must see it.
    fn both_may_miss(store: Ordering) {
        model(move || {
            let words = Arc::new((AtomicU32::default(), AtomicU32::default(), AtomicU32::default()));
            together(
                &words,
                vec![
                    Box::new(move |w| {
                        w.0.store(1, store);
                        w.2.fetch_add(w.1.load(Ordering::SeqCst), Ordering::Relaxed);
                    }),
                    Box::new(move |w| {
                        w.1.store(1, store);
                        w.2.fetch_add(w.0.load(Ordering::SeqCst), Ordering::Relaxed);
                    }),
                ],
            );
            assert_ne!(words.2.load(Ordering::Relaxed), 0, "neither saw the other");
        });
    }

    #[test]
    fn loom_sequential_consistency_lets_one_see_the_other() {
        both_may_miss(Ordering::SeqCst);
    }

    #[test]
    #[should_panic = "neither saw the other"]
    fn loom_anything_weaker_does_not() {
        both_may_miss(Ordering::Release);
    }
}
