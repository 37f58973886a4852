//! One figure beside its floor.

use super::Timed;
use crate::failure::Failure;
use crate::measure::median;
use serde::Serialize;

/// A row of `gmem bench`. The names of the fields are the interface of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The same without gmem, or the limit the figure is held against.
    pub(crate) floor: f64,
    /// `value / floor`; nothing if the floor is zero.
    pub(crate) ratio: Option<f64>,
}

impl Row {
    /// A row.
    pub(crate) fn new(name: &'static str, unit: &'static str, value: f64, floor: f64) -> Self {
        Self { name, value, unit, floor, ratio: (floor != 0.0).then(|| value / floor) }
    }

    /// The row's cells in the table.
    pub(crate) fn cells(&self) -> Vec<String> {
        let ratio = self.ratio.map_or("-".to_owned(), |r| format!("{r:.2}"));
        vec![self.name.to_owned(), figure(self.value), self.unit.to_owned(), figure(self.floor), ratio]
    }
}

/// Three digits or so, whatever the size.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Medians of `times` samples of each, taken in turn so that whatever disturbs the machine disturbs both.
pub(crate) fn interleave(times: usize, floor: &mut dyn Timed, value: &mut dyn Timed) -> Result<(f64, f64), Failure> {
    // The first turns find cold tables and sleeping threads on both sides.
    for _ in 0..times.div_ceil(10) {
        floor.once()?;
        value.once()?;
    }
    let (mut floors, mut values) = (Vec::with_capacity(times), Vec::with_capacity(times));
    for _ in 0..times {
        floors.push(floor.once()?);
        values.push(value.once()?);
    }
    Ok((median(&mut floors), median(&mut values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(f64);
    impl Timed for Count {
        fn once(&mut self) -> Result<f64, Failure> {
            self.0 += 1.0;
            Ok(self.0)
        }
    }

    #[test]
    fn samples_are_taken_in_turn_after_a_warm_up() {
        assert_eq!(interleave(11, &mut Count(0.0), &mut Count(100.0)).unwrap(), (8.0, 108.0));
    }

    #[test]
    fn a_floor_of_zero_has_no_ratio() {
        let row = Row::new("idle_cpu", "s", 0.001, 0.0);
        assert_eq!(row.cells(), ["idle_cpu", "0.0010", "s", "0", "-"]);
        assert_eq!(serde_json::to_value(&row).unwrap()["ratio"], serde_json::Value::Null);
        assert_eq!(Row::new("x", "µs", 300.0, 200.0).ratio, Some(1.5));
    }
}
