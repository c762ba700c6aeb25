//! The programs, by name.

mod balloon;
mod blk_bench;
mod blk_check;
mod blk_renew;
mod devices;
mod generation;
mod hostile;
mod http;
mod idle;
mod net;
mod net_bench;
mod ping_pong;
mod report;
mod rng;
mod tcp;
mod vsock_call;
mod vsock_echo;

use alloc::format;

use bare_guest::arguments::Arguments;

use crate::failure::{Failure, Outcome};
use crate::{println, serial};

/// A program.
struct Program {
    name: &'static str,
    /// One line for [`list`].
    help: &'static str,
    run: fn(&Arguments<'_>) -> Outcome,
}

/// All of them. Arguments in brackets have defaults.
const PROGRAMS: [Program; 21] = [
    Program {
        name: "hello",
        help: "prints a line",
        run: hello,
    },
    Program {
        name: "boot-timer",
        help: "says twice that it has booted",
        run: boot_timer,
    },
    Program {
        name: "echo",
        help: "prints a line of input",
        run: idle::echo,
    },
    Program {
        name: "count",
        help: "counts lines of input [touch=0 dirty=0]",
        run: idle::count,
    },
    Program {
        name: "panic",
        help: "panics",
        run: |_| panic!("as it was told to"),
    },
    Program {
        name: "fault",
        help: "reads where it may not",
        run: fault,
    },
    Program {
        name: "devices",
        help: "prints what each device says of itself",
        run: devices::run,
    },
    Program {
        name: "idle",
        help: "starts every device, and waits for a line of input",
        run: idle::run,
    },
    Program {
        name: "generation",
        help: "prints the machine's generation id for each line of input, until it is \"end\" [address=0x9c000 pin=9]",
        run: generation::run,
    },
    Program {
        name: "rng",
        help: "prints random bytes [bytes=32]",
        run: rng::run,
    },
    Program {
        name: "blk-check",
        help: "writes a pattern, reads it back, flushes [first=0 sectors=64 seed=1 mode=write|read rounds=no|yes]",
        run: blk_check::run,
    },
    Program {
        name: "blk-renew",
        help: "reads what it wrote and writes anew, until there is a line of input [pieces=64 event-idx=yes|no]",
        run: blk_renew::run,
    },
    Program {
        name: "blk-bench",
        help: "op=read|write|flush [size=4K depth=1 pattern=seq|random count=1000|seconds= queue=0 indirect=no|yes event-idx=yes|no wait=poll|interrupt]",
        run: blk_bench::run,
    },
    Program {
        name: "net-bench",
        help: "direction=tx|rx [size=1514 count=1000 depth=256 buffer=2K event-idx=yes|no]",
        run: net_bench::run,
    },
    Program {
        name: "ping-pong",
        help: "sends frames back, or starts it [count=1000 size=64 start=host|guest event-idx=yes|no wait=poll|interrupt]",
        run: ping_pong::run,
    },
    Program {
        name: "tcp",
        help: "receives a TCP stream of the host's, then sends one [address=10.9.0.2 host=10.9.0.1 port=8000 count=1M seed=1 mtu=1500]",
        run: tcp::run,
    },
    Program {
        name: "http",
        help: "asks the metadata service for each path that is a line of input, until it is \"end\" [address=10.9.0.2 host=169.254.169.254 port=80]",
        run: http::run,
    },
    Program {
        name: "vsock-echo",
        help: "sends back what connections bring [port=5000 connections=1 wait=poll|interrupt]",
        run: vsock_echo::run,
    },
    Program {
        name: "vsock-call",
        help: "calls the host and checks what it sends back [port=5000 connections=1 bytes=1M]",
        run: vsock_call::run,
    },
    Program {
        name: "balloon",
        help: "hands memory to the host and takes it back [size=16M by=list|report]",
        run: balloon::run,
    },
    Program {
        name: "hostile",
        help: "misuses a device in a hundred ways [device=rng case=all repeat=1]",
        run: hostile::run,
    },
];

/// Runs the program that the command line names.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let Some(name) = arguments.text("program") else {
        list();
        return Err(Failure::new("the command line has no program="));
    };
    let Some(program) = PROGRAMS.iter().find(|program| program.name == name) else {
        list();
        return Err(Failure::new(format!("there is no program {name}")));
    };
    let holds = arguments.choice("hold", &[("no", false), ("yes", true)], "yes or no")?;
    (program.run)(arguments)?;
    if holds {
        serial::listen();
        serial::read_line();
    }
    Ok(())
}

fn list() {
    println!("programs:");
    for Program { name, help, .. } in &PROGRAMS {
        println!("  {name:<12} {help}");
    }
}

fn hello(_: &Arguments<'_>) -> Outcome {
    println!("hello from the bare guest");
    Ok(())
}

/// Says that the guest has booted, as Firecracker's guests do.
fn boot_timer(_: &Arguments<'_>) -> Outcome {
    const REGISTER: usize = 0xc000_0000;
    const BOOTED: u8 = 123;
    for _ in 0..2 {
        // SAFETY: posada's register or nothing is there, and no memory of the program's.
        unsafe { core::ptr::with_exposed_provenance_mut::<u8>(REGISTER).write_volatile(BOOTED) };
    }
    Ok(())
}

/// Shows that exceptions are told.
fn fault(_: &Arguments<'_>) -> Outcome {
    // SAFETY: 8 GiB is not mapped: the read does not come to its end.
    let value = unsafe { core::ptr::with_exposed_provenance::<u8>(8 << 30).read_volatile() };
    Err(Failure::new(format!("read {value} where nothing is mapped")))
}
