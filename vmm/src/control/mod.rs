//! What a user can ask of a running guest: a line of JSON to its control socket, and a line of JSON back.

mod client;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{ControlError, ask};
pub use server::Control;

use crate::config::VmConfig;
use crate::snapshot::{Rewound, SnapshotOptions, Taken};

/// What a running guest is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Take a snapshot.
    Snapshot(SnapshotOptions),
    /// Go back to a snapshot.
    Rewind {
        /// The snapshot's directory.
        directory: PathBuf,
        /// What the guest's disks hold is put back, too.
        #[serde(default)]
        disks: bool,
    },
    /// Say what it was built from.
    Config,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A snapshot has been taken.
    Taken(Taken),
    /// The guest is where the snapshot was.
    Rewound(Rewound),
    /// What the guest was built from, with absolute paths.
    Config(Box<VmConfig>),
    /// It could not be done: a sentence.
    Failed(String),
}
