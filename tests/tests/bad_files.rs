//! Kernels, initrds and amounts of memory that cannot be: each a sentence, an exit status, and nothing left behind.

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use posada_tests::guest::TempFile;
use posada_tests::payload::{elf, hello};
use posada_tests::{Ended, Guest, Running};

const FAILURE: i32 = 1;

/// A guest from a file with these bytes, run in a directory of its own, in which nothing must be left behind.
fn run_kernel(bytes: &[u8], change: impl FnOnce(Guest) -> Guest) -> (Ended, String) {
    let kernel = TempFile::new("the-kernel", bytes);
    let ended = change(Guest::kernel(kernel.path()))
        .in_directory(kernel.directory())
        .run();
    let left: Vec<_> = fs::read_dir(kernel.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["the-kernel"], "nothing is left behind");
    (ended, kernel.as_str().to_owned())
}

#[track_caller]
fn refuses_kernel(bytes: &[u8], named: &[&str]) {
    let (ended, path) = run_kernel(bytes, |guest| guest);
    ended.expect_refusal(FAILURE, &[&[path.as_str()], named].concat());
}

#[track_caller]
fn refuses_initrd(path: &Path, memory: &str, named: &[&str]) {
    let kernel = TempFile::new("kernel", elf(hello(), false));
    let ended = Guest::linux(kernel.path(), path).memory(memory).run();
    ended.expect_refusal(FAILURE, &[&[path.to_str().unwrap()], named].concat());
}

#[test]
fn a_missing_kernel() {
    let missing = Path::new("/nonexistent/vmlinux");
    Guest::kernel(missing)
        .run()
        .expect_refusal(FAILURE, &["kernel", "/nonexistent/vmlinux", "No such file"]);
}

#[test]
fn a_directory_as_the_kernel() {
    Guest::kernel(Path::new("/tmp"))
        .run()
        .expect_refusal(FAILURE, &["kernel", "'/tmp'", "directory"]);
}

/// To open a pipe would wait for somebody to write to it.
#[test]
fn a_pipe_or_a_device_as_the_kernel_or_the_initrd() {
    let kernel = TempFile::new("kernel", elf(hello(), false));
    let pipe = kernel.directory().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    for path in [&pipe, Path::new("/dev/zero")] {
        let named = path.to_str().unwrap();
        Guest::kernel(path)
            .run()
            .expect_refusal(FAILURE, &["kernel", named, "regular file"]);
        Guest::linux(kernel.path(), path)
            .run()
            .expect_refusal(FAILURE, &["initrd", named, "regular file"]);
    }
}

#[test]
fn an_empty_kernel() {
    refuses_kernel(b"", &["empty"]);
}

#[test]
fn a_kernel_that_is_cut_short_anywhere() {
    let image = elf(hello(), true);
    for len in [16, 63, 64, 100, 175, image.len() - 1] {
        refuses_kernel(&image[..len], &[]);
    }
    refuses_kernel(&image[..image.len() - 1], &["cut short"]);
}

#[test]
fn a_file_that_is_no_kernel() {
    refuses_kernel(b"#!/bin/sh\necho hello\n", &["not a kernel"]);
    let noise: Vec<u8> = (0..100_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    refuses_kernel(&noise, &["not a kernel"]);
    refuses_kernel(&[0; 8192], &["not a kernel"]);
    refuses_kernel(b"\x1f\x8b\x08\0\0\0\0\0\0\0", &["compressed", "gzip"]);
}

#[test]
fn a_kernel_for_another_cpu() {
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    let mut narrow = elf(hello(), false);
    narrow[CLASS] = 1;
    refuses_kernel(&narrow, &["32-bit"]);
    let mut arm = elf(hello(), false);
    arm[MACHINE] = 183;
    refuses_kernel(&arm, &["machine 183"]);
}

#[test]
fn an_object_file_as_the_kernel() {
    const TYPE: usize = 16;
    let mut object = elf(hello(), false);
    object[TYPE] = 1;
    refuses_kernel(&object, &["not an executable"]);
}

#[test]
fn a_boot_protocol_that_the_kernel_does_not_have() {
    let (ended, path) = run_kernel(&elf(hello(), false), |guest| guest.boot("pvh"));
    ended.expect_refusal(FAILURE, &[&path, "PVH"]);
}

#[test]
fn an_initrd_that_is_missing_or_empty_or_a_directory() {
    refuses_initrd(
        Path::new("/nonexistent/initrd"),
        "16M",
        &["initrd", "No such file"],
    );
    refuses_initrd(Path::new("/tmp"), "16M", &["initrd", "directory"]);
    let empty = TempFile::new("initrd", "");
    refuses_initrd(empty.path(), "16M", &["initrd", "empty"]);
}

#[test]
fn an_initrd_that_does_not_fit_beside_the_kernel() {
    let large = TempFile::new("initrd", vec![1; 16 << 20]);
    refuses_initrd(large.path(), "16M", &["initrd", "16384 KiB", "more memory"]);
}

#[test]
fn memory_that_the_kernel_does_not_fit_in() {
    const MIB: usize = 1 << 20;
    let code = [hello(), &vec![0; 4 * MIB]].concat();
    let (ended, path) = run_kernel(&elf(&code, false), |guest| guest.memory("2M"));
    ended.expect_refusal(FAILURE, &[&path, "needs 6 MiB", "has 2 MiB"]);
}

#[test]
fn memory_that_the_host_does_not_have() {
    for size in ["8T", "1024T", "16777215T"] {
        let guest = Guest::payload(hello()).memory(size);
        guest
            .run()
            .expect_refusal(FAILURE, &[&format!("memory of {size}"), "host", "less"]);
    }
}

#[test]
fn a_command_line_that_is_too_long() {
    let longest = "x".repeat(2047);
    Guest::payload(hello())
        .arg("--cmdline")
        .arg(&longest)
        .run()
        .expect_status(0);
    let guest = Guest::payload(hello()).arg("--cmdline").arg(longest + "x");
    guest
        .run()
        .expect_refusal(FAILURE, &["command line", "2048 bytes", "2047"]);
}

/// Over /dev/kvm comes a file that nobody may open. In a user namespace that maps no user even root is nobody.
#[test]
fn kvm_without_permission() {
    let locked = TempFile::new("kvm", "");
    fs::set_permissions(locked.path(), Permissions::from_mode(0o000)).unwrap();
    let kernel = TempFile::new("kernel", elf(hello(), false));
    let mut command = Guest::kernel(kernel.path()).command(Stdio::null());
    let over = CString::new(locked.as_str()).unwrap();
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            let none: Option<&CStr> = None;
            Ok(mount(
                Some(over.as_c_str()),
                c"/dev/kvm",
                none,
                MsFlags::MS_BIND,
                none,
            )?)
        });
    }
    let ended = Running::of(command).wait();
    ended.expect_refusal(FAILURE, &["no permission", "/dev/kvm", "group", "usermod -aG"]);
}

#[test]
fn paths_in_a_config_file_are_relative_to_it() {
    let config = TempFile::new("guest.toml", "kernel = 'no-such-kernel'\n");
    let wanted = config.directory().join("no-such-kernel");
    let guest = Guest::none().arg("--config").arg(config.path());
    guest
        .run()
        .expect_refusal(FAILURE, &[wanted.to_str().unwrap(), "No such file"]);
}

#[test]
fn no_kernel_named_and_no_tiny_guest_built() {
    let cache = TempFile::new("cache", "");
    let guest = Guest::none().env("POSADA_CACHE", cache.directory());
    guest
        .run()
        .expect_refusal(FAILURE, &["no kernel", "make guest", "--kernel"]);
}
