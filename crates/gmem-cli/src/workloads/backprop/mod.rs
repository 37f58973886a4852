//! `backprop`: a small network learns handwritten digits. The device runs the forward and backward passes; the CPU shuffles the samples and updates the
//! weights between them, so pages travel in both directions at every step.

mod data;
mod kernels;
mod random;
mod step;
mod train;

pub(crate) use train::{Epoch, Params, Trained};

use crate::engine::{Engine, Plain};
use crate::failure::Failure;
use crate::progress;
use crate::setup::{Needs, Setup};
use gmem::{ByteLen, PageSize};
use train::{buffer_bytes, launches, train};

/// The share of held-out samples a finished training must recognize.
pub(crate) const GOAL: f64 = 0.95;

/// What backprop uses: by default in the smallest pages, because its data is small and pages are to travel.
pub(crate) fn needs() -> Needs {
    Needs { page_size: PageSize::Size4K, buffers: buffer_bytes(), launches: launches() }
}

/// Checks that a launch can hold what it names, if it has to.
pub(crate) fn fits(setup: &Setup) -> Result<(), Failure> {
    let least = needs().launch(setup.page_size);
    match setup.held_at_once() {
        Some(held) if held < least => Err(Failure::Usage(format!(
            "without replay a launch holds all the memory it names: --device-memory {} must be at least {} with pages of {}",
            ByteLen(held),
            ByteLen(least),
            setup.page_size
        ))),
        _ => Ok(()),
    }
}

/// Trains on `engine`.
pub(crate) fn run<E: Engine>(engine: &E, params: Params) -> Result<Trained, Failure> {
    let phase = progress::phase("training on the device", u64::from(params.epochs));
    train(engine, params, &data::split(params.seed), &phase)
}

/// Trains on the CPU alone and says how `trained` differs, if it does.
pub(crate) fn check(params: Params, trained: &Trained) -> Result<Option<String>, Failure> {
    let phase = progress::phase("training on the CPU", u64::from(params.epochs));
    let alone = train(&Plain { workers: 1 }, params, &data::split(params.seed), &phase)?;
    Ok(difference(trained, &alone))
}

/// The first element that differs in any bit.
fn difference(trained: &Trained, alone: &Trained) -> Option<String> {
    for ((name, found), (other, expected)) in trained.arrays.iter().zip(&alone.arrays) {
        assert_eq!(name, other, "both trainings list the same arrays");
        if let Some(at) = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits()) {
            return Some(format!("{name}: element {at} is {} on the CPU alone and {} here", expected[at], found[at]));
        }
    }
    let at = trained.epochs.iter().zip(&alone.epochs).position(|(a, b)| a != b)?;
    Some(format!("epoch {}: {:?} on the CPU alone and {:?} here", at + 1, alone.epochs[at], trained.epochs[at]))
}

#[cfg(test)]
mod tests {
    use super::data::{CLASSES, PIXELS};
    use super::kernels::HIDDEN;
    use super::step::Layer;
    use super::*;

    fn trained(workers: usize, epochs: u32, seed: u64) -> Trained {
        run(&Plain { workers }, Params { epochs, seed }).unwrap()
    }

    #[test]
    fn it_learns_to_read_digits() {
        for seed in [1, 2, 3] {
            let trained = trained(2, 20, seed);
            let accuracies: Vec<f64> = trained.epochs.iter().map(|e| e.accuracy).collect();
            assert!(*accuracies.last().unwrap() > GOAL, "seed {seed}: {accuracies:?}");
        }
    }

    #[test]
    fn the_number_of_cores_changes_no_bit() {
        let alone = trained(1, 2, 7);
        for workers in [2, 3, 8] {
            assert_eq!(difference(&trained(workers, 2, 7), &alone), None);
        }
    }

    #[test]
    fn a_single_wrong_bit_is_found() {
        let (mut here, alone) = (trained(1, 1, 1), trained(1, 1, 1));
        let array = &mut here.arrays[1].1;
        array[100] = f32::from_bits(array[100].to_bits() ^ 1);
        assert!(difference(&here, &alone).unwrap().starts_with("hidden weights: element 100 is"));
    }

    #[test]
    fn slopes_are_those_of_the_loss() {
        // Each slope against the difference of the loss on both sides of its weight: an error in the backward pass cannot hide.
        let (engine, (images, _)) = (Plain { workers: 2 }, data::split(1));
        let (n, mut random) = (8, random::Random::new(4));
        let mut noise = |len: usize| -> Vec<f32> { (0..len).map(|_| random.symmetric() * 0.3).collect() };
        let (x, labels) = (&images.pixels[..n * PIXELS], &images.labels[..n]);
        let mut first: Layer<Vec<f32>> = Layer { weights: noise(HIDDEN * PIXELS), biases: noise(HIDDEN) };
        let mut second: Layer<Vec<f32>> = Layer { weights: noise(CLASSES * HIDDEN), biases: noise(CLASSES) };
        let (mut hidden, mut delta, mut loss) = (vec![0f32; n * HIDDEN], vec![0f32; n * CLASSES], vec![0f32; n]);
        let mut mean = |first: &Layer<Vec<f32>>, second: &Layer<Vec<f32>>, delta: &mut [f32], hidden: &mut [f32]| -> f64 {
            step::hidden(&engine, x, first, hidden).unwrap();
            step::output(&engine, hidden, second, labels, delta, &mut loss).unwrap();
            loss.iter().map(|l| f64::from(*l)).sum::<f64>() / n as f64
        };
        mean(&first, &second, &mut delta, &mut hidden);
        let zeros = |layer: &Layer<Vec<f32>>| Layer { weights: vec![0f32; layer.weights.len()], biases: vec![0f32; layer.biases.len()] };
        let (mut slopes1, mut slopes2, mut back) = (zeros(&first), zeros(&second), vec![0f32; n * HIDDEN]);
        step::back_output(&engine, &hidden, &second, &delta, &mut slopes2, &mut back).unwrap();
        step::back_hidden(&engine, x, &back, &mut slopes1).unwrap();
        let h = 1e-2f32;
        for i in (0..HIDDEN * PIXELS).step_by(97) {
            let kept = first.weights[i];
            let mut side = |by: f32| {
                first.weights[i] = kept + by;
                mean(&first, &second, &mut delta, &mut hidden)
            };
            let slope = (side(h) - side(-h)) / f64::from(2.0 * h);
            first.weights[i] = kept;
            assert!((slope - f64::from(slopes1.weights[i])).abs() < 2e-3, "hidden weight {i}: {slope} {}", slopes1.weights[i]);
        }
        for i in (0..CLASSES * HIDDEN).step_by(13) {
            let kept = second.weights[i];
            let mut side = |by: f32| {
                second.weights[i] = kept + by;
                mean(&first, &second, &mut delta, &mut hidden)
            };
            let slope = (side(h) - side(-h)) / f64::from(2.0 * h);
            second.weights[i] = kept;
            assert!((slope - f64::from(slopes2.weights[i])).abs() < 2e-3, "output weight {i}: {slope} {}", slopes2.weights[i]);
        }
    }

    #[test]
    fn by_default_the_device_holds_a_quarter_of_the_data_in_4_kib_pages() {
        let (needs, page) = (needs(), PageSize::Size4K);
        let managed = needs.managed(page).unwrap();
        let memory = needs.device_memory(page);
        assert!(memory <= managed / 4 && memory > managed / 4 - page.bytes());
        assert!(memory >= needs.launch(page));
        // With large pages every piece is a page, and the output layer touches seven.
        assert_eq!(needs.device_memory(PageSize::Size2M), 9 * PageSize::Size2M.bytes());
    }
}
