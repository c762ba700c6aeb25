//! What the event loop waits for: everything anew after a rest, and of each connection what its state says.

use event_manager::{EventOps, EventSet, Events};
use tracing::debug;

use super::super::super::{forget, watch};
use super::super::connection::Connection;
use super::super::token;
use super::Switchboard;

impl Switchboard {
    /// The event loop waits for nothing any more.
    pub fn forget_watched(&mut self) {
        self.callers.forget_watched();
        for (_, connection) in self.table.all_mut() {
            connection.watched = None;
        }
    }

    /// Has the event loop wait for everything that there is to hear, after it has waited for nothing.
    pub fn watch_all(&mut self, ops: &mut EventOps) {
        self.callers.watch_all(ops);
        for (number, connection) in self.table.all_mut() {
            let interest = connection.interest(self.guest_has_buffers);
            set_watched(connection, number, interest, ops);
        }
    }
}

/// Has the event loop wait for `interest`, and for nothing else, of a connection's socket.
pub(super) fn set_watched(
    connection: &mut Connection,
    number: usize,
    interest: Option<EventSet>,
    ops: &mut EventOps,
) {
    let before = std::mem::replace(&mut connection.watched, interest);
    let Some(socket) = connection.socket().filter(|_| before != interest) else {
        return;
    };
    let token = token::CONNECTIONS + number as u32;
    match (before, interest) {
        (None, Some(set)) => watch(ops, socket, set, token),
        (Some(_), None) => forget(ops, socket),
        (Some(_), Some(set)) => {
            if let Err(error) = ops.modify(Events::with_data(socket, token, set)) {
                debug!("vsock: the event loop does not change what it waits for: {error}");
            }
        }
        (None, None) => {}
    }
}
