//! The forward and backward passes, as kernels.
//!
//! Every element of every result is computed by one core, and its sum is taken in one fixed order. Floating-point addition is not associative; this is
//! what makes a run with eight cores, or one on the CPU alone, agree in every bit.
//!
//! Matrices lie row by row. `w1` is HIDDEN × PIXELS, `w2` is CLASSES × HIDDEN; a batch of `n` samples has `x` (n × PIXELS), `hidden`
//! (n × HIDDEN), `delta` (n × CLASSES: the slope of the loss by the output sums) and `back` (n × HIDDEN: the same by the hidden sums).

use super::data::{CLASSES, PIXELS};
use gmem::{Grid, kernel};

/// Units of the hidden layer.
pub(crate) const HIDDEN: usize = 128;

kernel!(pub(crate) HIDDEN_LAYER = "backprop-hidden", |grid, args| {
    // SAFETY: only `super::step::hidden` launches this, with the arguments in this order.
    unsafe { hidden_layer(grid, at(args[0]), at(args[1]), at(args[2]), at(args[3]), args[4] as usize) }
});

kernel!(pub(crate) OUTPUT_LAYER = "backprop-output", |grid, args| {
    // SAFETY: only `super::step::output` launches this, with the arguments in this order.
    unsafe { output_layer(grid, at(args[0]), at(args[1]), at(args[2]), args[3], at(args[4]), at(args[5]), args[6] as usize) }
});

kernel!(pub(crate) BACK_OUTPUT = "backprop-back-output", |grid, args| {
    // SAFETY: only `super::step::back_output` launches this, with the arguments in this order.
    unsafe { back_output(grid, at(args[0]), at(args[1]), at(args[2]), at(args[3]), at(args[4]), at(args[5]), args[6] as usize) }
});

kernel!(pub(crate) BACK_HIDDEN = "backprop-back-hidden", |grid, args| {
    // SAFETY: only `super::step::back_hidden` launches this, with the arguments in this order.
    unsafe { back_hidden(grid, at(args[0]), at(args[1]), at(args[2]), at(args[3]), args[4] as usize) }
});

fn at(address: u64) -> *mut f32 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// `start + Σ a[i * a_step] * b[i * b_step]` in the order of `i`.
///
/// # Safety
/// All `n` elements of both are readable.
unsafe fn dot(start: f32, a: *const f32, a_step: usize, b: *const f32, b_step: usize, n: usize) -> f32 {
    let mut sum = start;
    for i in 0..n {
        // SAFETY: `i < n`, as the caller vouches.
        sum += unsafe { a.add(i * a_step).read() * b.add(i * b_step).read() };
    }
    sum
}

/// `hidden[s][j] = max(0, b1[j] + Σ w1[j][i] * x[s][i])`; a core takes every `workers`th sample.
///
/// # Safety
/// The arrays have the shapes the module states, for `n` samples; `hidden` is written by this launch alone.
unsafe fn hidden_layer(grid: Grid, x: *const f32, w1: *const f32, b1: *const f32, hidden: *mut f32, n: usize) {
    for s in (grid.worker..n).step_by(grid.workers) {
        for j in 0..HIDDEN {
            // SAFETY: `s < n` and `j < HIDDEN`, so every index is inside its array.
            unsafe {
                let sum = dot(b1.add(j).read(), w1.add(j * PIXELS), 1, x.add(s * PIXELS), 1, PIXELS);
                hidden.add(s * HIDDEN + j).write(if sum > 0.0 { sum } else { 0.0 });
            }
        }
    }
}

/// The output layer, softmax, the loss `-ln p[label]` and its slope `delta[s][k] = p[k] - (k == label)`; a core takes every `workers`th sample.
///
/// # Safety
/// The arrays have the shapes the module states, `labels` is the address of `n` labels, `loss` has `n` elements; `delta` and `loss` are written
/// by this launch alone.
#[expect(clippy::too_many_arguments, reason = "a kernel takes its arrays one by one")]
unsafe fn output_layer(
    grid: Grid,
    hidden: *const f32,
    w2: *const f32,
    b2: *const f32,
    labels: u64,
    delta: *mut f32,
    loss: *mut f32,
    n: usize,
) {
    let labels = std::ptr::with_exposed_provenance::<u32>(labels as usize);
    for s in (grid.worker..n).step_by(grid.workers) {
        let mut sums = [0f32; CLASSES];
        let mut largest = f32::NEG_INFINITY;
        for (k, sum) in sums.iter_mut().enumerate() {
            // SAFETY: `s < n` and `k < CLASSES`.
            *sum = unsafe { dot(b2.add(k).read(), w2.add(k * HIDDEN), 1, hidden.add(s * HIDDEN), 1, HIDDEN) };
            largest = largest.max(*sum);
        }
        let mut total = 0f32;
        for sum in &mut sums {
            // The largest is taken off first, so that no power overflows.
            *sum = (*sum - largest).exp();
            total += *sum;
        }
        // SAFETY: `s < n`.
        let label = unsafe { labels.add(s).read() } as usize;
        for (k, power) in sums.iter().enumerate() {
            let p = power / total;
            // SAFETY: `s < n` and `k < CLASSES`; this core alone writes row `s`.
            unsafe {
                delta.add(s * CLASSES + k).write(p - if k == label { 1.0 } else { 0.0 });
                if k == label {
                    loss.add(s).write(-p.max(f32::MIN_POSITIVE).ln());
                }
            }
        }
    }
}

/// The slopes of the output layer's weights, averaged over the batch, and `back[s][j] = Σ delta[s][k] * w2[k][j]` where the hidden unit was on.
///
/// # Safety
/// The arrays have the shapes the module states, for `n` samples; `g2` has the shape of `w2` and `h2` that of `b2`. `g2`, `h2` and `back` are written
/// by this launch alone.
#[expect(clippy::too_many_arguments, reason = "a kernel takes its arrays one by one")]
unsafe fn back_output(
    grid: Grid,
    hidden: *const f32,
    w2: *const f32,
    delta: *const f32,
    g2: *mut f32,
    h2: *mut f32,
    back: *mut f32,
    n: usize,
) {
    let scale = 1.0 / n as f32;
    for k in (grid.worker..CLASSES).step_by(grid.workers) {
        let mut sum = 0f32;
        for s in 0..n {
            // SAFETY: `s < n` and `k < CLASSES`.
            sum += unsafe { delta.add(s * CLASSES + k).read() };
        }
        // SAFETY: `k < CLASSES`, `j < HIDDEN`; this core alone writes row `k`.
        unsafe {
            h2.add(k).write(sum * scale);
            for j in 0..HIDDEN {
                g2.add(k * HIDDEN + j).write(dot(0.0, delta.add(k), CLASSES, hidden.add(j), HIDDEN, n) * scale);
            }
        }
    }
    for s in (grid.worker..n).step_by(grid.workers) {
        for j in 0..HIDDEN {
            // SAFETY: `s < n` and `j < HIDDEN`; this core alone writes row `s`.
            unsafe {
                let on = hidden.add(s * HIDDEN + j).read() > 0.0;
                let sum = if on { dot(0.0, delta.add(s * CLASSES), 1, w2.add(j), HIDDEN, CLASSES) } else { 0.0 };
                back.add(s * HIDDEN + j).write(sum);
            }
        }
    }
}

/// The slopes of the hidden layer's weights, averaged over the batch; a core takes every `workers`th hidden unit.
///
/// # Safety
/// The arrays have the shapes the module states, for `n` samples; `g1` has the shape of `w1` and `h1` that of `b1`. `g1` and `h1` are written by this
/// launch alone.
unsafe fn back_hidden(grid: Grid, x: *const f32, back: *const f32, g1: *mut f32, h1: *mut f32, n: usize) {
    let scale = 1.0 / n as f32;
    for j in (grid.worker..HIDDEN).step_by(grid.workers) {
        let mut sum = 0f32;
        let mut row = [0f32; PIXELS];
        for s in 0..n {
            // SAFETY: `s < n`, `j < HIDDEN`, `i < PIXELS`.
            unsafe {
                let slope = back.add(s * HIDDEN + j).read();
                sum += slope;
                for (i, cell) in row.iter_mut().enumerate() {
                    *cell += slope * x.add(s * PIXELS + i).read();
                }
            }
        }
        // SAFETY: `j < HIDDEN` and `i < PIXELS`; this core alone writes row `j`.
        unsafe {
            h1.add(j).write(sum * scale);
            for (i, cell) in row.iter().enumerate() {
                g1.add(j * PIXELS + i).write(cell * scale);
            }
        }
    }
}
