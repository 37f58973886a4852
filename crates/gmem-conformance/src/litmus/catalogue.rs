//! The tests. Which outcomes each forbids is not written here: [`super::model`] works it out from the program for the processor at hand.

use super::program::Op::{Add, Fence, Load, LoadAcquire, Lock, Store, StoreNext, StoreRelease, Unlock};
use super::program::Repetition::{Afresh, Counting};
use super::program::{Op, Place, Repetition, Test};

const X: Place = 0;
const Y: Place = 1;
const Z: Place = 2;

/// Every test, in the order of reports.
pub const TESTS: &[Test] = &[
    test("sb", "store buffering: may both miss the other's store?", &[&[Store(X, 1), Load(Y)], &[Store(Y, 1), Load(X)]]),
    test("sb+fences", "store buffering with a barrier between", &[&[Store(X, 1), Fence, Load(Y)], &[Store(Y, 1), Fence, Load(X)]]),
    test("mp", "message passing by plain stores and loads", &[&[Store(X, 1), Store(Y, 1)], &[Load(Y), Load(X)]]),
    test("mp+rel+acq", "message passing by release and acquire", &[&[Store(X, 1), StoreRelease(Y, 1)], &[LoadAcquire(Y), Load(X)]]),
    test("lb", "load buffering: may both see the other's later store?", &[&[Load(X), Store(Y, 1)], &[Load(Y), Store(X, 1)]]),
    test("s", "is a store ordered before a store that was seen?", &[&[Store(X, 2), Store(Y, 1)], &[Load(Y), Store(X, 1)]]),
    test("r", "a store against a load, decided by who stored last", &[&[Store(X, 1), Store(Y, 1)], &[Store(Y, 2), Load(X)]]),
    test("r+fences", "the same with barriers", &[&[Store(X, 1), Fence, Store(Y, 1)], &[Store(Y, 2), Fence, Load(X)]]),
    test("2+2w", "may both first stores come last?", &[&[Store(X, 1), Store(Y, 2)], &[Store(Y, 1), Store(X, 2)]]),
    test("corr", "two loads of one place never go back", &[&[Store(X, 1)], &[Load(X), Load(X)]]),
    test("coww", "two stores to one place keep their order", &[&[Store(X, 1), Store(X, 2)], &[Load(X), Load(X)]]),
    test("cowr", "a load does not miss the own store before it", &[&[Store(X, 1), Load(X)], &[Store(X, 2)]]),
    test("corw", "a store comes after what was loaded before it", &[&[Load(X), Store(X, 1)], &[Store(X, 2)]]),
    test(
        "corr2",
        "two readers agree on the order of two stores",
        &[&[Store(X, 1)], &[Store(X, 2)], &[Load(X), Load(X)], &[Load(X), Load(X)]],
    ),
    test("wrc", "what was seen and passed on is seen", &[&[Store(X, 1)], &[Load(X), Store(Y, 1)], &[LoadAcquire(Y), Load(X)]]),
    test(
        "wrc+rel+acq",
        "the same by release and acquire",
        &[&[Store(X, 1)], &[LoadAcquire(X), StoreRelease(Y, 1)], &[LoadAcquire(Y), Load(X)]],
    ),
    test("rwc", "what was seen, against store buffering", &[&[Store(X, 1)], &[Load(X), Load(Y)], &[Store(Y, 1), Load(X)]]),
    test(
        "isa2",
        "a message passed on by a third",
        &[&[Store(X, 1), StoreRelease(Y, 1)], &[LoadAcquire(Y), StoreRelease(Z, 1)], &[LoadAcquire(Z), Load(X)]],
    ),
    test(
        "iriw",
        "two readers of two writers agree on the order",
        &[&[Store(X, 1)], &[Store(Y, 1)], &[Load(X), Load(Y)], &[Load(Y), Load(X)]],
    ),
    test(
        "iriw+acq",
        "the same by loads that acquire",
        &[&[Store(X, 1)], &[Store(Y, 1)], &[LoadAcquire(X), LoadAcquire(Y)], &[LoadAcquire(Y), LoadAcquire(X)]],
    ),
    test("add", "atomic additions to fresh words lose nothing", &[&[Add(X), Add(Y)], &[Add(Y), Add(X)], &[Add(X)]]),
    counting("counter", "atomic additions to one word lose nothing", &[&[Add(X)], &[Add(X)], &[Add(X)]]),
    counting(
        "lock",
        "a lock by compare and exchange excludes",
        &[
            &[Lock(X), Load(Y), StoreNext(Y), Unlock(X)],
            &[Lock(X), Load(Y), StoreNext(Y), Unlock(X)],
            &[Lock(X), Load(Y), StoreNext(Y), Unlock(X)],
        ],
    ),
];

const fn test(name: &'static str, asks: &'static str, programs: &'static [&'static [Op]]) -> Test {
    Test { name, asks, programs, repetition: Afresh }
}

const fn counting(name: &'static str, asks: &'static str, programs: &'static [&'static [Op]]) -> Test {
    let repetition: Repetition = Counting;
    Test { name, asks, programs, repetition }
}
