//! Guests to be run: each a posada command line in the making.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use guest_agent::terminal;
use nix::unistd::getuid;
use vmm_sys_util::tempdir::TempDir;

use crate::cores::Cores;
use crate::ended::Ended;
use crate::running::Running;
use crate::terminal::{Settings, Terminal};
use crate::{booted, images, payload, posada as binary};

/// The variable that says where running guests are found by name.
const RUNTIME: &str = "XDG_RUNTIME_DIR";

/// A guest that has not been started: `Guest::booted().cpus(2).start()`.
pub struct Guest {
    arguments: Vec<OsString>,
    name: Option<String>,
    /// Whether these arguments are of a machine that is restored as it was after its boot.
    booted: bool,
    /// The disk of a booted machine.
    disk: Option<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Option<Vec<u8>>,
    /// Where the payload's file is, and where the guest is found by name unless it has one of its own. There for as long as
    /// somebody may look.
    files: Arc<TempDir>,
}

impl Guest {
    /// The tiny Linux guest that `make guest` builds, with its shell waiting for input: for all tests that do not look at how it
    /// gets there. It is restored, in milliseconds, from a [snapshot](booted) that is taken when a machine with these arguments
    /// is wanted for the first time.
    ///
    /// Arguments that are added are those of `posada run`. It has a source of random numbers already, and a socket device, by which its
    /// agent is reached.
    ///
    /// # Panics
    /// If it has not been built.
    pub fn booted() -> Self {
        Self {
            booted: true,
            ..Self::booting().arg("--rng").arg("--vsock")
        }
    }

    /// Likewise, with an image of [`booted::DISK_SIZE`] bytes as its disk, `,overlay=FILE` behind the path if need be.
    pub fn booted_with_disk(disk: impl Into<OsString>) -> Self {
        Self {
            disk: Some(disk.into()),
            ..Self::booted()
        }
    }

    /// `posada run` with the tiny Linux guest, for tests of its boot.
    ///
    /// # Panics
    /// If it has not been built.
    pub fn booting() -> Self {
        Self::linux(&images::tiny_vmlinux(), &images::tiny_initramfs())
    }

    /// The tiny Linux guest with what is in another cpio archive: the kernel unpacks one after the other (Linux,
    /// Documentation/driver-api/early-userspace/buffer-format.rst).
    ///
    /// # Panics
    /// If one of them has not been built.
    pub fn tiny_with(archive: &Path) -> Self {
        let initramfs = images::tiny_initramfs();
        let archives = [&initramfs, archive].map(|path| fs::read(path).expect("a cached image can be read"));
        let guest = Self::kernel(&images::tiny_vmlinux());
        let path = guest.files.as_path().join("initramfs.cpio");
        fs::write(&path, archives.concat()).expect("a temporary file can be written");
        guest.arg("--initrd").arg(path)
    }

    /// The guest without an operating system, with this command line: `program=` and the program's arguments.
    ///
    /// # Panics
    /// If it has not been built.
    pub fn bare(command_line: &str) -> Self {
        // It reads no ACPI tables; told so, posada lists the devices on the command line.
        Self::kernel(&images::bare())
            .arg("--cmdline")
            .arg(format!("acpi=off {command_line}"))
    }

    /// A Linux kernel and its initramfs.
    pub fn linux(kernel: &Path, initrd: &Path) -> Self {
        Self::kernel(kernel).arg("--initrd").arg(initrd)
    }

    /// Any file as the kernel.
    pub fn kernel(path: &Path) -> Self {
        Self::none().arg("--kernel").arg(path)
    }

    /// `posada restore` with a snapshot's directory.
    pub fn restored(snapshot: &Path) -> Self {
        Self::with_arguments(vec!["restore".into(), snapshot.into()])
    }

    /// `posada run` without a kernel.
    pub fn none() -> Self {
        Self::with_arguments(vec!["run".into()])
    }

    /// `posada` with these arguments.
    pub(crate) fn with_arguments(arguments: Vec<OsString>) -> Self {
        Self {
            arguments,
            name: None,
            booted: false,
            disk: None,
            environment: Vec::new(),
            directory: None,
            input: None,
            files: Arc::new(TempDir::new().expect("a directory for temporary files")),
        }
    }

    /// A payload that is entered by the 64-bit boot protocol.
    pub fn payload(code: &[u8]) -> Self {
        Self::image(&payload::elf(code, false))
    }

    /// A payload that is entered by PVH.
    pub fn pvh_payload(code: &[u8]) -> Self {
        Self::image(&payload::elf(code, true))
    }

    /// A kernel file with these bytes.
    pub fn image(bytes: &[u8]) -> Self {
        let guest = Self::none();
        let path = guest.files.as_path().join("kernel");
        fs::write(&path, bytes).expect("a temporary file can be written");
        guest.arg("--kernel").arg(path)
    }

    /// One more argument of `posada run`.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// `--name`, by which [`posada`] finds it.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// `--cpus`.
    pub fn cpus(self, cpus: u32) -> Self {
        self.arg("--cpus").arg(cpus.to_string())
    }

    /// `--memory`.
    pub fn memory(self, size: &str) -> Self {
        self.arg("--memory").arg(size)
    }

    /// `--append`.
    pub fn append(self, options: &str) -> Self {
        self.arg("--append").arg(options)
    }

    /// `--boot`.
    pub fn boot(self, protocol: &str) -> Self {
        self.arg("--boot").arg(protocol)
    }

    /// A variable of posada's environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The directory that posada runs in.
    pub fn in_directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// What is written to posada's standard input at once; then it ends.
    pub fn input(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.input = Some(bytes.as_ref().to_owned());
        self
    }

    /// Starts it with its input and output in pipes.
    ///
    /// # Panics
    /// If the host has no /dev/kvm; likewise all that start a guest.
    pub fn start(self) -> Running {
        need_kvm();
        let command = self.command(Stdio::piped());
        let cores = self.cores();
        let mut running = Running::on_pipes(command, Some(self.files));
        running.keep(cores);
        if self.booted {
            booted::wait_until_back(&mut running);
        }
        if let Some(input) = self.input {
            running.send(input);
            running.end_input();
        }
        running
    }

    /// Starts it with standard input from a file and its output in pipes.
    pub fn start_with_input_from(self, file: File) -> Running {
        need_kvm();
        let command = self.command(file.into());
        let cores = self.cores();
        let mut running = Running::on_pipes(command, Some(self.files));
        running.keep(cores);
        running
    }

    /// Starts it on a pseudo-terminal, in a session of its own. Returns also how the terminal was set before.
    pub fn start_on_terminal(self) -> (Running, Settings) {
        need_kvm();
        let terminal = Terminal::open();
        let before = terminal.settings();
        let mut command = self.command(terminal.stdio());
        command.stdout(terminal.stdio()).stderr(terminal.stdio());
        terminal::control(&mut command);
        let cores = self.cores();
        let mut running = Running::on_terminal(command, terminal, Some(self.files));
        running.keep(cores);
        if self.booted {
            booted::wait_until_back(&mut running);
        }
        (running, before)
    }

    /// Runs it to its end. Without [`input`](Self::input) its standard input is empty.
    pub fn run(self) -> Ended {
        let mut running = self.start();
        running.end_input();
        running.wait()
    }

    /// The command that runs it, for a test that starts it in its own way.
    pub fn command(&self, stdin: Stdio) -> Command {
        let mut command = match self.booted {
            true => posada_with(&self.restoring(), stdin),
            false => posada_with(&self.arguments, stdin),
        };
        match &self.name {
            Some(name) => command.arg("--name").arg(name),
            None => command.env(RUNTIME, self.files.as_path()),
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// What of the host's a Linux guest needs for itself. To be called when nothing else is waited for before it starts.
    fn cores(&self) -> Option<Cores> {
        let mut arguments = self.arguments.iter();
        let linux = arguments.any(|argument| argument == "--initrd");
        let mut arguments = self.arguments.iter().skip_while(|argument| *argument != "--cpus");
        let cpus = arguments.nth(1).and_then(|cpus| cpus.to_str()?.parse().ok());
        linux.then(|| Cores::take(cpus.unwrap_or(1)))
    }

    /// What restores this machine as it was after its boot.
    fn restoring(&self) -> Vec<OsString> {
        let snapshot = booted::snapshot(&self.arguments, self.disk.is_some());
        let mut arguments = vec!["restore".into(), snapshot.into()];
        if self.name.is_none() {
            // What posada calls a guest without a name, and not what the one was called that was booted.
            arguments.push("--name=guest".into());
        }
        if let Some(disk) = &self.disk {
            let mut other = OsString::from(format!("--disk={}=", booted::DISK));
            other.push(disk);
            arguments.push(other);
        }
        arguments
    }
}

/// Runs posada with these arguments, which need no KVM, and waits for its end.
pub fn posada<S: AsRef<OsStr>>(arguments: &[S]) -> Ended {
    Running::of(command(arguments)).wait()
}

/// Starts posada with these arguments on a pseudo-terminal, in a session of its own. Returns also how the terminal was set before.
pub fn on_terminal<S: AsRef<OsStr>>(arguments: &[S]) -> (Running, Settings) {
    let terminal = Terminal::open();
    let before = terminal.settings();
    let mut command = posada_with(arguments, terminal.stdio());
    command.stdout(terminal.stdio()).stderr(terminal.stdio());
    terminal::control(&mut command);
    (Running::on_terminal(command, terminal, None), before)
}

/// A posada with these arguments and nothing to read, to be [started](Running::of).
pub fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    posada_with(arguments, Stdio::null())
}

/// A posada with these arguments that reads what the test sends, to be [started](Running::of).
pub fn streaming<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    posada_with(arguments, Stdio::piped())
}

fn posada_with<S: AsRef<OsStr>>(arguments: &[S], stdin: Stdio) -> Command {
    let mut command = Command::new(binary::binary());
    command
        .args(arguments)
        .env("RUST_BACKTRACE", "1")
        .env_remove("COLUMNS")
        .env(RUNTIME, runtime_directory())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Where the tests' guests with names are found, apart from those of the person who runs the tests. Its path is short, for
/// sockets' names are.
pub fn runtime_directory() -> PathBuf {
    let directory = env::temp_dir().join(format!("posada-tests-{}", getuid()));
    fs::create_dir_all(&directory).expect("a directory for running guests");
    directory
}

fn need_kvm() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        panic!("this test needs /dev/kvm: {error}");
    }
}

/// A temporary directory with one file in it, for tests of what posada reads.
pub struct TempFile {
    directory: TempDir,
    path: PathBuf,
}

impl TempFile {
    /// A file with this name and these bytes.
    pub fn new(name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let directory = TempDir::new().expect("a directory for temporary files");
        let path = directory.as_path().join(name);
        fs::write(&path, bytes).expect("a temporary file can be written");
        Self { directory, path }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for a command line.
    pub fn as_str(&self) -> &str {
        self.path.to_str().expect("temporary files have plain names")
    }

    /// The directory that it is alone in.
    pub fn directory(&self) -> &Path {
        self.directory.as_path()
    }
}
