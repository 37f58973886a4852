//! Measuring: medians, and how fast this machine copies memory.

mod copy;

pub(crate) use copy::{CopySpeed, warm};

/// The middle of the samples, or the mean of the two in the middle. The order of `samples` is lost.
///
/// # Panics
/// If there is no sample.
pub(crate) fn median(samples: &mut [f64]) -> f64 {
    assert!(!samples.is_empty(), "a median needs a sample");
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len() % 2 == 1 { samples[middle] } else { (samples[middle - 1] + samples[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians_do_not_follow_outliers() {
        assert_eq!(median(&mut [3.0, 1.0, 1000.0]), 3.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 1000.0]), 3.0);
        assert_eq!(median(&mut [7.0]), 7.0);
    }
}
