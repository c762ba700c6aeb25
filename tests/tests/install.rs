//! What `make install` puts on a machine: the command, its manual, and what shells complete. No test here needs /dev/kvm.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use posada_tests::guest::runtime_directory;
use posada_tests::posada;
use vmm_sys_util::tempdir::TempDir;

/// Where one test has posada installed.
struct Installed {
    root: TempDir,
}

impl Installed {
    fn new() -> Self {
        let installed = Self {
            root: TempDir::new().unwrap(),
        };
        installed.make("install");
        installed
    }

    /// Has make do it; below `root` as if it was a machine's.
    fn make(&self, target: &str) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let output = Command::new("make")
            .arg(target)
            .arg("PREFIX=/usr")
            .arg(format!("DESTDIR={}", self.root.as_path().display()))
            .arg(format!("BINARY={}", posada_tests::posada::binary().display()))
            .current_dir(repository)
            // Those of the make that runs the tests are not this one's.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .output()
            .expect("make runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.as_path().join("usr").join(below)
    }

    /// What bash completes the last of these words to.
    fn completed(&self, words: &[&str]) -> Vec<String> {
        let script = r#"
            source "$1"; shift
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9
            _clap_complete_posada posada "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let output = Command::new("bash")
            .args(["--norc", "-c", script, "bash"])
            .arg(self.path("share/bash-completion/completions/posada"))
            .args(words)
            .env("PATH", path)
            .env("XDG_RUNTIME_DIR", runtime_directory())
            .output()
            .expect("bash runs");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{complaints}");
        let answer = String::from_utf8(output.stdout).unwrap();
        answer.split_whitespace().map(str::to_owned).collect()
    }
}

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let help = posada(&["--help"]).expect_status(0).console();
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = list
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_command_has_a_page_that_the_formatter_takes() {
    let installed = Installed::new();
    let commands = commands();
    assert!(commands.iter().any(|command| command == "run"), "{commands:?}");
    let pages = commands.iter().map(|command| format!("posada-{command}"));
    for page in pages.chain(["posada".to_owned()]) {
        let path = installed.path(&format!("share/man/man1/{page}.1"));
        let output = Command::new("groff")
            .args(["-man", "-ww", "-Tutf8", "-rLL=100n", "-P-cbou"])
            .arg(&path)
            .output()
            .expect("groff runs");
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && warnings.is_empty(),
            "{page}: {warnings}"
        );
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("SYNOPSIS") && text.contains(&page),
            "{page}: {text}"
        );
    }
    let run = fs::read_to_string(installed.path("share/man/man1/posada-run.1")).unwrap();
    for part in [
        ".SH EXAMPLES",
        "posada run",
        ".SH \"EXIT STATUS\"",
        "\\-\\-memory",
    ] {
        assert!(run.contains(part), "'{part}' is not in:\n{run}");
    }
    assert_eq!(
        posada(&["man"]).expect_status(0).stdout,
        fs::read(installed.path("share/man/man1/posada.1")).unwrap()
    );
}

#[test]
fn a_shell_completes_commands_flags_and_the_names_of_guests() {
    let installed = Installed::new();
    let script = installed.path("share/bash-completion/completions/posada");
    assert!(
        Command::new("bash")
            .arg("-n")
            .arg(&script)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(installed.completed(&["posada", "ru"]), ["run"]);
    assert_eq!(installed.completed(&["posada", "run", "--mem"]), ["--memory"]);
    assert_eq!(installed.completed(&["posada", "run", "--boot", "p"]), ["pvh"]);

    // A guest is there as long as somebody has the lock of its directory.
    let name = format!("completed-{}", process::id());
    let directory = runtime_directory().join("posada").join(&name);
    fs::create_dir_all(&directory).unwrap();
    let lock = File::open(&directory).unwrap();
    lock.lock().unwrap();
    for command in ["kill", "inspect", "logs", "snapshot"] {
        assert_eq!(
            installed.completed(&["posada", command, &name[..name.len() - 1]]),
            [name.as_str()]
        );
    }
    fs::remove_dir(&directory).unwrap();
}

#[test]
fn what_is_installed_can_be_removed() {
    let installed = Installed::new();
    for file in [
        "bin/posada",
        "share/doc/posada/LICENSE",
        "share/doc/posada/docs/api.md",
        "share/zsh/site-functions/_posada",
        "share/fish/vendor_completions.d/posada.fish",
    ] {
        assert!(installed.path(file).is_file(), "{file}");
    }
    installed.make("uninstall");
    let mut directories = vec![installed.path("")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.is_dir(), "{} is left", path.display());
            directories.push(path);
        }
    }
}
