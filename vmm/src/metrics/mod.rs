//! What is measured of a running guest: gathered when somebody asks, out of counters that cost nothing until then.

mod process;
mod prometheus;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

use devices::counters::{Counters, Sample};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_NET, VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

use crate::lifecycle::Phase;
use crate::procfs::if_there;
use crate::vm::RunningVm;

pub use prometheus::{CONTENT_TYPE, text};

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It does: what counts is how fast.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A number, with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Lower case, with underscores.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub help: &'static str,
    /// How it goes.
    pub kind: Kind,
    /// How much it is.
    pub value: u64,
}

impl Metric {
    const fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self {
            name,
            help,
            kind: Kind::Gauge,
            value,
        }
    }

    const fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self {
            kind: Kind::Counter,
            ..Self::gauge(name, help, value)
        }
    }
}

impl From<Sample> for Metric {
    fn from(Sample { name, help, value }: Sample) -> Self {
        Self::counter(name, help, value)
    }
}

/// What is measured of one part of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What kind of part it is.
    pub part: &'static str,
    /// Which one of its kind.
    pub labels: Vec<(&'static str, String)>,
    /// What there is of it.
    pub metrics: Vec<Metric>,
}

impl Group {
    fn new(
        part: &'static str,
        labels: Vec<(&'static str, String)>,
        metrics: impl IntoIterator<Item = impl Into<Metric>>,
    ) -> Self {
        Self {
            part,
            labels,
            metrics: metrics.into_iter().map(Into::into).collect(),
        }
    }
}

/// What was measured of one part of a guest, for who reads it elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// What kind of part it is: `guest`, `thread`, `vcpu`, `console`, `block`, `net`, `vsock`, `balloon`, `rng` or `queue`.
    pub part: Cow<'static, str>,
    /// Which one of its kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Cow<'static, str>, String>,
    /// By their names. Times are in nanoseconds.
    pub values: BTreeMap<Cow<'static, str>, u64>,
}

impl From<Group> for Stats {
    fn from(group: Group) -> Self {
        let labels = group.labels.into_iter();
        let metrics = group.metrics.into_iter();
        Self {
            part: group.part.into(),
            labels: labels.map(|(name, value)| (name.into(), value)).collect(),
            values: metrics.map(|metric| (metric.name.into(), metric.value)).collect(),
        }
    }
}

/// All that there is of a guest, and of this process, which has no other.
///
/// # Errors
/// /proc cannot be read.
pub fn gather(vm: &RunningVm) -> io::Result<Vec<Group>> {
    let mut groups = vec![guest(vm)?];
    let threads = if_there(process::threads())?.unwrap_or_default();
    groups.extend(threads.into_iter().map(|(name, nanoseconds)| {
        let time = Metric::counter("cpu_nanoseconds", "Time on a CPU, in nanoseconds.", nanoseconds);
        Group::new("thread", vec![("thread", name)], [time])
    }));
    groups.extend(
        vm.exit_counts()
            .enumerate()
            .map(|(index, counts)| Group::new("vcpu", vec![("vcpu", index.to_string())], counts.read())),
    );
    groups.push(Group::new("console", vec![], vm.serial().counts()));
    for (label, device) in vm.devices() {
        let labels = vec![("device", label.to_owned())];
        groups.push(Group::new(part_of(device.id()), labels, device.device_counts()));
    }
    for (label, device) in vm.devices() {
        groups.extend(device.queue_counts().enumerate().map(|(index, counts)| {
            let labels = vec![("device", label.to_owned()), ("queue", index.to_string())];
            Group::new("queue", labels, counts)
        }));
    }
    Ok(groups)
}

fn guest(vm: &RunningVm) -> io::Result<Group> {
    let config = vm.config();
    let running = vm.lifecycle().phase() == Phase::Running;
    let age = u64::try_from(vm.age().as_millis()).unwrap_or(u64::MAX);
    let mut metrics = vec![
        Metric::gauge(
            "running",
            "Whether the guest runs: 1, or 0 while it rests.",
            running.into(),
        ),
        Metric::gauge("uptime_milliseconds", "Since it was started or restored.", age),
        Metric::gauge("cpus", "Virtual CPUs.", config.cpus().into()),
        Metric::gauge("memory_bytes", "Memory that the guest has.", config.memory().0),
    ];
    metrics.extend(if_there(process::resident())?.map(|bytes| {
        Metric::gauge(
            "resident_bytes",
            "Memory of the host that posada has, with what the guest has touched of its own.",
            bytes,
        )
    }));
    metrics.extend(
        if_there(process::open_files())?
            .map(|files| Metric::gauge("open_files", "File descriptors that posada has open.", files)),
    );
    if let Some((wanted, actual)) = vm.balloon_bytes() {
        let pages = [
            Metric::gauge(
                "balloon_wanted_bytes",
                "Memory that the guest is asked to hand over.",
                wanted,
            ),
            Metric::gauge(
                "balloon_actual_bytes",
                "Memory that the guest says it has handed over.",
                actual,
            ),
        ];
        metrics.extend(pages);
    }
    Ok(Group::new("guest", vec![], metrics))
}

/// What a kind of device is called.
fn part_of(id: u32) -> &'static str {
    match id {
        VIRTIO_ID_BLOCK => "block",
        VIRTIO_ID_NET => "net",
        VIRTIO_ID_VSOCK => "vsock",
        VIRTIO_ID_BALLOON => "balloon",
        VIRTIO_ID_RNG => "rng",
        _ => "device",
    }
}
