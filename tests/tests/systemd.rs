//! Guests that systemd starts: the unit and the config file that `posada systemd` writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use nix::sys::signal::Signal;
use posada_tests::guest::{TempFile, command, runtime_directory};
use posada_tests::running::until;
use posada_tests::{Background, Ended, Guest, Running, images, posada};
use vmm_sys_util::tempdir::TempDir;

/// Where one test's user has what is configured.
struct Home {
    configs: TempDir,
}

impl Home {
    fn new() -> Self {
        Self {
            configs: TempDir::new().unwrap(),
        }
    }

    /// `posada systemd --user` with these arguments.
    fn systemd(&self, arguments: &[&str]) -> Ended {
        let mut command = command(&[&["systemd", "--user"], arguments].concat());
        command.env("XDG_CONFIG_HOME", self.configs.as_path());
        Running::of(command).wait()
    }

    fn config(&self, name: &str) -> PathBuf {
        self.configs.as_path().join("posada").join(format!("{name}.toml"))
    }

    fn unit(&self, name: &str) -> PathBuf {
        let units = self.configs.as_path().join("systemd/user");
        units.join(format!("posada-{name}.service"))
    }
}

/// What systemd would do as one of the unit's commands.
fn line(unit: &Path, setting: &str) -> Command {
    let text = fs::read_to_string(unit).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    let mut words = line
        .expect("it has such a line")
        .trim_start_matches('-')
        .split(' ');
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .env("XDG_RUNTIME_DIR", runtime_directory())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What systemd has to say against a unit. Of a key that it does not know, it does so and takes the unit.
fn complaints(unit: &Path) -> Vec<String> {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--user", "--man=no"])
        .arg(unit)
        .env("XDG_RUNTIME_DIR", runtime_directory())
        .output()
        .expect("systemd-analyze runs: it is one of Debian's package 'systemd'");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaints}", output.status);
    let name = unit.file_name().and_then(|name| name.to_str()).unwrap();
    let ours = complaints.lines().filter(|line| line.contains(name));
    ours.map(str::to_owned).collect()
}

fn expect_verified(unit: &Path) {
    assert_eq!(complaints(unit), [""; 0]);
    let text = fs::read_to_string(unit).unwrap();
    assert!(text.contains("\nRestart="), "{text}");
    let misspelt = TempFile::new(
        "posada-misspelt.service",
        text.replace("\nRestart=", "\nRestrat="),
    );
    let found = complaints(misspelt.path());
    assert!(found.iter().any(|line| line.contains("Restrat")), "{found:?}");
}

#[test]
fn a_running_guest_is_started_again_as_it_was_by_its_unit() {
    let home = Home::new();
    let name = format!("unit-{}", process::id());
    let disk = TempFile::new("data.img", [0; 4096]);
    let guest = Guest::bare("program=count")
        .named(&name)
        .memory("64M")
        .arg("--rng");
    let mut guest = guest.arg("--disk").arg(disk.as_str()).start();
    guest.wait_for("count 1\n");
    let before = posada(&["inspect", &name]).expect_status(0).console();
    let told = home.systemd(&[&name]).expect_status(0).console();
    assert_eq!(
        told,
        format!("systemctl --user daemon-reload\nsystemctl --user enable posada-{name}.service\n")
    );
    let (config, unit) = (home.config(&name), home.unit(&name));
    expect_verified(&unit);
    home.systemd(&[&name])
        .expect_refusal(1, &[config.to_str().unwrap(), "--force"]);
    home.systemd(&[&name, "--force"]).expect_status(0);
    posada(&["kill", &name]).expect_status(0);
    guest.wait().expect_status(0);

    let mut service = Running::of(line(&unit, "ExecStart"));
    service.wait_for("count 1\n");
    let after = posada(&["inspect", &name]).expect_status(0).console();
    let what = |guest: &str| serde_json::from_str::<serde_json::Value>(guest).unwrap()["config"].clone();
    assert_eq!(what(&after), what(&before));
    Running::of(line(&unit, "ExecStop")).wait().expect_status(0);
    service.wait().expect_status(0);
}

#[test]
fn a_guest_of_a_config_file_gets_a_unit_without_running() {
    let home = Home::new();
    let kernel = images::bare();
    let text = format!(
        "kernel = \"{}\"\ncmdline = \"acpi=off program=count\"\nname = \"another\"\n",
        kernel.display()
    );
    let config = TempFile::new("guest.toml", text);
    let name = format!("file-{}", process::id());
    let printed = home
        .systemd(&[&name, "--config", config.as_str(), "--print"])
        .expect_status(0)
        .console();
    assert!(
        printed.contains(&format!("# {}", home.unit(&name).display())),
        "{printed}"
    );
    assert!(!home.unit(&name).exists(), "it is printed, and not written");
    let told = home
        .systemd(&[&name, "--config", config.as_str()])
        .expect_status(0)
        .console();
    assert!(
        told.contains(&format!("enable --now posada-{name}.service")),
        "{told}"
    );
    assert!(printed.contains(&fs::read_to_string(home.unit(&name)).unwrap()));
    assert!(
        !home.config(&name).exists(),
        "the user's own file is what is read"
    );
    expect_verified(&home.unit(&name));
    let mut service = Running::of(line(&home.unit(&name), "ExecStart"));
    service.wait_for("count 1\n");
    // Without ExecStop, systemd would send this, and the unit takes what follows for success.
    service.signal(Signal::SIGTERM);
    let status = service
        .wait()
        .expect_status(143)
        .status
        .code()
        .unwrap()
        .to_string();
    let unit = fs::read_to_string(home.unit(&name)).unwrap();
    let successes = unit
        .lines()
        .find_map(|line| line.strip_prefix("SuccessExitStatus="));
    assert!(successes.unwrap().split(' ').any(|success| success == status));
}

#[test]
fn what_could_not_be_started_gets_no_unit() {
    let home = Home::new();
    home.systemd(&["nobody"])
        .expect_refusal(1, &["there is no running guest named 'nobody'"]);
    home.systemd(&["web", "--config", "/nonexistent.toml"])
        .expect_refusal(2, &["/nonexistent.toml"]);
    let wrong = TempFile::new("guest.toml", "cpus = 0\n");
    home.systemd(&["web", "--config", wrong.as_str()])
        .expect_refusal(2, &["0 CPUs"]);
    let right = TempFile::new("guest.toml", "");
    home.systemd(&["../web", "--config", right.as_str()])
        .expect_refusal(2, &["'../web'"]);
    let in_the_way = TempFile::new("configs", "");
    let mut command = command(&["systemd", "--user", "web", "--config", right.as_str()]);
    command.env("XDG_CONFIG_HOME", in_the_way.path());
    Running::of(command)
        .wait()
        .expect_refusal(1, &["posada-web.service", "Not a directory"]);
}

#[test]
fn a_clone_whose_disk_goes_with_it_is_not_to_be_started_again() {
    let home = Home::new();
    let place = TempDir::new().unwrap();
    let snapshot = place.as_path().join("s");
    let disk = TempFile::new("data.img", [0; 4096]);
    let name = format!("origin-{}", process::id());
    let mut guest = Guest::bare("program=count")
        .named(&name)
        .arg("--disk")
        .arg(disk.as_str())
        .start();
    guest.wait_for("count 1\n");
    posada(&["snapshot", &name, snapshot.to_str().unwrap(), "--stop"]).expect_status(0);
    guest.wait().expect_status(0);
    let clone = format!("{name}-1");
    let _clone = Background::new(&clone);
    posada(&["clone", snapshot.to_str().unwrap()]).expect_status(0);
    home.systemd(&[&clone])
        .expect_refusal(1, &["disk-0.overlay", "--config"]);
    posada(&["kill", &clone]).expect_status(0);
    until("it is gone", || {
        !runtime_directory().join("posada").join(&clone).exists()
    });
}
