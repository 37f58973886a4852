//! Sizes as people write them.

/// Why a text is not a size.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// No digits, or something that is neither a digit nor a unit.
    NotANumber,
    /// The letters after the number are no unit.
    UnknownUnit(String),
    /// The number is no whole number of bytes, such as `0.3KiB`.
    NotWhole,
    /// More than fits in 64 bits.
    TooLarge,
}

impl std::fmt::Display for SizeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotANumber => f.write_str("a size is a number and a unit, such as 600MiB, 4k or 1.5GiB"),
            Self::UnknownUnit(unit) => {
                write!(f, "`{unit}` is no unit; k, M, G, T, KiB, MiB, GiB and TiB are powers of 1024, kB, MB, GB and TB powers of 1000")
            }
            Self::NotWhole => f.write_str("this is not a whole number of bytes"),
            Self::TooLarge => f.write_str("this is more than 2^64 - 1 bytes"),
        }
    }
}

impl std::error::Error for SizeError {}

/// Reads a size: digits with at most one point, then an optional unit.
///
/// A single letter means a power of 1024, because `4k` beside `--page-size` can only mean 4096. The arithmetic is exact: a size that
/// went through a floating-point number would miss being a multiple of the page size by a byte.
pub(crate) fn parse(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(SizeError::NotANumber);
    }
    let unit = unit_bytes(unit.trim())?;
    let mut bytes = digits(whole)?.checked_mul(unit).ok_or(SizeError::TooLarge)?;
    if !fraction.is_empty() {
        let scale = u32::try_from(fraction.len()).ok().and_then(|n| 10u128.checked_pow(n)).ok_or(SizeError::NotWhole)?;
        let scaled = digits(fraction)?.checked_mul(unit).ok_or(SizeError::NotWhole)?;
        if !scaled.is_multiple_of(scale) {
            return Err(SizeError::NotWhole);
        }
        bytes += scaled / scale;
    }
    u64::try_from(bytes).map_err(|_| SizeError::TooLarge)
}

/// Reads a number of things: as [`parse`], but not zero.
pub(crate) fn count(text: &str) -> Result<u64, String> {
    match parse(text) {
        Ok(0) => Err("there must be at least one".to_owned()),
        Ok(count) => Ok(count),
        Err(SizeError::NotANumber) => Err("a count is a number, such as 1000000, 64k or 100Mi".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

fn digits(text: &str) -> Result<u128, SizeError> {
    text.parse::<u64>().map(u128::from).map_err(|_| if text.is_empty() { SizeError::NotANumber } else { SizeError::TooLarge })
}

fn unit_bytes(unit: &str) -> Result<u128, SizeError> {
    let power = |base: u128, letter: char| -> Option<u128> {
        let exponent = match letter.to_ascii_lowercase() {
            'k' => 1,
            'm' => 2,
            'g' => 3,
            't' => 4,
            _ => return None,
        };
        Some(base.pow(exponent))
    };
    let letters: Vec<char> = unit.chars().collect();
    let bytes = match letters.as_slice() {
        [] | ['B' | 'b'] => Some(1),
        [letter] | [letter, 'i'] | [letter, 'i', 'B' | 'b'] => power(1024, *letter),
        [letter, 'B' | 'b'] => power(1000, *letter),
        _ => None,
    };
    bytes.ok_or_else(|| SizeError::UnknownUnit(unit.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("4KiB", 4096),
            ("4kib", 4096),
            ("64 KiB", 65536),
            ("600MiB", 600 << 20),
            ("2m", 2 << 20),
            ("2GiB", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("0.5k", 512),
            ("1T", 1 << 40),
            ("1kB", 1000),
            ("2.5MB", 2_500_000),
            ("17B", 17),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn counts_are_sizes_but_not_zero() {
        assert_eq!((count("100Mi"), count("7")), (Ok(100 << 20), Ok(7)));
        assert!(count("0").is_err() && count("-1").is_err() && count("x").unwrap_err().contains("100Mi"));
    }

    #[test]
    fn refuses_the_rest_with_the_reason() {
        for text in ["", "k", "MiB", ".5k", "1.k", "1..5k", "-1", "+4k"] {
            assert_eq!(parse(text), Err(SizeError::NotANumber), "{text}");
        }
        for text in ["4x", "4kk", "4KiBs", "1e9", "0x1000"] {
            assert!(matches!(parse(text), Err(SizeError::UnknownUnit(_))), "{text}");
        }
        for text in ["0.3KiB", "1.5", "0.00000000000000000000000000000000000000001T"] {
            assert!(matches!(parse(text), Err(SizeError::NotWhole)), "{text}");
        }
        for text in ["18446744073709551616", "16777216T", "99999999999999999999999999"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge), "{text}");
        }
    }
}
