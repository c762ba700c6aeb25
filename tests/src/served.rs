//! Guests that are described, started and looked after by requests: `posada serve`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

use crate::guest::runtime_directory;
use crate::http::{self, Reply};
use crate::running::Running;
use crate::{images, posada};

/// Body of `/actions` that starts the guest.
pub const START: &str = r#"{"action_type": "InstanceStart"}"#;

/// `posada serve` with a socket of its own.
pub struct Served {
    /// The guest's name.
    pub name: String,
    /// The process.
    pub running: Running,
    directory: TempDir,
}

impl Served {
    /// With these arguments beside its socket and its name.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.as_path().join("api.sock");
        let name = format!("api-{name}-{}", std::process::id());
        let mut command = vec!["--api-sock", socket.to_str().unwrap(), "--id", &name];
        command.extend(arguments);
        let mut running = serve(&command);
        running.wait_until("the socket is served", |_| UnixStream::connect(&socket).is_ok());
        Self {
            name,
            directory,
            running,
        }
    }

    /// One that runs the bare guest's `program`, which says when it listens.
    pub fn running(name: &str, program: &str) -> Self {
        let mut served = Self::start(name, &[]);
        served.begin(program);
        served.running.wait_for("listening\n");
        served
    }

    /// Starts the bare guest's `program`.
    pub fn begin(&self, program: &str) {
        self.boot(program);
        self.put("/actions", START).expect(204);
    }

    /// Has it boot the bare guest's `program`.
    pub fn boot(&self, program: &str) {
        let source = boot_source(program).to_string();
        self.put("/boot-source", &source).expect(204);
    }

    /// Where its API is.
    pub fn socket(&self) -> PathBuf {
        self.place("api.sock")
    }

    /// A path in its directory.
    pub fn place(&self, name: &str) -> PathBuf {
        self.directory.as_path().join(name)
    }

    /// Asks.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        http::request(&self.socket(), "GET", path, "")
    }

    /// Sets.
    #[track_caller]
    pub fn put(&self, path: &str, body: &str) -> Reply {
        http::request(&self.socket(), "PUT", path, body)
    }

    /// Changes.
    #[track_caller]
    pub fn patch(&self, path: &str, body: &str) -> Reply {
        http::request(&self.socket(), "PATCH", path, body)
    }

    /// What its guest's state is called.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.get("/").expect(200).json()["state"].clone()
    }

    /// Tells an `echo` guest a line, which ends it.
    pub fn end(mut self) {
        self.running.send("the last\n");
        let ended = self.running.wait().expect_status(0);
        assert!(ended.console().contains("the last"), "{}", ended.console());
        assert!(
            !self.directory.as_path().join("api.sock").exists(),
            "its socket goes with it"
        );
        assert!(!runtime_directory().join("posada").join(&self.name).exists());
    }
}

/// `posada serve` with these arguments.
pub fn serve(arguments: &[&str]) -> Running {
    let mut command = Command::new(posada::binary());
    command
        .arg("serve")
        .args(arguments)
        .env("XDG_RUNTIME_DIR", runtime_directory())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running::of(command)
}

/// Body of `/boot-source` for the bare guest's `program`.
pub fn boot_source(program: &str) -> Value {
    json!({
        "kernel_image_path": images::bare(),
        "boot_args": format!("acpi=off program={program}"),
    })
}

/// Body of `/vm`.
pub fn vm(state: &str) -> String {
    json!({ "state": state }).to_string()
}

/// Makes a file of zeros; returns its path.
pub fn image(path: &Path) -> String {
    fs::write(path, vec![0; 1 << 20]).unwrap();
    path.to_str().unwrap().to_owned()
}
