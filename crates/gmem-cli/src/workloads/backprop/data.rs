//! The handwritten digits (`data/README.md` names their source and license).

use super::random::Random;

/// Pixels of an image.
pub(crate) const PIXELS: usize = 64;
/// Kinds of digits.
pub(crate) const CLASSES: usize = 10;
/// Images in the file.
pub(crate) const IMAGES: usize = 1797;
/// Images to train on.
pub(crate) const TRAIN: usize = 1497;
/// Images held out.
pub(crate) const TEST: usize = IMAGES - TRAIN;

static FILE: &str = include_str!("../../../data/digits.csv");

/// Images with what they show.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    /// One image after the other, each pixel from 0 to 1.
    pub(crate) pixels: Vec<f32>,
    /// What each shows.
    pub(crate) labels: Vec<u32>,
}

/// The images to train on and those held out, drawn by `seed`.
pub(crate) fn split(seed: u64) -> (Images, Images) {
    let mut lines: Vec<&str> = FILE.lines().collect();
    assert_eq!(lines.len(), IMAGES, "the file in the program is the whole file");
    Random::new(seed).shuffle(lines.len(), |a, b| lines.swap(a, b));
    let (train, test) = lines.split_at(TRAIN);
    (parse(train), parse(test))
}

/// Reads lines of 64 pixels and a label. The file is part of the program, so a line that is not that is a defect of the program.
fn parse(lines: &[&str]) -> Images {
    let mut images = Images { pixels: Vec::with_capacity(lines.len() * PIXELS), labels: Vec::with_capacity(lines.len()) };
    for line in lines {
        let numbers: Vec<u8> = line.split(',').map(|n| n.parse().expect("a number")).collect();
        let (label, pixels) = numbers.split_last().expect("a line is not empty");
        assert!(pixels.len() == PIXELS && usize::from(*label) < CLASSES && pixels.iter().all(|p| *p <= 16), "{line}");
        images.pixels.extend(pixels.iter().map(|p| f32::from(*p) / 16.0));
        images.labels.push(u32::from(*label));
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_covers_every_image_once() {
        let (train, test) = split(1);
        assert_eq!((train.labels.len(), test.labels.len()), (TRAIN, TEST));
        assert_eq!(train.pixels.len(), TRAIN * PIXELS);
        let count = |digit: u32| [&train, &test].iter().flat_map(|i| &i.labels).filter(|l| **l == digit).count();
        let counts: Vec<usize> = (0..10).map(count).collect();
        // The class sizes of the published data set.
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert_ne!(split(2).1.labels, test.labels);
    }
}
