//! What a user can ask of a running guest. The [API](crate::api) carries it: `posada` asks by the guest's control socket.

mod client;
mod info;

use std::path::{self, PathBuf};

use serde::{Deserialize, Serialize};

pub use client::{ControlError, EventStream, ask, attach};
pub use info::GuestInfo;

use crate::error::{Doing, Error as VmError};
use crate::lifecycle::Stop;
use crate::metrics::{self, Group, Stats};
use crate::snapshot::{self, Rewound, SnapshotError, SnapshotOptions, Taken};
use crate::vm::RunningVm;

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
    /// Say what it has done.
    Stats,
    /// The same as Prometheus's text.
    Metrics,
    /// Rest until it is told to go on.
    Pause,
    /// Go on.
    Resume,
    /// Shut down, as a machine whose power button is pressed.
    PowerButton,
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
    /// What it has done.
    Stats(Vec<Stats>),
    /// A text of no other form than its own.
    #[serde(skip)]
    Text(String),
    /// It is so.
    Done,
}

impl Request {
    /// The names of those that do something.
    pub(crate) const VERBS: [&'static str; 6] =
        ["snapshot", "rewind", "pause", "resume", "power-button", "kill"];
    /// Those that only ask, and what for.
    pub(crate) const QUESTIONS: [(&'static str, Self); 3] = [
        ("info", Self::Inspect),
        ("stats", Self::Stats),
        ("metrics", Self::Metrics),
    ];

    fn is_question(&self) -> bool {
        Self::QUESTIONS.iter().any(|(_, question)| question == self)
    }
}

/// Has `vm` do what it is asked for.
///
/// # Errors
/// It cannot.
pub(crate) fn perform(vm: &RunningVm, request: Request) -> Result<Answer, SnapshotError> {
    match request {
        Request::Snapshot(mut options) => {
            options.directory =
                path::absolute(&options.directory).doing("tell where the snapshot is to be")?;
            snapshot::take(vm, &options).map(Answer::Taken)
        }
        Request::Rewind { directory, disks } => snapshot::rewind(vm, &directory, disks).map(Answer::Rewound),
        Request::Inspect => Ok(Answer::Guest(Box::new(GuestInfo::of(vm)?))),
        Request::Stats => {
            let stats = measured(vm)?.into_iter().map(Stats::from);
            Ok(Answer::Stats(stats.collect()))
        }
        Request::Metrics => Ok(Answer::Text(metrics::text(vm.config().name(), &measured(vm)?))),
        Request::Pause => Ok(vm.hold().map(|()| Answer::Done)?),
        Request::Resume => {
            vm.release();
            Ok(Answer::Done)
        }
        Request::PowerButton => Ok(vm.press_power_button().map(|()| Answer::Done)?),
        Request::Kill => {
            vm.stop(Stop::Ended);
            Ok(Answer::Done)
        }
    }
}

/// What the guest has used and done.
fn measured(vm: &RunningVm) -> Result<Vec<Group>, VmError> {
    metrics::gather(vm).doing("tell what the guest has done")
}
