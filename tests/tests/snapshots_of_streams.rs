//! Snapshots of guests in the middle of a conversation, at moments that nobody has chosen: TCP goes on in a new process; a stream
//! through vsock lives on in a guest that goes on, and is reset in one that is restored.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use posada_tests::guest::TempFile;
use posada_tests::network;
use posada_tests::{Guest, Moments, Traveller, stream, vsock};

/// Bytes of a stream in each direction, and snapshots while they go.
const BYTES: usize = 16 << 20;
const SNAPSHOTS: usize = 8;

/// Tells when a stream has come to points that were chosen before. It goes on from there while the snapshot that is then due is taken,
/// but waits for one that is late.
struct Progress {
    points: std::vec::IntoIter<usize>,
    next: Option<usize>,
    told: SyncSender<()>,
}

impl Progress {
    /// Tells as often as there are to be snapshots, before the last eighth of the stream.
    fn of(seed: u64) -> (Self, Receiver<()>) {
        let (told, hears) = sync_channel(0);
        let mut points = Moments::of(seed).points(SNAPSHOTS, BYTES / 8 * 7).into_iter();
        let next = points.next();
        (Self { points, next, told }, hears)
    }

    fn reached(&mut self, bytes: usize) {
        while self.next.is_some_and(|point| point <= bytes) {
            self.next = self.points.next();
            // Nobody may want to hear of it any more.
            let _ = self.told.send(());
        }
    }
}

#[test]
fn a_tcp_transfer_goes_on_while_its_guest_moves_from_process_to_process() {
    const HOST_SEED: u64 = 1;
    const GUEST_SEED: u64 = 2;
    network::isolate_with_tap();
    let listener = TcpListener::bind("10.9.0.1:8000").expect("the namespace is empty");
    let (mut sending, sent) = Progress::of(HOST_SEED);
    let (mut taking, taken) = Progress::of(GUEST_SEED);
    let host = thread::spawn(move || {
        let (connection, _) = listener.accept().expect("the guest connects");
        let sent = stream::send(&connection, HOST_SEED, BYTES, move |bytes| sending.reached(bytes));
        connection.shutdown(Shutdown::Write).expect("the guest is there");
        (
            sent,
            stream::take(&connection, BYTES, move |bytes| taking.reached(bytes)),
        )
    });
    let program = format!("program=tcp count={BYTES} seed={GUEST_SEED} hold=yes");
    let guest = Guest::bare(&program).memory("16M").arg("--net=tap=t0");
    let mut traveller = Traveller::start(guest);
    for () in sent.into_iter().chain(taken) {
        traveller.move_on();
    }
    let (sent, taken) = host.join().expect("the host has served");
    assert_eq!(taken, (BYTES, stream::sum(GUEST_SEED, BYTES)));
    traveller.guest().send("\n");
    let ended = traveller.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    let received = format!("received={BYTES} checksum={sent:016x}");
    assert!(ended.console().contains(&received), "not {received}");
}

/// A place for a guest's socket.
fn place() -> TempFile {
    let place = TempFile::new("v.sock", "");
    fs::remove_file(place.path()).expect("only its place is wanted");
    place
}

fn start(program: &str, socket: &TempFile) -> Traveller {
    let guest = Guest::bare(program).memory("16M");
    Traveller::start(guest.arg("--vsock").arg(socket.path()))
}

#[test]
fn a_stream_of_the_hosts_lives_on_through_snapshots_of_a_guest_that_goes_on() {
    const SEED: u64 = 3;
    let socket = place();
    let mut traveller = start("program=vsock-echo", &socket);
    traveller.guest().wait_for("listening");
    let connection = vsock::call(socket.path(), 5000);
    let (mut progress, reached) = Progress::of(SEED);
    let back = thread::scope(|scope| {
        scope.spawn(|| stream::send(&connection, SEED, BYTES, move |bytes| progress.reached(bytes)));
        let back = scope.spawn(|| stream::take(&connection, BYTES, |_| {}));
        reached.into_iter().for_each(|()| traveller.snapshot());
        back.join().expect("the guest sends it back")
    });
    assert_eq!(back, (BYTES, stream::sum(SEED, BYTES)));
    drop(connection);
    let ended = traveller.wait().expect_status(0);
    let all = format!("connections=1 bytes={BYTES}\n");
    assert!(ended.console().ends_with(&all), "not {all}");
    assert_eq!(ended.messages(), "");
}

/// A host program on the guest's port 5000 that sends back what it gets, and returns how much that was when the stream ends.
fn echo(socket: &TempFile, mut progress: Progress) -> JoinHandle<usize> {
    let path = format!("{}_5000", socket.as_str());
    let listener = UnixListener::bind(path).expect("a socket");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest connects");
        let (mut bytes, mut piece) = (0, vec![0; 64 << 10]);
        loop {
            // A guest that is gone may have left something unread.
            let count = stream.read(&mut piece).unwrap_or(0);
            if count == 0 || stream.write_all(&piece[..count]).is_err() {
                return bytes;
            }
            bytes += count;
            progress.reached(bytes);
        }
    })
}

#[test]
fn a_stream_of_the_guests_lives_on_likewise() {
    let socket = place();
    let (progress, reached) = Progress::of(4);
    let host = echo(&socket, progress);
    let mut traveller = start(&format!("program=vsock-call bytes={BYTES} hold=yes"), &socket);
    reached.into_iter().for_each(|()| traveller.snapshot());
    traveller.guest().send("\n");
    // It checks what comes back.
    let ended = traveller.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    assert_eq!(host.join().expect("the host has served"), BYTES);
}

#[test]
fn a_stream_of_the_guests_is_reset_when_the_guest_is_restored() {
    const GUEST_CRASHED: i32 = 3;
    let socket = place();
    let (progress, reached) = Progress::of(5);
    let host = echo(&socket, progress);
    let mut traveller = start(&format!("program=vsock-call bytes={BYTES}"), &socket);
    reached.recv().expect("the stream begins");
    drop(reached);
    traveller.move_on();
    let ended = traveller.wait().expect_status(GUEST_CRASHED);
    let console = ended.console();
    assert!(console.contains("stream 0 has ended: Reset"), "{console}");
    assert!(host.join().expect("the host has served") < BYTES);
}

/// Sends a line, and checks that it comes back.
#[track_caller]
fn converse(mut stream: &UnixStream, line: &str) {
    stream.write_all(line.as_bytes()).expect("the guest reads");
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back).expect("the guest answers");
    assert_eq!(back, line.as_bytes());
}

#[test]
fn a_restored_guest_takes_new_streams_of_the_hosts_when_the_old_ones_are_gone() {
    let socket = place();
    let mut traveller = start("program=vsock-echo connections=2 wait=interrupt", &socket);
    traveller.guest().wait_for("listening");
    let call = || vsock::call(socket.path(), 5000);
    converse(&call(), "a stream that is over by then");
    let mut old = call();
    converse(&old, "a stream that is not");
    traveller.move_on();
    let end = old.read(&mut [0]);
    assert!(matches!(end, Ok(0) | Err(_)), "it has ended: {end:?}");
    traveller
        .guest()
        .wait_until("the socket is back", |_| socket.path().exists());
    converse(&call(), "a new one");
    let ended = traveller.wait().expect_status(0);
    assert!(ended.console().contains("connections=2 "), "{}", ended.console());
    assert_eq!(ended.messages(), "");
}
