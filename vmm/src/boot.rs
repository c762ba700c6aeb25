//! Puts the kernel and all that it is told into guest memory.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use arch_x86_64::acpi::{self, AcpiInfo};
use arch_x86_64::boot::BootInfo;
use arch_x86_64::kernel::{BootProtocol, Unpack};
use arch_x86_64::layout::VirtioSlot;
use arch_x86_64::registers::Registers;
use arch_x86_64::{boot, initrd, kernel, mptable};
use tracing::{debug_span, info};

use crate::config::{Boot, ConfigError, VmConfig};
use crate::error::Error;
use crate::generation;
use crate::host::HostKind;
use crate::images;
use crate::memory::GuestMemory;
use crate::pvm;

/// Loads kernel, initrd and tables, and returns the registers that the boot CPU starts with.
pub fn load(
    config: &VmConfig,
    host: HostKind,
    memory: &GuestMemory,
    virtio: &[VirtioSlot],
) -> Result<Registers, Error> {
    let _span = debug_span!("load kernel").entered();
    let (kernel_path, initrd_path) = match &config.kernel {
        Some(kernel) => (kernel.clone(), config.initrd.clone()),
        None => {
            let tiny = images::tiny()?;
            (tiny.kernel, Some(config.initrd.clone().unwrap_or(tiny.initrd)))
        }
    };
    let mut image = open("kernel", &kernel_path)?;
    let kernel =
        kernel::load(memory, &mut image, unpack_on(host), protocol(config.boot())).map_err(|source| {
            Error::Kernel {
                path: kernel_path,
                source,
            }
        })?;
    info!(
        "kernel: {:?}, entered at {:#x} by {:?}",
        kernel.format, kernel.entry.0, kernel.protocol
    );

    let initrd = match initrd_path {
        Some(path) => {
            let mut image = open("initrd", &path)?;
            let range = initrd::load(memory, &mut image, &kernel);
            Some(range.map_err(|source| Error::Initrd { path, source })?)
        }
        None => None,
    };
    generation::write_new(memory)?;
    mptable::write(memory, config.cpus())?;
    let rsdp = acpi::write(
        memory,
        &AcpiInfo {
            cpus: config.cpus(),
            virtio,
        },
    )?;
    let cmdline = config.kernel_cmdline(host, virtio);
    info!("kernel command line: {cmdline}");
    if config.cmdline.is_none() && host == HostKind::Pvm {
        info!("of these, this host kind wants: {}", pvm::GUEST_OPTIONS);
    }
    let cmdline = CString::new(cmdline).map_err(|_| ConfigError::Nul("the command line"))?;
    let info = BootInfo {
        kernel: &kernel,
        initrd,
        cmdline: &cmdline,
        rsdp: Some(rsdp),
    };
    Ok(boot::write(memory, &info)?)
}

/// A guest whose kernel is interpreted would take a minute to unpack itself. On hardware the guest unpacks
/// as fast as the host would, and places itself at random while it does (KASLR).
fn unpack_on(host: HostKind) -> Unpack {
    match host {
        HostKind::Hardware => Unpack::InGuest,
        HostKind::Pvm => Unpack::OnHost,
    }
}

fn protocol(boot: Boot) -> BootProtocol {
    match boot {
        Boot::Auto => BootProtocol::Auto,
        Boot::Pvh => BootProtocol::Pvh,
        Boot::Linux64 => BootProtocol::Linux64,
    }
}

/// Opens a file that must have a beginning and an end. A pipe has neither, and to open one would wait for its writer.
fn open(what: &'static str, path: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| match file.metadata()?.file_type() {
            kind if kind.is_file() => Ok(file),
            kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            _ => Err(io::Error::other(
                "it is a pipe or a device; copy it to a regular file",
            )),
        });
    opened.map_err(|source| Error::Open {
        what,
        path: path.to_owned(),
        source,
    })
}
