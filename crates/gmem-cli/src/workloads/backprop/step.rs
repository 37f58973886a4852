//! The launches of the passes, with their arguments checked.

use super::data::{CLASSES, PIXELS};
use super::kernels::{BACK_HIDDEN, BACK_OUTPUT, HIDDEN, HIDDEN_LAYER, OUTPUT_LAYER};
use crate::engine::Engine;
use crate::failure::Failure;
use gmem::Args;

/// One layer's weights and biases, or their slopes.
pub(crate) struct Layer<B> {
    /// Outputs × inputs.
    pub(crate) weights: B,
    /// Outputs.
    pub(crate) biases: B,
}

impl<B: std::ops::Deref<Target = [f32]>> Layer<B> {
    fn assert_shape(&self, outputs: usize, inputs: usize) {
        assert!(self.weights.len() == outputs * inputs && self.biases.len() == outputs, "a layer of {outputs} x {inputs}");
    }
}

type Weights<E> = Layer<<E as Engine>::Buffer<f32>>;

/// Forward: the hidden layer for the samples `x`.
pub(crate) fn hidden<E: Engine>(engine: &E, x: &[f32], layer: &Weights<E>, hidden: &mut [f32]) -> Result<(), Failure> {
    layer.assert_shape(HIDDEN, PIXELS);
    let n = x.len() / PIXELS;
    assert!(x.len() == n * PIXELS && hidden.len() == n * HIDDEN);
    let args = Args::new().read(x).read(&layer.weights).read(&layer.biases).write(hidden).number(n);
    // SAFETY: these are the arguments of `HIDDEN_LAYER`, and the asserts hold the shapes it states.
    unsafe { engine.launch(&HIDDEN_LAYER, args) }
}

/// Forward: the output layer, with the loss and its slope.
pub(crate) fn output<E: Engine>(
    engine: &E,
    hidden: &[f32],
    layer: &Weights<E>,
    labels: &[u32],
    delta: &mut [f32],
    loss: &mut [f32],
) -> Result<(), Failure> {
    layer.assert_shape(CLASSES, HIDDEN);
    let n = labels.len();
    assert!(hidden.len() == n * HIDDEN && delta.len() == n * CLASSES && loss.len() == n);
    let args = Args::new().read(hidden).read(&layer.weights).read(&layer.biases).read(labels).write(delta).write(loss).number(n);
    // SAFETY: these are the arguments of `OUTPUT_LAYER`, and the asserts hold the shapes it states.
    unsafe { engine.launch(&OUTPUT_LAYER, args) }
}

/// Backward: the slopes of the output layer, and of the hidden sums.
pub(crate) fn back_output<E: Engine>(
    engine: &E,
    hidden: &[f32],
    layer: &Weights<E>,
    delta: &[f32],
    slopes: &mut Weights<E>,
    back: &mut [f32],
) -> Result<(), Failure> {
    layer.assert_shape(CLASSES, HIDDEN);
    slopes.assert_shape(CLASSES, HIDDEN);
    let n = delta.len() / CLASSES;
    assert!(delta.len() == n * CLASSES && hidden.len() == n * HIDDEN && back.len() == n * HIDDEN);
    let args = Args::new()
        .read(hidden)
        .read(&layer.weights)
        .read(delta)
        .write(&mut slopes.weights)
        .write(&mut slopes.biases)
        .write(back)
        .number(n);
    // SAFETY: these are the arguments of `BACK_OUTPUT`, and the asserts hold the shapes it states.
    unsafe { engine.launch(&BACK_OUTPUT, args) }
}

/// Backward: the slopes of the hidden layer.
pub(crate) fn back_hidden<E: Engine>(engine: &E, x: &[f32], back: &[f32], slopes: &mut Weights<E>) -> Result<(), Failure> {
    slopes.assert_shape(HIDDEN, PIXELS);
    let n = x.len() / PIXELS;
    assert!(x.len() == n * PIXELS && back.len() == n * HIDDEN);
    let args = Args::new().read(x).read(back).write(&mut slopes.weights).write(&mut slopes.biases).number(n);
    // SAFETY: these are the arguments of `BACK_HIDDEN`, and the asserts hold the shapes it states.
    unsafe { engine.launch(&BACK_HIDDEN, args) }
}
