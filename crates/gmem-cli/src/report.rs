//! The result of a run, as a table and as JSON.

use crate::output;
use crate::setup::Setup;
use crate::workloads::backprop::Epoch;
use crate::workloads::crc::{PassedOver, Problem, Sum};
use gmem::ByteLen;
use serde::Serialize;

/// What moved and what it took, as the address space counted it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Counters {
    pub(crate) faults: Faults,
    pub(crate) migrated_bytes: Migrated,
    pub(crate) evictions: u64,
    /// Of those, pages that were dropped without a copy because the host's was current.
    pub(crate) clean_evictions: u64,
    pub(crate) peak_frames: Vec<Peak>,
    pub(crate) metadata_bytes: u64,
}

/// Faults by side.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Faults {
    pub(crate) cpu: u64,
    pub(crate) device: u64,
}

/// Bytes moved by direction: host to device, device to host, device to device.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Migrated {
    pub(crate) h2d: u64,
    pub(crate) d2h: u64,
    pub(crate) d2d: u64,
}

/// The most memory of one pool in use at a time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Peak {
    pub(crate) hnode: String,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// The result of a run. The names of the fields are the interface of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) workload: &'static str,
    pub(crate) verified: bool,
    /// Why not, or how it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mismatch: Option<String>,
    pub(crate) seconds: f64,
    pub(crate) device_seconds: f64,
    pub(crate) bytes_managed: u64,
    pub(crate) device_memory: u64,
    pub(crate) device: &'static str,
    pub(crate) mode: &'static str,
    pub(crate) page_size: u64,
    pub(crate) cores: usize,
    pub(crate) replay: bool,
    pub(crate) backing: &'static str,
    pub(crate) delivery: &'static str,
    #[serde(flatten)]
    pub(crate) counters: Counters,
    /// The bytes that must cross whatever is really moved; for workloads that define it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) must_cross_bytes: Option<u64>,
    /// These over the seconds of the device phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) effective_bytes_per_second: Option<f64>,
    pub(crate) memcpy_bytes_per_second: f64,
    #[serde(flatten)]
    pub(crate) details: Details,
}

/// What only one workload has to say.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Details {
    VectorAdd { elements: u64 },
    Crc { blocks: usize, files: Vec<Sum>, passed_over: PassedOver, skipped: Vec<Problem> },
    Backprop { seed: u64, accuracy: f64, checked_against_cpu: bool, epochs: Vec<Epoch> },
}

/// A listing longer than this is cut in the table; JSON has it all.
const LISTED: usize = 10;

impl Report {
    /// A report with what is known before the work.
    pub(crate) fn new(workload: &'static str, setup: &Setup, bytes_managed: u64, details: Details) -> Self {
        Self {
            workload,
            verified: false,
            mismatch: None,
            seconds: 0.0,
            device_seconds: 0.0,
            bytes_managed,
            device_memory: setup.device_memory,
            device: setup.device_name(),
            mode: setup.mode_name(),
            page_size: setup.page_size.bytes(),
            cores: setup.cores,
            replay: setup.replay,
            backing: setup.backing_name(),
            delivery: setup.delivery_name(),
            counters: Counters::default(),
            must_cross_bytes: None,
            effective_bytes_per_second: None,
            memcpy_bytes_per_second: 0.0,
            details,
        }
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        row("workload", self.workload.to_owned());
        row("verified", if self.verified { "yes".to_owned() } else { "NO".to_owned() });
        row("device", format!("{}, {}, {} cores{}", self.device, self.mode, self.cores, if self.replay { "" } else { ", no replay" }));
        let memory = if self.device_memory == 0 { "none of its own".to_owned() } else { ByteLen(self.device_memory).to_string() };
        row("data / device memory", format!("{} / {memory}", ByteLen(self.bytes_managed)));
        row("pages", format!("{}, {} backing, {} delivery", ByteLen(self.page_size), self.backing, self.delivery));
        if let Details::Crc { passed_over, .. } = &self.details {
            row("passed over", passed_over.to_string());
        }
        row("seconds", format!("{:.2} ({:.2} on the device)", self.seconds, self.device_seconds));
        if let (Some(must), Some(effective)) = (self.must_cross_bytes, self.effective_bytes_per_second) {
            let share = 100.0 * effective / self.memcpy_bytes_per_second;
            row("must cross while the device works", ByteLen(must).to_string());
            row("effective bandwidth", format!("{} ({share:.0} % of memcpy)", bandwidth(effective)));
        }
        row("memcpy bandwidth", bandwidth(self.memcpy_bytes_per_second));
        let counters = &self.counters;
        row("faults: CPU / device", format!("{} / {}", counters.faults.cpu, counters.faults.device));
        let moved = &counters.migrated_bytes;
        row("moved: to device / to host", format!("{} / {}", ByteLen(moved.h2d), ByteLen(moved.d2h)));
        if moved.d2d > 0 {
            row("moved: between devices", ByteLen(moved.d2d).to_string());
        }
        row("evictions: all / without a copy", format!("{} / {}", counters.evictions, counters.clean_evictions));
        for peak in &counters.peak_frames {
            row(&format!("peak frames of {}", peak.hnode), format!("{} ({})", peak.frames, ByteLen(peak.bytes)));
        }
        let share = 100.0 * counters.metadata_bytes as f64 / self.bytes_managed.max(1) as f64;
        row("metadata", format!("{} ({share:.3} % of the data)", ByteLen(counters.metadata_bytes)));
        let mut text = self.details.listing();
        if let Some(mismatch) = &self.mismatch {
            text.push_str(&format!("not verified: {mismatch}\n"));
        }
        text.push_str(&output::columns(&rows));
        text
    }
}

/// Bytes per second in the unit in which memory is sold.
fn bandwidth(bytes_per_second: f64) -> String {
    format!("{:.2} GB/s", bytes_per_second / 1e9)
}

impl Details {
    /// What stands above the table; empty or with a newline at its end.
    fn listing(&self) -> String {
        let lines: Vec<String> = match self {
            Self::VectorAdd { .. } => Vec::new(),
            Self::Crc { files, .. } => {
                let more = files.len().saturating_sub(LISTED);
                let listed = files.iter().take(LISTED).map(|s| format!("{}  {:>12}  {}", s.crc32, s.bytes, output::visible(&s.path)));
                listed.chain((more > 0).then(|| format!("... and {more} more files (--json lists them)"))).collect()
            }
            Self::Backprop { epochs, .. } => {
                let line =
                    |(i, e): (usize, &Epoch)| format!("epoch {:>3}: loss {:.4}, accuracy {:5.1} %", i + 1, e.loss, 100.0 * e.accuracy);
                epochs.iter().enumerate().map(line).collect()
            }
        };
        lines.into_iter().map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Common;
    use crate::machine::Machine;
    use crate::workloads::vector_add;

    fn report() -> Report {
        let machine = Machine::permissive(8 << 30, 8 << 30);
        let setup = Setup::resolve(&Common::default(), &vector_add::needs(1 << 20), &machine).unwrap();
        let mut report = Report::new("vector-add", &setup, 24 << 20, Details::VectorAdd { elements: 1 << 20 });
        report.memcpy_bytes_per_second = 1e10;
        (report.must_cross_bytes, report.effective_bytes_per_second) = (Some(24 << 20), Some(7.5e9));
        report
    }

    #[test]
    fn json_has_the_promised_fields() {
        let json = serde_json::to_value(report()).unwrap();
        for field in ["workload", "verified", "seconds", "bytes_managed", "device_memory", "mode", "device", "evictions"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        for (outer, inner) in [("faults", "cpu"), ("faults", "device"), ("migrated_bytes", "h2d"), ("migrated_bytes", "d2h")] {
            assert!(json[outer][inner].is_u64(), "{outer}.{inner}");
        }
        assert!(json["migrated_bytes"]["d2d"].is_u64() && json["memcpy_bytes_per_second"].is_f64());
        assert_eq!(json["elements"], 1 << 20);
    }

    #[test]
    fn the_table_names_what_is_wrong() {
        let mut report = report();
        assert!(report.table().contains("75 % of memcpy"));
        report.mismatch = Some("element 3 should be 1 and is 2".to_owned());
        assert!(report.table().starts_with("not verified: element 3"));
        assert!(report.table().lines().any(|line| line.starts_with("verified") && line.ends_with("NO")));
    }
}
