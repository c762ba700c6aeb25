//! Tests of the configuration model.

use std::fs;
use std::io::Write;

use arch_x86_64::layout::Interrupts;
use clap::Parser;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::pvm;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: VmConfig,
}

fn flags(args: &[&str]) -> VmConfig {
    Flags::try_parse_from([&["test"], args].concat()).unwrap().config
}

struct Toml {
    directory: TempDir,
    path: PathBuf,
}

fn toml(text: &str) -> Toml {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("guest.toml");
    fs::File::create(&path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    Toml { directory, path }
}

fn malformed(text: &str) -> (usize, String) {
    match VmConfig::from_file(&toml(text).path) {
        Err(ConfigError::Malformed { line, message, .. }) => (line, message),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn flags_and_file_say_the_same_things() {
    let file = toml(
        "kernel = '/k'\ninitrd = '/i'\nappend = 'quiet'\ncpus = 2\nmemory = '1G'\nname = 'web'\nboot = 'pvh'\nhost-kind = 'pvm'\n",
    );
    let from_file = VmConfig::from_file(&file.path).unwrap();
    let from_flags = flags(&[
        "--kernel=/k",
        "--initrd=/i",
        "--append=quiet",
        "--cpus=2",
        "--memory=1G",
        "--name=web",
        "--boot=pvh",
        "--host-kind=pvm",
    ]);
    assert_eq!(from_file, from_flags);
    from_file.check().unwrap();
}

#[test]
fn flags_win_over_the_file() {
    let file = VmConfig::from_file(&toml("cpus = 2\nmemory = '1G'\nappend = 'a'").path).unwrap();
    let merged = flags(&["--cpus=4", "--cmdline=b"]).or(file);
    assert_eq!((merged.cpus(), merged.memory()), (4, ByteSize(1 << 30)));
    assert_eq!(
        (merged.cmdline.as_deref(), merged.append.as_deref()),
        (Some("b"), None)
    );
    merged.check().unwrap();
}

#[test]
fn a_device_of_a_flag_replaces_the_files_as_a_whole() {
    let file = toml("[vsock]\npath = '/a'\ncid = 7\n[balloon]\nsize = '4M'\nstats = 5\n");
    let file = VmConfig::from_file(&file.path).unwrap();
    let merged = flags(&["--vsock=/b", "--balloon=size=8M"]).or(file.clone());
    assert_eq!(merged, flags(&["--vsock=/b", "--balloon=size=8M"]));
    assert_eq!(flags(&[]).or(file.clone()), file);
    let too_large = flags(&["--balloon=size=4M", "--memory=4M"]).check();
    assert!(matches!(too_large, Err(ConfigError::Balloon(_))));
    let no_guests = flags(&["--vsock=/b,cid=2"]).check();
    assert!(matches!(no_guests, Err(ConfigError::Vsock(_))));
}

#[test]
fn another_kernel_does_not_get_the_files_initrd() {
    let file = VmConfig::from_file(&toml("kernel = '/k'\ninitrd = '/i'").path).unwrap();
    assert_eq!(flags(&["--kernel=/other"]).or(file).initrd, None);
}

#[test]
fn paths_in_a_file_are_relative_to_it() {
    let file = toml(
        "kernel = 'vmlinux'\ninitrd = '/abs'\n[vsock]\npath = 'v.sock'\n\
        [[disk]]\npath = 'd'\noverlay = 'o'\n",
    );
    let config = VmConfig::from_file(&file.path).unwrap();
    let here = |name| file.directory.as_path().join(name);
    assert_eq!(
        (&config.disks[0].path, &config.disks[0].overlay),
        (&here("d"), &Some(here("o")))
    );
    assert_eq!(config.kernel, Some(file.directory.as_path().join("vmlinux")));
    assert_eq!(config.initrd, Some(PathBuf::from("/abs")));
    let vsock = config.vsock.and_then(|vsock| vsock.path);
    assert_eq!(vsock, Some(file.directory.as_path().join("v.sock")));
}

#[test]
fn a_malformed_file_is_named_with_key_and_line() {
    let (line, message) = malformed("cpus = 1\n\ncpu = 2\n");
    assert_eq!(line, 3);
    assert!(message.contains("unknown field `cpu`"), "{message}");
    let (line, message) = malformed("cpus = 1\nmemory = 'lots'\n");
    assert_eq!(line, 2);
    assert!(message.contains("'lots' is not a size"), "{message}");
    assert_eq!(malformed("cpus = 1\ncpus = 2\n").0, 2);
    assert_eq!(malformed("cpus = \"two\"").0, 1);
    assert_eq!(malformed("memory = -4096").0, 1);
}

#[test]
fn a_missing_file_is_named() {
    let error = VmConfig::from_file(Path::new("/nonexistent/guest.toml")).unwrap_err();
    assert!(error.to_string().contains("'/nonexistent/guest.toml'"), "{error}");
}

#[test]
fn a_file_without_an_end_is_refused() {
    let error = VmConfig::from_file(Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(error, ConfigError::TooLong(_)), "{error}");
    let comment = "#".repeat(MAX_FILE as usize);
    assert_eq!(
        VmConfig::from_file(&toml(&comment).path).unwrap(),
        VmConfig::default()
    );
}

#[test]
fn contradictions_are_refused() {
    let file = toml("cmdline = 'a'\nappend = 'b'");
    assert!(matches!(
        VmConfig::from_file(&file.path),
        Err(ConfigError::CmdlineAndAppend)
    ));
    assert!(Flags::try_parse_from(["test", "--cmdline=a", "--append=b"]).is_err());
}

#[test]
fn ranges_are_checked() {
    let refused = |args: &[&str]| flags(args).check().unwrap_err().to_string();
    assert!(refused(&["--cpus=0"]).starts_with("0 CPUs"));
    assert!(refused(&["--cpus=100000"]).starts_with("100000 CPUs"));
    assert!(refused(&["--memory=0"]).contains("at least 2M"));
    assert!(refused(&["--memory=134217729"]).contains("multiple of the page size"));
    for name in ["", ".hidden", "-flag", "a/b", "a b", "ü", &"x".repeat(65)] {
        let flag = format!("--name={name}");
        assert!(refused(&[&flag]).contains("is not a name"), "{name}");
    }
    let nul = VmConfig {
        append: Some("a\0b".into()),
        ..Default::default()
    };
    assert!(nul.check().unwrap_err().to_string().contains("NUL"));
    VmConfig::default().check().unwrap();
}

#[test]
fn the_default_command_line_takes_additions_and_the_hosts_options() {
    let config = flags(&["--append=quiet"]);
    assert_eq!(
        config.kernel_cmdline(HostKind::Hardware, &[]),
        "console=ttyS0,115200n8r panic=-1 quiet"
    );
    let on_pvm = config.kernel_cmdline(HostKind::Pvm, &[]);
    assert!(
        on_pvm.contains(pvm::GUEST_OPTIONS) && on_pvm.ends_with(" quiet"),
        "{on_pvm}"
    );
    assert_eq!(
        flags(&["--cmdline=only this"]).kernel_cmdline(HostKind::Pvm, &[]),
        "only this"
    );
}

#[test]
fn a_kernel_without_acpi_is_told_of_the_virtio_devices() {
    let slots = layout::virtio_slots(2, Interrupts::IoApic).unwrap();
    let line = |args: &[&str]| flags(args).kernel_cmdline(HostKind::Hardware, &slots);
    let devices = " virtio_mmio.device=0x1000@0xd0000000:16 virtio_mmio.device=0x1000@0xd0001000:17";
    assert!(line(&["--append=acpi=off"]).ends_with(&format!(" acpi=off{devices}")));
    assert_eq!(
        line(&["--cmdline=a acpi=off b"]),
        format!("a acpi=off b{devices}")
    );
    assert!(!line(&["--append=noacpi=offline"]).contains("virtio"));
    let listing = VmConfig {
        lists_devices: true,
        ..flags(&["--cmdline=any"])
    };
    let line = listing.kernel_cmdline(HostKind::Hardware, &slots);
    assert_eq!(line, format!("any{devices}"));
}

#[test]
fn a_kernel_without_the_io_apic_is_interrupted_otherwise() {
    for args in ["--append=noapic", "--cmdline=ro noapic quiet"] {
        assert_eq!(flags(&[args]).interrupts(), Interrupts::Pic, "{args}");
    }
    for args in ["--append=noapictimer", "--name=noapic"] {
        assert_eq!(flags(&[args]).interrupts(), Interrupts::IoApic, "{args}");
    }
}

#[test]
fn a_core_of_two_threads_has_both() {
    for (cpus, fits) in [("--cpus=1", true), ("--cpus=3", false), ("--cpus=4", true)] {
        assert_eq!(flags(&["--smt", cpus]).check().is_ok(), fits, "{cpus}");
    }
}
