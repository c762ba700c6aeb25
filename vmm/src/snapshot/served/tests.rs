use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use nix::sys::socket::{Backlog, listen};
use serde_json::Value;
use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::*;
use crate::config::ByteSize;

const SIZE: u64 = 8 << 20;

/// A handler that takes one handshake, and does no more until its connection is closed.
struct Listening {
    directory: TempDir,
    thread: JoinHandle<(Value, bool)>,
}

impl Listening {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let thread = thread::spawn(move || {
            let (connection, _) = listener.accept().unwrap();
            let mut message = [0; 1024];
            let (len, uffd) = connection.recv_with_fd(&mut message).unwrap();
            connection.recv_with_fd(&mut [0]).unwrap();
            (serde_json::from_slice(&message[..len]).unwrap(), uffd.is_some())
        });
        Self { directory, thread }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

fn memory() -> GuestMemory {
    crate::memory::map_by_pages(ByteSize(SIZE)).unwrap()
}

/// An end of a pair that nothing comes from.
fn never() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

#[test]
fn a_handler_is_told_where_each_region_is_and_given_the_descriptor() {
    let listening = Listening::begin();
    let memory = memory();
    let handler = Handler::connect(&listening.socket(), &memory).unwrap();
    drop(handler);
    let (message, has_descriptor) = listening.thread.join().unwrap();
    let region = memory.iter().next().unwrap();
    let expected = serde_json::json!([{
        "base_host_virt_addr": region.as_ptr() as u64,
        "size": SIZE,
        "offset": 0,
        "page_size": 4096,
        "page_size_kib": 4096,
    }]);
    assert_eq!(message, expected);
    assert!(has_descriptor);
}

#[test]
fn a_handler_that_does_not_even_accept_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    // One may wait, the next one has to.
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let limit = Duration::from_millis(50);
    let error = handshake::connect(&path, limit).unwrap_err();
    assert!(matches!(error, ServedError::Mute { .. }), "{error}");
}

#[test]
fn regions_follow_each_other_in_the_file() {
    let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(4 << 30), 1 << 20)];
    let mappings = handshake::mappings(&GuestMemory::from_ranges(&ranges).unwrap());
    let places: Vec<_> = mappings
        .iter()
        .map(|mapping| (mapping.offset, mapping.size))
        .collect();
    assert_eq!(places, [(0, 2 << 20), (2 << 20, 1 << 20)]);
}

#[test]
fn who_touches_memory_that_a_mute_handler_has_is_given_up() {
    let listening = Listening::begin();
    let memory = memory();
    let handler = Handler::connect(&listening.socket(), &memory).unwrap();
    let limit = Duration::from_millis(50);
    assert_eq!(handler.serves_within(limit, || 5).unwrap(), 5);
    let (_ours, theirs) = never();
    // As a touch does, it waits for what does not come.
    let waits = move || wait_for(theirs.as_fd(), (theirs.as_fd(), PollFlags::empty()), None);
    let error = handler.serves_within(limit, waits).unwrap_err();
    assert!(matches!(error, ServedError::Mute { .. }), "{error}");
}

#[test]
fn a_handler_that_closes_its_connection_is_there_while_its_process_is() {
    let listening = Listening::begin();
    let mut handler = Handler::connect(&listening.socket(), &memory()).unwrap();
    let (ours, _theirs) = never();
    let waited = |handler: &Handler| {
        handler
            .wait(ours.as_fd(), Some(Duration::from_millis(50)))
            .unwrap()
    };
    assert_eq!(waited(&handler), Waited::TimedOut);
    handler.connection.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(
        waited(&handler),
        Waited::TimedOut,
        "this process listened, and is there"
    );
    handler.process = None;
    assert_eq!(
        waited(&handler),
        Waited::Gone,
        "its connection is all that is known of it"
    );
}

#[test]
fn what_is_no_socket_or_has_nobody_behind_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let connect = |path: &Path| Handler::connect(path, &memory()).unwrap_err().to_string();
    let path = directory.path().join("socket");
    assert!(connect(&path).contains("No such file"));
    fs::write(&path, "").unwrap();
    assert!(connect(&path).contains("is no Unix socket"));
    fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert!(connect(&path).contains("refused"));
}

#[test]
fn a_stall_is_noticed_once_until_pages_come_again() {
    let mut stall = Stall::default();
    let mut look = |waiting, resident| stall.begins(Look { waiting, resident });
    let looks = [(1, 5), (2, 6), (1, 6), (1, 6), (1, 7), (0, 7), (1, 7), (1, 7)];
    let noticed = looks.map(|(waiting, resident)| look(waiting, resident));
    assert_eq!(noticed, [false, false, true, false, false, false, false, true]);
}
