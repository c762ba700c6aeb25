//! The HTTP API of a guest, on Unix sockets: Firecracker's where posada can do the same, and posada's own under `/posada/v1`.
//!
//! docs/api.md tells what there is. Nothing here runs on a thread of the guest's: who asks, and how, does not hold it up.

mod firecracker;
mod instance;
mod output;
mod own;
mod reply;
mod server;
mod streams;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

pub use firecracker::{API_VERSION, Logger, Metrics, level_of};
pub use instance::Instance;
pub use output::open_output;
pub(crate) use own::{CONSOLE, EVENTS, route_of};
pub(crate) use streams::PROTOCOL;

use crate::console::End;
use server::{Call, Server, Service};

/// Bytes that a request's body may have unless the user says else: as in Firecracker.
pub const MAX_BODY: usize = 51_200;

/// An API that is served.
pub struct Api {
    instance: Arc<Instance>,
    server: Server,
}

impl Api {
    /// Serves requests about `instance` that come to these sockets, with bodies of at most so many bytes.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn serve(instance: Arc<Instance>, listeners: Vec<UnixListener>, max_body: usize) -> io::Result<Self> {
        let server = Server::start(listeners, instance.clone(), max_body)?;
        Ok(Self { instance, server })
    }

    /// Waits until what is being done is done and told, how the guest has ended, too, and lets nothing be begun any more: what a user has
    /// stored is whole when the process ends.
    pub fn finish(self, end: &End) {
        self.instance.finish(end);
        self.server.finish();
    }
}
