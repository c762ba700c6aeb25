//! Schemathesis, which checks a server against its OpenAPI file: in a virtual environment of Python's in the tests' cache.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use crate::images::cache;

/// Which versions, with what their files' hashes are.
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis.txt");
/// Debian's, of which the package python3-venv is.
const PYTHON: &str = "/usr/bin/python3";

/// The command, installed if it is not yet.
///
/// # Panics
/// With what pip says, if it cannot be.
pub fn command() -> Command {
    let environment = cache().join("schemathesis");
    let _lock = lock();
    let installed = environment.join("requirements");
    let wanted = fs::read(REQUIREMENTS).expect("the list of what it needs is in the repository");
    // Written when all is there.
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        install(&environment);
        fs::write(&installed, wanted).expect("the cache can be written");
    }
    Command::new(environment.join("bin/schemathesis"))
}

/// Tests that come at the same time wait here until the first has installed it.
fn lock() -> File {
    fs::create_dir_all(cache()).expect("the cache can be made");
    let lock = File::create(cache().join("schemathesis.lock")).expect("the cache can be written");
    lock.lock().expect("a file can be locked");
    lock
}

fn install(environment: &Path) {
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(
            output.status.success(),
            "schemathesis cannot be installed; it takes python3-venv, and a way to PyPI as pip is configured on this machine:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let place = environment.to_str().expect("the cache has a plain name");
    run(Path::new(PYTHON), &["-m", "venv", "--clear", place]);
    let pip: PathBuf = environment.join("bin/pip");
    run(
        &pip,
        &[
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "--only-binary=:all:",
            "--requirement",
            REQUIREMENTS,
        ],
    );
}

/// Has a Unix socket be reached at a port of the loopback's, for who knows no others, as long as the process lives.
pub fn at_a_port(socket: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has a port");
    let socket = socket.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            // Without a server, the client finds its connection closed.
            if let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) {
                connect(client, server);
            }
        }
    });
    address
}

fn connect(client: TcpStream, server: UnixStream) {
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    thread::spawn(move || {
        let (mut client, mut server) = (client, server);
        let _ = io::copy(&mut server, &mut client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
}
