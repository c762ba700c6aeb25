//! Fuzz targets: each takes any bytes as what a hostile guest does, and returns. A panic, an endless loop or memory that
//! grows is a bug.
//!
//! libfuzzer drives them (`make fuzz`), and `make test` replays what it has found so far. There is no KVM in here:
//! the guest is a script that writes registers and memory.

mod balloon;
mod block;
mod guest;
mod net;
mod queue;
mod vsock;

use std::sync::Arc;

use devices::virtio::rng::Rng;

/// A fuzz target.
pub struct Target {
    /// Its name, which is also its corpus's.
    pub name: &'static str,
    /// Runs it on one input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "queue",
        run: queue::walk,
    },
    Target {
        name: "block",
        run: |data| guest::drive(block::device(), data),
    },
    Target {
        name: "net",
        run: net::drive_stream,
    },
    Target {
        name: "net-pairs",
        run: net::drive_pairs,
    },
    Target {
        name: "vsock",
        run: |data| guest::drive(vsock::device(), data),
    },
    Target {
        name: "balloon",
        run: |data| guest::drive(balloon::device(), data),
    },
    Target {
        name: "rng",
        run: |data| guest::drive(Arc::new(Rng::default()), data),
    },
];

/// Runs the target of this name on `data`.
///
/// # Panics
/// If there is no such target; or if the fuzzer has found a bug.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target's name").run)(data);
}
