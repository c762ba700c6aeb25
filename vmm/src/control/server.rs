//! The side that is asked: a thread of the guest's process, which does one thing at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{debug, warn};

use super::{Answer, GuestInfo, Request};
use crate::lifecycle::Stop;
use crate::snapshot::{self, SnapshotError};
use crate::vm::RunningVm;

/// A request is a line of a few hundred bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// Who has connected says at once what it wants, and takes its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A guest's control socket, which is served.
pub struct Control {
    /// Held while something is being done.
    turn: Arc<Mutex<()>>,
}

impl Control {
    /// Serves requests for `vm` that come to `listener`, until the process ends.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn serve(vm: Arc<RunningVm>, listener: UnixListener) -> io::Result<Self> {
        let turn = Arc::new(Mutex::new(()));
        let mine = turn.clone();
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || listen(&vm, &listener, &mine))?;
        Ok(Self { turn })
    }

    /// Waits until what is being done is done, and lets nothing be begun any more: what a user has stored is whole
    /// when the process ends.
    pub fn finish(&self) {
        std::mem::forget(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn listen(vm: &RunningVm, listener: &UnixListener, turn: &Mutex<()>) {
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            // The caller has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return warn!("the control socket is lost: {error}"),
        };
        if let Err(error) = converse(vm, stream, turn) {
            debug!("a connection to the control socket: {error}");
        }
    }
}

fn converse(vm: &RunningVm, mut stream: UnixStream, turn: &Mutex<()>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_REQUEST)).read_line(&mut line)?;
    // Until the answer is out: the process may end after it, not before.
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = match serde_json::from_str(&line) {
        Ok(request) => answer(vm, request).unwrap_or_else(|error| Answer::Failed(error.to_string())),
        Err(error) => Answer::Failed(format!("the request is none: {error}")),
    };
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}

fn answer(vm: &RunningVm, request: Request) -> Result<Answer, SnapshotError> {
    match request {
        Request::Snapshot(options) => snapshot::take(vm, &options).map(Answer::Taken),
        Request::Rewind { directory, disks } => snapshot::rewind(vm, &directory, disks).map(Answer::Rewound),
        Request::Inspect => Ok(Answer::Guest(Box::new(GuestInfo::of(vm)?))),
        Request::Pause => Ok(vm.hold().map(|()| Answer::Done)?),
        Request::Resume => {
            vm.release();
            Ok(Answer::Done)
        }
        Request::Kill => {
            vm.stop(Stop::Ended);
            Ok(Answer::Done)
        }
    }
}
