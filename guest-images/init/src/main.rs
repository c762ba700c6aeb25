//! The first program of the tiny guest. It mounts the kernel's file systems, greets, runs a shell (or the program that
//! `posada.init=` names) on the console, reaps orphans, and ends the machine when that program, a signal or the power button
//! says so.
//!
//! It is freestanding and frugal with system calls: where the host interprets the guest's kernel, a system call takes 0.1 ms, a page fault
//! 0.8 ms, and each further 100 KB of program would take 0.1 s to unpack.
#![no_std]
#![no_main]

mod button;
mod console;
mod memory;
mod process;
mod syscall;

use core::ffi::CStr;

use button::Buttons;
use guest_init::parse;
use guest_init::text::Text;
use process::{Child, List, Reaped};
use syscall::{End, Errno, Fd, Pid, signal};

/// Where the kernel leaves the console, and where the console program finds it.
const STDIN: Fd = Fd(0);
const STDOUT: Fd = Fd(1);
const STDERR: Fd = Fd(2);

/// What is mounted where; `/dev` exists already in every initramfs that Linux unpacks.
const MOUNTS: [(&CStr, &CStr); 6] = [
    (c"proc", c"/proc"),
    (c"sysfs", c"/sys"),
    (c"devtmpfs", c"/dev"),
    (c"tmpfs", c"/tmp"),
    (c"tmpfs", c"/run"),
    (c"devpts", c"/dev/pts"),
];

const AGENT: &CStr = c"/bin/posada-agent";

/// What programs know of where they are.
const ENVIRONMENT: [&CStr; 6] = [
    c"PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin",
    c"HOME=/root",
    c"USER=root",
    c"SHELL=/bin/sh",
    c"TERM=linux",
    c"PS1=posada:\\w# ",
];

/// What ends a wait of process 1: a child's end, busybox's `halt`, `poweroff` and `reboot` (and Ctrl-Alt-Del), a button, and an
/// alarm of its own.
const SIGNALS: [u32; 7] = [
    signal::CHLD,
    signal::USR1,
    signal::USR2,
    signal::TERM,
    signal::INT,
    signal::IO,
    signal::ALRM,
];

/// How long programs have to end in their own way, in seconds.
const PATIENCE: u32 = 5;

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp", // marks the outermost frame (System V ABI, x86-64 supplement, § 3.4.1)
    "call {main}",  // the kernel enters with rsp aligned to 16
    main = sym main,
);

extern "C" fn main() -> ! {
    greet();
    for (kind, at) in MOUNTS {
        mount(kind, at);
    }
    if let Err(error) = syscall::set_host_name(b"posada") {
        complain(b"set the host name", b"posada", error);
    }
    load_modules();
    start_agent();
    let console = console::open();

    let mut buffer = [0; 2048]; // COMMAND_LINE_SIZE on x86 (Linux, arch/x86/include/asm/setup.h)
    let cmdline = syscall::read_file(c"/proc/cmdline", &mut buffer).unwrap_or_default();
    let program = parse::option(cmdline, b"posada.init");
    match start(program, console) {
        Ok(pid) => {
            let end = supervise(pid, program);
            end_programs(pid);
            finish(end)
        }
        Err(error) => {
            complain(b"start a process for", program.unwrap_or(b"the shell"), error);
            finish(End::PowerOff)
        }
    }
}

/// The first line of user space: what machine this is, and the way out.
fn greet() {
    let mut text = Text::new();
    text.push(b"\nposada guest");
    if let Ok(name) = syscall::kernel_name() {
        text.push(b": Linux ").push(name.release());
    }
    if let Ok(cpus) = syscall::cpu_count() {
        text.push(b", ")
            .number(cpus)
            .push(if cpus == 1 { b" CPU" } else { b" CPUs" });
    }
    if let Ok(info) = syscall::system_info() {
        text.push(b", ").number(info.memory_mib()).push(b" MiB of memory");
    }
    text.push(b"\nLeave with `poweroff`, or with Ctrl-A x from outside.\n\n");
    syscall::write(STDOUT, text.as_bytes());
}

fn mount(kind: &CStr, at: &CStr) {
    let _exists = syscall::make_directory(at);
    const EBUSY: u16 = 16;
    match syscall::mount(kind, at) {
        // The kernel mounts devtmpfs itself where it was built to do so.
        Ok(()) | Err(Errno(EBUSY)) => {}
        Err(error) => complain(b"mount", at.to_bytes(), error),
    }
}

/// Loads what `/etc/modules` lists, in that order; the tiny kernel has everything built in and no such file.
fn load_modules() {
    let mut buffer = [0; 4096];
    let Ok(list) = syscall::read_file(c"/etc/modules", &mut buffer) else {
        return;
    };
    for module in parse::modules(list) {
        let mut path = [0; 256];
        let outcome = terminated(module, &mut path).and_then(syscall::load_module);
        if let Err(error) = outcome {
            complain(b"load", module, error);
        }
    }
}

/// Starts the agent, by which the host runs commands and copies files, where the host can reach it.
fn start_agent() {
    if syscall::has_socket_device()
        && let Err(error) = process::spawn(&Agent)
    {
        complain(b"start a process for", AGENT.to_bytes(), error);
    }
}

struct Agent;

impl Child for Agent {
    fn run(&self) -> ! {
        let error = process::execute(AGENT, &List::new([AGENT]), &List::new(ENVIRONMENT));
        complain(b"run", AGENT.to_bytes(), error);
        syscall::exit(127)
    }
}

/// Starts the console program, `program` or a shell, on the terminal `console`.
fn start(program: Option<&[u8]>, console: Fd) -> syscall::Result<Pid> {
    syscall::hold_signals(&SIGNALS)?;
    let mut path = [0; 256];
    let (path, name) = match program {
        Some(program) => (terminated(program, &mut path)?, None),
        // The leading dash makes it a login shell.
        None => (c"/bin/busybox", Some(c"-sh")),
    };
    process::spawn(&ConsoleProgram { path, name, console })
}

/// A program that has the console to itself.
struct ConsoleProgram<'a> {
    path: &'a CStr,
    /// The name by which it shall know itself, if that is not its path.
    name: Option<&'a CStr>,
    console: Fd,
}

impl Child for ConsoleProgram<'_> {
    fn run(&self) -> ! {
        for standard in [STDIN, STDOUT, STDERR] {
            if let Err(error) = syscall::duplicate(self.console, standard) {
                complain(b"use the console for", self.path.to_bytes(), error);
            }
        }
        // Without a controlling terminal there is no job control, and still a shell.
        let _ = syscall::take_terminal(STDIN);
        let _ = syscall::change_directory(c"/root");
        let _ = syscall::hold_signals(&[]);
        let arguments = List::new([self.name.unwrap_or(self.path)]);
        let error = process::execute(self.path, &arguments, &List::new(ENVIRONMENT));
        complain(b"run", self.path.to_bytes(), error);
        syscall::exit(127)
    }
}

/// Reaps children until the console program ends or somebody asks for the machine's end.
fn supervise(console: Pid, program: Option<&[u8]>) -> End {
    let buttons = Buttons::watch();
    loop {
        match syscall::wait_signal(&SIGNALS) {
            Ok(signal::USR1) => return End::Halt,
            Ok(signal::USR2) => return End::PowerOff,
            Ok(signal::TERM | signal::INT) => return End::Restart,
            Ok(signal::IO) if buttons.is_pressed() => return End::PowerOff,
            _ => {}
        }
        while let Reaped::Child(pid, status) = process::reap() {
            if pid == console {
                if let Some(program) = program {
                    report(program, status);
                }
                return End::PowerOff;
            }
        }
    }
}

/// Says how the program that `posada.init=` named has ended. Bits of a wait status: wait(2), "WIFEXITED".
fn report(program: &[u8], status: u32) {
    let mut text = Text::new();
    text.push(b"init: ").push(program);
    match status & 0x7f {
        0 => text
            .push(b" exited with status ")
            .number(u64::from(status >> 8 & 0xff)),
        number => text.push(b" was killed by signal ").number(u64::from(number)),
    };
    text.push(b"\n");
    syscall::write(STDOUT, text.as_bytes());
}

/// Asks every program to end, and waits until all have, or for [`PATIENCE`]. A shell at its prompt ends when its terminal hangs up,
/// and not otherwise.
fn end_programs(console: Pid) {
    process::signal_all(signal::TERM);
    process::signal_one(console, signal::HUP);
    // One that is stopped hears of it, too.
    process::signal_all(signal::CONT);
    wait_until_alone();
}

/// Waits until there is no other process, or for [`PATIENCE`].
fn wait_until_alone() {
    process::alarm(PATIENCE);
    loop {
        match process::reap() {
            Reaped::Child(..) => {}
            // Orphans become init's children: nobody is left.
            Reaped::NoneLeft => return,
            Reaped::NoneEnded => {
                if let Ok(signal::ALRM) | Err(_) = syscall::wait_signal(&[signal::CHLD, signal::ALRM]) {
                    return;
                }
            }
        }
    }
}

/// Takes the disks out of use, so that their file systems are clean.
fn unmount_disks() {
    let mut buffer = [0; 4096];
    let mounts = syscall::read_file(c"/proc/mounts", &mut buffer).unwrap_or_default();
    for at in parse::mounted_disks(mounts) {
        let mut path = [0; 256];
        let Ok(path) = terminated(at, &mut path) else {
            continue;
        };
        if let Err(error) = syscall::unmount(path).or_else(|_| syscall::make_read_only(path)) {
            complain(b"unmount", at, error);
        }
    }
}

/// Ends every other process, writes out what is not yet on disk, and ends the machine.
fn finish(end: End) -> ! {
    // The kernel turns a power-off that it has no means for into a halt, which would leave the machine running for ever; without
    // ACPI there is no means. A reset ends the machine too.
    let end = match end {
        End::PowerOff if !syscall::exists(c"/sys/firmware/acpi") => End::Restart,
        end => end,
    };
    process::signal_all(signal::KILL);
    wait_until_alone();
    unmount_disks();
    syscall::sync();
    let error = syscall::end_machine(end);
    complain(b"end", b"the machine", error);
    syscall::exit(1) // the kernel panics, which is an end as well
}

/// A path as the kernel wants it; too long a one is `ENAMETOOLONG`.
fn terminated<'a>(path: &[u8], buffer: &'a mut [u8; 256]) -> syscall::Result<&'a CStr> {
    const ENAMETOOLONG: Errno = Errno(36);
    buffer
        .get_mut(..path.len())
        .ok_or(ENAMETOOLONG)?
        .copy_from_slice(path);
    CStr::from_bytes_until_nul(buffer).map_err(|_| ENAMETOOLONG)
}

fn complain(what: &[u8], whom: &[u8], Errno(number): Errno) {
    let mut text = Text::new();
    text.push(b"init: cannot ")
        .push(what)
        .push(b" ")
        .push(whom)
        .push(b": error ")
        .number(number.into())
        .push(b"\n");
    syscall::write(STDERR, text.as_bytes());
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    syscall::write(STDERR, b"init: a bug in init itself; the guest cannot go on\n");
    syscall::exit(1)
}
