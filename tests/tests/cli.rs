//! What posada refuses before it opens KVM, and what it says about itself. No test here needs /dev/kvm.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use posada_tests::guest::TempFile;
use posada_tests::{Guest, posada};

const USAGE: i32 = 2;

/// `posada run` with these arguments.
fn run(arguments: &[&str]) -> posada_tests::Ended {
    posada(&[&["run"], arguments].concat())
}

/// `posada run` with a config file of this text.
fn run_with_config(text: &str, arguments: &[&str]) -> posada_tests::Ended {
    let file = TempFile::new("guest.toml", text);
    run(&[&["--config", file.as_str()], arguments].concat())
}

#[test]
fn the_version_is_printed() {
    let ended = posada(&["--version"]).expect_status(0);
    assert_eq!(
        ended.console(),
        concat!("posada ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert_eq!(ended.messages(), "");
}

#[test]
fn help_has_every_flag_examples_and_the_exit_statuses() {
    let ended = run(&["--help"]).expect_status(0);
    let help = ended.console();
    for part in [
        "--kernel",
        "--initrd",
        "--cmdline",
        "--append",
        "--cpus",
        "--memory",
        "--name",
        "--config",
        "--boot",
        "--host-kind",
        "--verbose",
        "Examples:",
        "posada run --cpus 2",
        "Exit status:",
        "Ctrl-A x",
    ] {
        assert!(help.contains(part), "'{part}' is not in the help:\n{help}");
    }
    assert!(
        posada(&["--help"])
            .expect_status(0)
            .console()
            .contains("Exit status:")
    );
}

#[test]
fn wrong_usage_is_told_on_standard_error_with_status_2() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "Usage"),
        (&["start"], "start"),
        (&["run", "--kernal", "x"], "--kernel"),
        (&["run", "--cpus"], "--cpus"),
        (&["run", "--cpus", "two"], "two"),
        (&["run", "--memory", "1.5G"], "1.5G"),
        (&["run", "--boot", "bios"], "linux64"),
        (&["run", "--cmdline", "a", "--append", "b"], "--append"),
        (&["run", "vmlinux"], "vmlinux"),
    ];
    for (arguments, named) in cases {
        let ended = posada(arguments).expect_status(USAGE);
        assert_eq!(ended.console(), "", "{arguments:?}");
        assert!(ended.messages().contains(named), "{arguments:?}");
        ended.expect_no_panic();
    }
}

#[test]
fn settings_out_of_range_are_refused_in_one_sentence() {
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--cpus", "0"], &["0 CPUs", "1 to 254"]),
        (&["--cpus", "255"], &["255 CPUs", "1 to 254"]),
        (&["--memory", "0"], &["memory of 0", "at least"]),
        (&["--memory", "4K"], &["memory of 4K", "at least 2M"]),
        (
            &["--memory", "134217729"],
            &["memory of 134217729", "multiple of the page size"],
        ),
        (&["--name", ""], &["name"]),
        (&["--name", "../x"], &["'../x'", "name"]),
        (&["--name", "-x"], &["'-x'", "name"]),
        (
            &["--config", "/nonexistent/guest.toml"],
            &["/nonexistent/guest.toml", "No such file"],
        ),
    ];
    for (arguments, named) in cases {
        // A value that starts with a dash must be part of its flag's own argument.
        let joined: Vec<String> = arguments.chunks(2).map(|flag| flag.join("=")).collect();
        run(&joined.iter().map(String::as_str).collect::<Vec<_>>()).expect_refusal(USAGE, named);
    }
}

#[test]
fn numbers_that_fit_no_type_are_wrong_usage() {
    for arguments in [
        ["--cpus", "4294967296"],
        ["--cpus", "-1"],
        ["--memory", "99999999999999999999"],
    ] {
        let ended = run(&[arguments.join("=").as_str()]).expect_status(USAGE);
        assert!(ended.messages().contains(arguments[1]), "{}", ended.messages());
        ended.expect_no_panic();
    }
}

#[test]
fn a_config_file_is_refused_by_key_and_line() {
    let cases: [(&str, &[&str]); 7] = [
        ("cpus = 1\nmemroy = '1G'\n", &["guest.toml:2", "memroy", "memory"]),
        ("cpus = 1\n\n[disk]\npath = 'x'\n", &["guest.toml:3", "disk"]),
        ("cpus = 'two'\n", &["guest.toml:1", "two"]),
        ("cpus = 1\nmemory = '12X'\n", &["guest.toml:2", "12X"]),
        ("cpus = 1\nmemory = -1\n", &["guest.toml:2", "negative"]),
        ("cpus = 1\ncpus = 2\n", &["guest.toml:2", "duplicate key"]),
        ("cpus = \n", &["guest.toml:1"]),
    ];
    for (text, named) in cases {
        run_with_config(text, &[]).expect_refusal(USAGE, named);
    }
}

#[test]
fn a_config_file_that_contradicts_itself_is_refused() {
    let text = "cmdline = 'console=ttyS0'\nappend = 'quiet'\n";
    run_with_config(text, &[]).expect_refusal(USAGE, &["cmdline", "append", "one of the two"]);
}

#[test]
fn a_config_file_is_held_to_the_same_ranges_as_flags() {
    run_with_config("cpus = 0\n", &[]).expect_refusal(USAGE, &["0 CPUs"]);
    run_with_config("memory = 4097\n", &[]).expect_refusal(USAGE, &["memory of 4097"]);
    run_with_config("append = \"a\\u0000b\"\n", &[]).expect_refusal(USAGE, &["append", "NUL"]);
    run_with_config("cmdline = \"a\\u0000b\"\n", &[]).expect_refusal(USAGE, &["cmdline", "NUL"]);
    run_with_config("cpus = 1\n", &["--cpus", "0"]).expect_refusal(USAGE, &["0 CPUs"]);
}

#[test]
fn a_config_file_that_is_no_text_or_no_file_is_refused() {
    let binary = TempFile::new("guest.toml", [0xff, 0xfe, 0x00, 0x80]);
    run(&["--config", binary.as_str()]).expect_refusal(USAGE, &[binary.as_str()]);
    run(&["--config", "/"]).expect_refusal(USAGE, &["'/'", "directory"]);
    run(&["--config", "/dev/zero"]).expect_refusal(USAGE, &["'/dev/zero'", "longer than"]);
}

#[test]
fn standard_error_on_a_full_disk_leaves_the_exit_status() {
    let mut command = Guest::none().cpus(0).command(Stdio::null());
    command.stderr(File::options().write(true).open("/dev/full").unwrap());
    posada_tests::Running::of(command).wait().expect_status(USAGE);
}

/// posada in a mount namespace of its own, in which `hide` has changed what /dev/kvm is.
fn run_where(hide: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> posada_tests::Ended {
    let kernel = TempFile::new("kernel", "");
    let mut command = Guest::kernel(kernel.path()).command(Stdio::null());
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?));
        command.pre_exec(hide);
    }
    posada_tests::Running::of(command).wait()
}

#[test]
fn without_kvm_it_says_what_to_load_and_enable() {
    let ended = run_where(|| {
        let none: Option<&str> = None;
        Ok(mount(
            Some("none"),
            "/dev",
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )?)
    });
    ended.expect_refusal(1, &["there is no /dev/kvm", "kvm_intel", "kvm_amd"]);
}
