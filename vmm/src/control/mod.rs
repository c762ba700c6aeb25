//! What a user can ask of a running guest: a line of JSON to its control socket, and a line of JSON back.

mod client;
mod info;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{ControlError, ask};
pub use info::GuestInfo;
pub use server::Control;

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
    /// Say what it is and how it is.
    Inspect,
    /// Rest until it is told to go on.
    Pause,
    /// Go on.
    Resume,
    /// End at once, as a machine whose power is cut.
    Kill,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A snapshot has been taken.
    Taken(Taken),
    /// The guest is where the snapshot was.
    Rewound(Rewound),
    /// What the guest is.
    Guest(Box<GuestInfo>),
    /// It is so.
    Done,
    /// It could not be done: a sentence.
    Failed(String),
}
