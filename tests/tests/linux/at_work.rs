//! A Linux guest that uses all that it has, while it is moved from process to process at moments that nobody has chosen: its file
//! system stays whole, TCP goes on, and streams through vsock begin anew.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bare_guest::numbers::Random;
use guest_worker::{ECHO_PORT, ENOUGH, HOST_PORT, PIECE, Piece, Place, TCP_HOST, file_of};
use posada_tests::guest::TempFile;
use posada_tests::network;
use posada_tests::{Ended, Guest, Moments, Running, Traveller, images, moments, vsock};
use vmm_sys_util::tempdir::TempDir;

const MOVES: u64 = 50;

/// Parts of the worker's work, by which [`Heard::progress`] is numbered.
const TCP: usize = 0;
const VSOCK: usize = 1;
const DISK: usize = 2;

/// What has come through the worker's streams, and what it says of its disk.
#[derive(Default)]
struct Heard {
    tcp: AtomicU64,
    vsock: AtomicU64,
    /// Pieces that are on the disk for certain.
    synced: AtomicU64,
    enough: AtomicBool,
    over: AtomicBool,
}

impl Heard {
    /// How far each part has come.
    fn progress(&self) -> [u64; 3] {
        [&self.tcp, &self.vsock, &self.synced].map(|part| part.load(Ordering::Relaxed))
    }

    /// Takes the next piece of a stream; none if it ends before.
    fn hear(&self, stream: &mut impl Read, place: Place) -> Option<Piece> {
        let mut bytes = [0; PIECE];
        stream.read_exact(&mut bytes).ok()?;
        let piece = Piece::read(place, &bytes).expect("what comes is a piece of this place");
        self.synced.fetch_max(piece.word, Ordering::Relaxed);
        Some(piece)
    }

    /// Answers a piece. False if the other end is gone.
    fn answer(&self, stream: &mut impl Write, place: Place, number: u64) -> bool {
        let word = if self.enough.load(Ordering::Relaxed) {
            ENOUGH
        } else {
            0
        };
        stream.write_all(&Piece { number, word }.at(place)).is_ok()
    }

    /// Serves the guest's connection, which is one and the same until the guest ends it.
    fn serve_tcp(&self, listener: &TcpListener) {
        let (mut stream, _) = listener.accept().expect("the guest connects");
        while let Some(piece) = self.hear(&mut stream, Place::TcpToHost) {
            let next = self.tcp.fetch_add(1, Ordering::Relaxed);
            assert_eq!(piece.number, next, "the piece that follows");
            assert!(
                self.answer(&mut stream, Place::TcpToGuest, next),
                "the guest listens"
            );
        }
    }

    /// Serves the guest's streams, one after the other. One that is reset may have taken the last answer with it: then the new one
    /// begins with the same piece again.
    fn serve_vsock(&self, listener: &UnixListener) {
        let mut next: u64 = 0;
        for stream in listener.incoming() {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            let mut stream = stream.expect("a socket that listens");
            let mut again = next.checked_sub(1);
            while let Some(Piece { number, .. }) = self.hear(&mut stream, Place::VsockToHost) {
                let follows = number == next || Some(number) == again;
                assert!(follows, "piece {number} instead of {next} or {again:?}");
                again = None;
                next = number + 1;
                self.vsock.store(next, Ordering::Relaxed);
                if !self.answer(&mut stream, Place::VsockToGuest, number) {
                    break;
                }
            }
        }
    }
}

/// The host's ends of the worker's streams.
struct Host {
    heard: Arc<Heard>,
    serving: [JoinHandle<()>; 2],
}

impl Host {
    fn serve(connections: TcpListener, streams: UnixListener) -> Self {
        let heard = Arc::new(Heard::default());
        let [tcp, vsock] = [Arc::clone(&heard), Arc::clone(&heard)];
        let serving = [
            thread::spawn(move || tcp.serve_tcp(&connections)),
            thread::spawn(move || vsock.serve_vsock(&streams)),
        ];
        Self { heard, serving }
    }

    /// Waits until each of these parts of the work has come further; or any, if none is named.
    #[track_caller]
    fn wait_for_progress(&self, guest: &mut Running, parts: &[usize]) {
        let former = self.heard.progress();
        guest.wait_until("the worker had come further", |_| {
            assert!(
                !self.serving.iter().any(JoinHandle::is_finished),
                "an end of the host's has failed"
            );
            let progress = self.heard.progress();
            progress != former && parts.iter().all(|part| progress[*part] > former[*part])
        });
    }

    /// Has the worker end.
    fn end(&self) {
        self.heard.enough.store(true, Ordering::Relaxed);
    }

    /// How far each part has come in the end.
    fn join(self, socket: &Socket) -> [u64; 3] {
        self.heard.over.store(true, Ordering::Relaxed);
        UnixStream::connect(&socket.called).expect("who waits there for the next stream is told");
        for end in self.serving {
            end.join().expect("it has served");
        }
        self.heard.progress()
    }
}

/// A place for a guest's socket, and who listens there for what the guest calls.
struct Socket {
    place: TempFile,
    called: String,
}

impl Socket {
    fn new() -> (Self, UnixListener) {
        let place = TempFile::new("v.sock", "");
        fs::remove_file(place.path()).expect("only its place is wanted");
        let called = format!("{}_{HOST_PORT}", place.as_str());
        let listener = UnixListener::bind(&called).expect("a socket");
        (Self { place, called }, listener)
    }

    /// A stream of the host's to the worker, which has sent back so many bytes of noise.
    fn converse(&self, seed: u64, bytes: usize) -> UnixStream {
        let stream = vsock::call(self.place.path(), ECHO_PORT);
        let mut noise = vec![0; bytes];
        Random::new(seed).fill(&mut noise);
        let mut back = vec![0; bytes];
        thread::scope(|scope| {
            scope.spawn(|| (&stream).write_all(&noise).expect("the guest reads"));
            (&stream).read_exact(&mut back).expect("the guest answers");
        });
        assert!(back == noise, "it comes back as it went");
        stream
    }
}

/// Linux with the worker as its only program, on all of its devices.
fn worker(image: &TempFile, socket: &Socket) -> Guest {
    Guest::tiny_with(&images::worker())
        .append("posada.init=/worker ip=10.9.0.2::10.9.0.1:255.255.255.0")
        .memory("64M")
        .arg("--net=tap=t0")
        .arg("--disk")
        .arg(image.path())
        .arg("--vsock")
        .arg(socket.place.path())
}

/// Streams of the host's, beside those of the guest's which go all the while.
#[track_caller]
fn talk_on_many_streams(socket: &Socket) {
    const STREAMS: u64 = 4;
    thread::scope(|scope| {
        for number in 0..STREAMS {
            scope.spawn(move || socket.converse(number, 8 * PIECE));
        }
    });
}

/// The numbers that the worker tells when it ends: pieces on the disk, by TCP and through vsock, and streams through vsock.
#[track_caller]
fn told(ended: &Ended) -> [u64; 4] {
    let console = ended.console();
    let report = console.lines().find_map(|line| line.strip_prefix("worker: "));
    let report = report.expect("the worker says what it has done");
    let number = |name| {
        let told = report.split_whitespace().find_map(|word| word.strip_prefix(name));
        told.unwrap_or_else(|| panic!("no {name} in: {report}"))
            .parse()
            .expect("a number")
    };
    ["disk=", "tcp=", "vsock=", "calls="].map(number)
}

/// Runs a tool of e2fsprogs on an image.
#[track_caller]
fn tool(name: &str, arguments: &[&str]) {
    let output = Command::new(name).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{name} does not run: {error}"));
    let messages = [output.stdout, output.stderr].concat();
    let messages = String::from_utf8_lossy(&messages);
    assert!(output.status.success(), "{name} {arguments:?}: {messages}");
}

/// An image with an empty ext4. Without checksums, over which a guest whose kernel is interpreted would take its time.
fn file_system() -> TempFile {
    let image = TempFile::new("disk.img", "");
    let file = File::options().write(true).open(image.path());
    file.and_then(|file| file.set_len(64 << 20))
        .expect("a sparse file");
    let options = ["-q", "-F", "-b", "4096", "-O", "^metadata_csum"];
    tool("mkfs.ext4", &[&options[..], &[image.as_str()]].concat());
    image
}

/// Checks that the file system is clean, and has these pieces and nothing else.
#[track_caller]
fn expect_pieces(image: &TempFile, pieces: u64) {
    tool("e2fsck", &["-f", "-n", image.as_str()]);
    let copy = TempDir::new().expect("a directory for temporary files");
    let path = copy.as_path().to_str().expect("temporary files have plain names");
    tool("debugfs", &["-R", &format!("rdump / {path}"), image.as_str()]);
    for number in 0..pieces {
        let file = fs::read(copy.as_path().join(file_of(number))).expect("the piece's file");
        let piece = file
            .chunks(PIECE)
            .nth((number % guest_worker::FILE_PIECES) as usize);
        let piece = piece.and_then(<[u8]>::first_chunk);
        let found = piece.and_then(|piece| Piece::read(Place::Disk, piece));
        assert_eq!(found, Some(Piece { number, word: 0 }));
    }
    let files = fs::read_dir(copy.as_path()).expect("the copy");
    let bytes = files.map(|file| file.and_then(|file| file.metadata()).expect("a copied file"));
    let bytes: u64 = bytes.filter(fs::Metadata::is_file).map(|file| file.len()).sum();
    assert_eq!(bytes, pieces * PIECE as u64, "bytes in all files");
}

#[test]
fn linux_writes_files_and_talks_to_the_host_while_it_moves_fifty_times_and_nothing_is_lost() {
    let mut moments = Moments::of(moments::seed());
    network::isolate_with_tap();
    let (socket, streams) = Socket::new();
    let host = Host::serve(
        TcpListener::bind(TCP_HOST).expect("the namespace is empty"),
        streams,
    );
    let image = file_system();
    let mut traveller = Traveller::start(worker(&image, &socket));
    host.wait_for_progress(traveller.guest(), &[TCP, VSOCK, DISK]);
    talk_on_many_streams(&socket);

    for number in 0..MOVES {
        let stream = match number % 10 {
            9 => {
                host.wait_for_progress(traveller.guest(), &[VSOCK]);
                Some(socket.converse(number, PIECE))
            }
            // Half of the others see the guest at work first; it may hardly have come to itself again when the rest of them come.
            _ => {
                if moments.below(2) == 0 {
                    host.wait_for_progress(traveller.guest(), &[]);
                }
                None
            }
        };
        thread::sleep(Duration::from_millis(moments.below(300)));
        traveller.hurry_on();
        if let Some(mut stream) = stream {
            let end = stream.read(&mut [0]);
            assert!(matches!(end, Ok(0) | Err(_)), "it has ended: {end:?}");
        }
    }
    host.wait_for_progress(traveller.guest(), &[TCP, VSOCK, DISK]);
    host.end();
    let ended = traveller.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    let [tcp_heard, vsock_heard, synced] = host.join(&socket);

    let [pieces, tcp, vsock, calls] = told(&ended);
    assert_eq!(tcp, tcp_heard);
    // The guest may have ended before it had the last answer.
    assert!(
        (vsock..=vsock + 1).contains(&vsock_heard),
        "{vsock_heard} of {vsock}"
    );
    assert!(synced <= pieces, "{synced} of {pieces}");
    assert!(
        (2..=MOVES + 1).contains(&calls),
        "{calls} streams: moves reset them, and nothing else"
    );
    expect_pieces(&image, pieces);
}
