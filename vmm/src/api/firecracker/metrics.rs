//! `/metrics`: what a guest does, as lines of JSON in a file, by the names that Firecracker has for it. Each line tells what has been
//! added since the one before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::open_output;
use crate::metrics::Group;

/// What a user wants of the metrics.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Metrics {
    /// A file or a named pipe.
    pub metrics_path: PathBuf,
    /// Each line with the guest's id.
    #[serde(default)]
    pub emit_id: bool,
    /// Each line with this, too.
    #[serde(default)]
    pub properties: Option<BTreeMap<String, String>>,
}

impl Metrics {
    /// Lines in this file, and nothing else.
    pub fn to(metrics_path: PathBuf) -> Self {
        Self {
            metrics_path,
            emit_id: false,
            properties: None,
        }
    }
}

/// Counts by Firecracker's names: those of a group, by its name.
type Counts = BTreeMap<String, BTreeMap<&'static str, u64>>;

/// Where the lines go.
pub struct MetricsFile {
    file: File,
    /// What every line has.
    head: Map<String, Value>,
    /// What the lines so far have told.
    told: Counts,
    /// Only a part of the last line has been written.
    torn: bool,
}

impl MetricsFile {
    /// Opens it. If it is a pipe that is full, what would be written is left for the next line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(metrics: &Metrics, id: &str) -> Result<Self, String> {
        let path = &metrics.metrics_path;
        let opened = open_output(path);
        let mut head = Map::new();
        if metrics.emit_id {
            head.insert("id".to_owned(), id.into());
        }
        if let Some(properties) = &metrics.properties {
            head.insert("properties".to_owned(), json!(properties));
        }
        Ok(Self {
            file: opened.map_err(|error| format!("cannot open the metrics '{}': {error}", path.display()))?,
            head,
            told: Counts::new(),
            torn: false,
        })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// It cannot be written. The next one tells what this one would have.
    pub fn write(&mut self, groups: &[Group], requests: &Requests) -> io::Result<()> {
        let mut counts = requests.counts();
        groups.iter().for_each(|group| add(&mut counts, group));
        let mut line = self.head.clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        line.insert("utc_timestamp_ms".to_owned(), json!(now.as_millis() as u64));
        for (group, counts) in &counts {
            let told = self.told.get(group);
            let news: BTreeMap<_, _> = counts
                .iter()
                .map(|(name, count)| {
                    let told = told.and_then(|told| told.get(name)).copied();
                    (*name, count.saturating_sub(told.unwrap_or(0)))
                })
                .collect();
            line.insert(group.clone(), json!(news));
        }
        let end = if self.torn { "\n" } else { "" };
        let text = format!("{end}{}\n", Value::Object(line));
        self.torn = true;
        self.file.write_all(text.as_bytes())?;
        self.torn = false;
        self.told = counts;
        Ok(())
    }
}

/// What a part's counters are called in posada, and in Firecracker.
type Names = &'static [(&'static str, &'static str)];

const VCPU: Names = &[
    ("port_reads", "exit_io_in"),
    ("port_writes", "exit_io_out"),
    ("mmio_reads", "exit_mmio_read"),
    ("mmio_writes", "exit_mmio_write"),
    ("crashes", "failures"),
];
const BLOCK: Names = &[
    ("reads", "read_count"),
    ("read_bytes", "read_bytes"),
    ("writes", "write_count"),
    ("written_bytes", "write_bytes"),
    ("flushes", "flush_count"),
    ("errors", "execute_fails"),
    ("stalls", "rate_limiter_throttled_events"),
    ("guest_errors", "invalid_reqs_count"),
];
const NET: Names = &[
    ("rx_frames", "rx_packets_count"),
    ("rx_bytes", "rx_bytes_count"),
    ("rx_dropped", "rx_fails"),
    ("rx_starved", "no_rx_avail_buffer"),
    ("rx_stalls", "rx_rate_limiter_throttled"),
    ("tx_frames", "tx_packets_count"),
    ("tx_bytes", "tx_bytes_count"),
    ("tx_dropped", "tx_fails"),
    ("tx_stalls", "tx_rate_limiter_throttled"),
];
const VSOCK: Names = &[
    ("rx_packets", "rx_packets_count"),
    ("rx_bytes", "rx_bytes_count"),
    ("tx_packets", "tx_packets_count"),
    ("tx_bytes", "tx_bytes_count"),
    ("connections", "conns_added"),
];
const BALLOON: Names = &[
    ("deflations", "deflate_count"),
    ("reported_bytes", "free_page_report_freed"),
];
const ENTROPY: Names = &[("bytes", "entropy_bytes")];
const UART: Names = &[
    ("output_bytes", "write_count"),
    ("input_bytes", "read_count"),
    ("lost_bytes", "missed_write_count"),
];

/// Adds a part's counts to those of its kind and, for disks and networks, to its own.
fn add(counts: &mut Counts, group: &Group) {
    let (kind, names, has_own) = match group.part {
        "vcpu" => ("vcpu", VCPU, false),
        "block" => ("block", BLOCK, true),
        "net" => ("net", NET, true),
        "vsock" => ("vsock", VSOCK, false),
        "balloon" => ("balloon", BALLOON, false),
        "rng" => ("entropy", ENTROPY, false),
        "console" => ("uart", UART, false),
        _ => return,
    };
    let mut add_to = |to: String| {
        let counts = counts.entry(to).or_default();
        for (ours, theirs) in names {
            let metric = group.metrics.iter().find(|metric| metric.name == *ours);
            *counts.entry(theirs).or_default() += metric.map_or(0, |metric| metric.value);
        }
    };
    add_to(kind.to_owned());
    if let (true, Some((_, label))) = (has_own, group.labels.first()) {
        add_to(format!("{kind}_{label}"));
    }
}

/// What was asked for, and how often it could not be done.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Counts>);

/// What Firecracker calls requests for a path that begins so: how often there was one, and how often it failed.
const PATHS: [(&str, &str, &str); 13] = [
    ("", "instance_info_count", "instance_info_fails"),
    ("actions", "actions_count", "actions_fails"),
    ("boot-source", "boot_source_count", "boot_source_fails"),
    ("cpu-config", "cpu_cfg_count", "cpu_cfg_fails"),
    ("drives", "drive_count", "drive_fails"),
    ("logger", "logger_count", "logger_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("metrics", "metrics_count", "metrics_fails"),
    ("mmds", "mmds_count", "mmds_fails"),
    ("network-interfaces", "network_count", "network_fails"),
    ("serial", "serial_count", "serial_fails"),
    ("version", "vmm_version_count", "vmm_version_fails"),
    ("vsock", "vsock_count", "vsock_fails"),
];

impl Requests {
    /// There was one.
    pub fn count(&self, method: &Method, path: &str, failed: bool) {
        let group = match *method {
            Method::GET => "get_api_requests",
            Method::PUT => "put_api_requests",
            Method::PATCH => "patch_api_requests",
            _ => return,
        };
        let path = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let Some((_, count, fails)) = PATHS.iter().find(|(name, ..)| *name == path) else {
            return;
        };
        let mut counts = self.lock();
        let counts = counts.entry(group.to_owned()).or_default();
        *counts.entry(count).or_default() += 1;
        *counts.entry(fails).or_default() += u64::from(failed);
    }

    fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::metrics::{Kind, Metric};

    fn disk(label: &str, reads: u64) -> Group {
        let reads = Metric {
            name: "reads",
            help: "",
            kind: Kind::Counter,
            value: reads,
        };
        Group {
            part: "block",
            labels: vec![("device", label.to_owned())],
            metrics: vec![reads],
        }
    }

    fn lines(path: &std::path::Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_line_tells_what_has_come_since_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics");
        let wanted = Metrics {
            emit_id: true,
            properties: Some([("room".to_owned(), "7".to_owned())].into()),
            ..Metrics::to(path.clone())
        };
        let mut file = MetricsFile::open(&wanted, "web").unwrap();
        let requests = Requests::default();
        requests.count(&Method::PUT, "/drives/root", true);
        file.write(&[disk("root", 3), disk("data", 4)], &requests)
            .unwrap();
        file.write(&[disk("root", 13), disk("data", 4)], &requests)
            .unwrap();
        let lines = lines(&path);
        let reads = |line: &Value, group: &str| line[group]["read_count"].as_u64();
        assert_eq!(lines[0]["id"], "web");
        assert_eq!(lines[0]["properties"]["room"], "7");
        assert_eq!(lines[0]["put_api_requests"]["drive_fails"], 1);
        assert_eq!(
            (reads(&lines[0], "block"), reads(&lines[0], "block_root")),
            (Some(7), Some(3))
        );
        assert_eq!(
            (reads(&lines[1], "block"), reads(&lines[1], "block_root")),
            (Some(10), Some(10))
        );
        assert_eq!(reads(&lines[1], "block_data"), Some(0));
        assert_eq!(lines[1]["put_api_requests"]["drive_count"], 0);
    }

    #[test]
    fn what_could_not_be_written_is_in_the_next_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics");
        let mut file = MetricsFile::open(&Metrics::to(path.clone()), "web").unwrap();
        let lost = File::options().write(true).open("/dev/full").unwrap();
        let kept = std::mem::replace(&mut file.file, lost);
        assert!(file.write(&[disk("root", 5)], &Requests::default()).is_err());
        file.file = kept;
        file.write(&[disk("root", 6)], &Requests::default()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let line: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["block"]["read_count"], 6);
    }

    #[test]
    fn a_line_that_could_not_be_written_to_its_end_is_a_line_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut file = MetricsFile::open(&Metrics::to(path.clone()), "web").unwrap();
        let mut pipe = open_output(&path).unwrap();
        // Lines of more bytes than are written to a pipe all or none (pipe(7), PIPE_BUF).
        let disks = |reads| {
            let disks = (0..60).map(|number| disk(&format!("disk{number}"), reads));
            disks.collect::<Vec<_>>()
        };
        let requests = Requests::default();
        let mut written = 0;
        while file.write(&disks(written), &requests).is_ok() {
            written += 1;
        }
        let mut drain = || {
            let mut text = String::new();
            let end = pipe.read_to_string(&mut text).unwrap_err();
            assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
            text
        };
        assert!(!drain().ends_with('\n'), "the last line is torn");
        file.write(&disks(1000), &requests).unwrap();
        let next = drain();
        let next: Value = serde_json::from_str(next.strip_prefix('\n').unwrap()).unwrap();
        assert_eq!(next["block_disk7"]["read_count"], 1000 - (written - 1));
    }
}
