//! The training: the device computes the passes; the CPU shuffles the samples and updates the weights, in the same memory.

use super::data::{CLASSES, Images, PIXELS, TEST, TRAIN};
use super::kernels::HIDDEN;
use super::random::Random;
use super::step::{self, Layer};
use crate::engine::Engine;
use crate::failure::Failure;
use crate::progress::Phase;
use std::time::{Duration, Instant};

/// Samples of one step.
pub(crate) const BATCH: usize = 32;

/// How far a step goes down the slope.
const RATE: f32 = 0.2;

/// What to train.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub(crate) epochs: u32,
    pub(crate) seed: u64,
}

/// How one epoch ended.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Epoch {
    /// The mean loss over the training samples, as they were met.
    pub(crate) loss: f32,
    /// The share of the held-out samples recognized.
    pub(crate) accuracy: f64,
}

/// A finished training.
#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) epochs: Vec<Epoch>,
    /// Every array the training changed, by name.
    pub(crate) arrays: Vec<(&'static str, Vec<f32>)>,
    /// The time in launches.
    pub(crate) device: Duration,
}

/// Everything in unified memory.
struct Net<'e, E: Engine> {
    engine: &'e E,
    pixels: E::Buffer<f32>,
    labels: E::Buffer<u32>,
    test_pixels: E::Buffer<f32>,
    test_labels: E::Buffer<u32>,
    first: Layer<E::Buffer<f32>>,
    second: Layer<E::Buffer<f32>>,
    first_slopes: Layer<E::Buffer<f32>>,
    second_slopes: Layer<E::Buffer<f32>>,
    hidden: E::Buffer<f32>,
    back: E::Buffer<f32>,
    delta: E::Buffer<f32>,
    loss: E::Buffer<f32>,
    device: Duration,
}

/// The bytes of the buffers, in the order `Net::new` makes them.
pub(crate) fn buffer_bytes() -> Vec<u64> {
    let layers = [HIDDEN * PIXELS, HIDDEN, CLASSES * HIDDEN, CLASSES];
    let samples = [TRAIN * PIXELS, TRAIN, TEST * PIXELS, TEST];
    let batch = [BATCH * HIDDEN, BATCH * HIDDEN, BATCH * CLASSES, BATCH];
    samples.iter().chain(&layers).chain(&layers).chain(&batch).map(|n| (n * size_of::<f32>()) as u64).collect()
}

/// The pieces that each kind of launch touches, in the order of [`step`]'s functions. Samples may lie across a page boundary, as may labels.
pub(crate) fn launches() -> Vec<Vec<u64>> {
    let (samples, hidden, delta) = ([BATCH * PIXELS, 1], BATCH * HIDDEN, BATCH * CLASSES);
    let (first, second) = ([HIDDEN * PIXELS, HIDDEN], [CLASSES * HIDDEN, CLASSES]);
    let launches = [
        [&samples[..], &first, &[hidden]].concat(),
        [&[hidden], &second[..], &[BATCH, 1], &[delta, BATCH]].concat(),
        [&[hidden, second[0], delta][..], &second, &[hidden]].concat(),
        [&samples[..], &[hidden], &first].concat(),
    ];
    launches.into_iter().map(|pieces| pieces.into_iter().map(|n| (n * size_of::<f32>()) as u64).collect()).collect()
}

impl<'e, E: Engine> Net<'e, E> {
    fn new(engine: &'e E, train: &Images, test: &Images, random: &mut Random) -> Result<Self, Failure> {
        let pixels = filled(engine, &train.pixels)?;
        let labels = filled(engine, &train.labels)?;
        let test_pixels = filled(engine, &test.pixels)?;
        let test_labels = filled(engine, &test.labels)?;
        let mut first = layer(engine, HIDDEN, PIXELS)?;
        let mut second = layer(engine, CLASSES, HIDDEN)?;
        for (layer, ends) in [(&mut first, HIDDEN + PIXELS), (&mut second, CLASSES + HIDDEN)] {
            // The range that keeps the size of signals and slopes from layer to layer (Glorot and Bengio).
            let range = (6.0 / ends as f32).sqrt();
            layer.weights.iter_mut().for_each(|w| *w = random.symmetric() * range);
        }
        Ok(Self {
            engine,
            pixels,
            labels,
            test_pixels,
            test_labels,
            first,
            second,
            first_slopes: layer(engine, HIDDEN, PIXELS)?,
            second_slopes: layer(engine, CLASSES, HIDDEN)?,
            hidden: engine.zeroed(BATCH * HIDDEN)?,
            back: engine.zeroed(BATCH * HIDDEN)?,
            delta: engine.zeroed(BATCH * CLASSES)?,
            loss: engine.zeroed(BATCH)?,
            device: Duration::ZERO,
        })
    }

    /// Brings the training samples into a new order, in place.
    fn shuffle(&mut self, random: &mut Random) {
        let (pixels, labels) = (&mut *self.pixels, &mut *self.labels);
        random.shuffle(TRAIN, |a, b| {
            labels.swap(a, b);
            if a != b {
                let (low, high) = pixels.split_at_mut(a.max(b) * PIXELS);
                low[a.min(b) * PIXELS..][..PIXELS].swap_with_slice(&mut high[..PIXELS]);
            }
        });
    }

    /// Forward and backward over the samples from `start` on; then the CPU updates. Returns the sum of the losses.
    fn step(&mut self, start: usize) -> Result<f32, Failure> {
        let n = BATCH.min(TRAIN - start);
        let x = &self.pixels[start * PIXELS..(start + n) * PIXELS];
        let labels = &self.labels[start..start + n];
        let (hidden, back) = (&mut self.hidden[..n * HIDDEN], &mut self.back[..n * HIDDEN]);
        let (delta, loss) = (&mut self.delta[..n * CLASSES], &mut self.loss[..n]);
        let started = Instant::now();
        step::hidden(self.engine, x, &self.first, hidden)?;
        step::output(self.engine, hidden, &self.second, labels, delta, loss)?;
        step::back_output(self.engine, hidden, &self.second, delta, &mut self.second_slopes, back)?;
        step::back_hidden(self.engine, x, back, &mut self.first_slopes)?;
        self.device += started.elapsed();
        for (layer, slopes) in [(&mut self.first, &self.first_slopes), (&mut self.second, &self.second_slopes)] {
            descend(&mut layer.weights, &slopes.weights);
            descend(&mut layer.biases, &slopes.biases);
        }
        Ok(loss.iter().sum())
    }

    /// The share of the held-out samples whose likeliest digit is the right one.
    fn accuracy(&mut self) -> Result<f64, Failure> {
        let mut right = 0;
        for start in (0..TEST).step_by(BATCH) {
            let n = BATCH.min(TEST - start);
            let labels = &self.test_labels[start..start + n];
            let x = &self.test_pixels[start * PIXELS..(start + n) * PIXELS];
            let (hidden, delta) = (&mut self.hidden[..n * HIDDEN], &mut self.delta[..n * CLASSES]);
            let started = Instant::now();
            step::hidden(self.engine, x, &self.first, hidden)?;
            step::output(self.engine, hidden, &self.second, labels, delta, &mut self.loss[..n])?;
            self.device += started.elapsed();
            // The slope is the probability, minus one at the label.
            let likeliest = |row: &[f32], label: u32| {
                let p = |k: usize| row[k] + if k == label as usize { 1.0 } else { 0.0 };
                (0..CLASSES).max_by(|a, b| p(*a).total_cmp(&p(*b)))
            };
            right += delta.chunks(CLASSES).zip(labels).filter(|(row, label)| likeliest(row, **label) == Some(**label as usize)).count();
        }
        Ok(right as f64 / TEST as f64)
    }

    fn arrays(&self) -> Vec<(&'static str, Vec<f32>)> {
        let named = [
            ("samples", &self.pixels),
            ("hidden weights", &self.first.weights),
            ("hidden biases", &self.first.biases),
            ("output weights", &self.second.weights),
            ("output biases", &self.second.biases),
            ("hidden weight slopes", &self.first_slopes.weights),
            ("hidden bias slopes", &self.first_slopes.biases),
            ("output weight slopes", &self.second_slopes.weights),
            ("output bias slopes", &self.second_slopes.biases),
            ("hidden activations", &self.hidden),
            ("hidden deltas", &self.back),
            ("output deltas", &self.delta),
            ("losses", &self.loss),
        ];
        named.into_iter().map(|(name, buffer)| (name, buffer.to_vec())).collect()
    }
}

fn filled<E: Engine, T: bytemuck::Pod + Send + Sync>(engine: &E, values: &[T]) -> Result<E::Buffer<T>, Failure> {
    let mut buffer = engine.zeroed::<T>(values.len())?;
    buffer.copy_from_slice(values);
    Ok(buffer)
}

fn layer<E: Engine>(engine: &E, outputs: usize, inputs: usize) -> Result<Layer<E::Buffer<f32>>, Failure> {
    Ok(Layer { weights: engine.zeroed(outputs * inputs)?, biases: engine.zeroed(outputs)? })
}

fn descend(weights: &mut [f32], slopes: &[f32]) {
    for (weight, slope) in weights.iter_mut().zip(slopes) {
        *weight -= RATE * slope;
    }
}

/// Trains from the start. `phase` advances by one per epoch.
pub(crate) fn train<E: Engine>(engine: &E, params: Params, images: &(Images, Images), phase: &Phase) -> Result<Trained, Failure> {
    let mut random = Random::new(params.seed);
    let mut net = Net::new(engine, &images.0, &images.1, &mut random)?;
    let mut epochs = Vec::new();
    for _ in 0..params.epochs {
        net.shuffle(&mut random);
        let mut loss = 0f32;
        for start in (0..TRAIN).step_by(BATCH) {
            loss += net.step(start)?;
        }
        epochs.push(Epoch { loss: loss / TRAIN as f32, accuracy: net.accuracy()? });
        phase.advance(1);
    }
    Ok(Trained { epochs, arrays: net.arrays(), device: net.device })
}
