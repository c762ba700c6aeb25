//! What can be wrong with a kernel image, each as one sentence that the caller puts the file's name before.

use std::io;

use thiserror::Error;

use super::Codec;

/// Why a kernel was not loaded. The texts start in lower case: "`PATH`: " goes before them.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A file of no bytes.
    #[error("the kernel file is empty; name an uncompressed vmlinux or a bzImage")]
    Empty,
    /// The host could not read the file.
    #[error("the kernel's {what} cannot be read: {source}")]
    Read {
        /// The part of the file.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// The file's own headers speak of bytes after its end.
    #[error(
        "the kernel file is cut short: its {what} ends at byte {end}, but the file has only {len} bytes; \
         copy or build it again"
    )]
    Truncated {
        /// The part of the file.
        what: &'static str,
        /// File offset where that part ends.
        end: u64,
        /// Length of the file in bytes.
        len: u64,
    },
    /// Neither ELF nor bzImage.
    #[error(
        "this is not a kernel: none of its {bytes} bytes start an ELF vmlinux or an x86 bzImage; \
         name a vmlinux or a bzImage"
    )]
    NotAKernel {
        /// Length of the file in bytes.
        bytes: u64,
    },
    /// A compressed file around something.
    #[error("this is a file compressed with {codec}, not a kernel; decompress it first, or name the bzImage")]
    CompressedFile {
        /// The compression.
        codec: Codec,
    },
    /// An ELF or bzImage for 32-bit CPUs.
    #[error("this is a 32-bit kernel; only 64-bit x86 kernels can be booted, build it with CONFIG_64BIT")]
    ThirtyTwoBit,
    /// An ELF for another CPU architecture.
    #[error(
        "this kernel is for another kind of machine (ELF machine {machine}); it must be for x86-64 (ELF machine 62)"
    )]
    WrongMachine {
        /// The ELF header's e_machine.
        machine: u16,
    },
    /// An ELF that is not an executable.
    #[error(
        "this ELF file is {found}, not an executable kernel; name the vmlinux at the top of the kernel's build directory"
    )]
    NotExecutable {
        /// What its e_type says.
        found: &'static str,
    },
    /// An ELF header or program header that contradicts itself.
    #[error("the kernel's ELF headers are damaged: {what}; copy or build it again")]
    BadElf {
        /// What is wrong.
        what: String,
    },
    /// A setup header that contradicts itself.
    #[error("the bzImage's setup header is damaged: {what}; copy or build it again")]
    BadSetupHeader {
        /// What is wrong.
        what: String,
    },
    /// Part of the kernel lies where the boot data goes.
    #[error(
        "the kernel wants to be loaded at {start:#x}, below 1 MiB, where its boot parameters are; \
         link it at 1 MiB or higher"
    )]
    TooLow {
        /// First byte.
        start: u64,
    },
    /// Part of the kernel lies where no guest has RAM.
    #[error(
        "the kernel wants the addresses {start:#x} to {end:#x}, but there is no memory from 0xc0000000 (3 GiB) to 4 GiB \
         and kernels are loaded below that; link it lower"
    )]
    TooHigh {
        /// First byte.
        start: u64,
        /// First byte after.
        end: u64,
    },
    /// The guest is too small.
    #[error(
        "the kernel needs {} MiB of memory to be loaded; the guest has {} MiB, give it more",
        needs.div_ceil(1 << 20), has >> 20
    )]
    NeedsMemory {
        /// Address in bytes up to which the guest must have RAM.
        needs: u64,
        /// Where its RAM ends.
        has: u64,
    },
    /// PVH was asked for.
    #[error(
        "the kernel has no PVH entry point; build it with CONFIG_PVH, or let the boot protocol be chosen automatically"
    )]
    NoPvhNote,
    /// PVH was asked for, and the bzImage is not unpacked here.
    #[error(
        "a bzImage that unpacks itself cannot be entered by PVH; name the vmlinux, or let the boot protocol be \
         chosen automatically"
    )]
    PvhNeedsElf,
    /// A bzImage from before the 64-bit boot protocol.
    #[error(
        "this bzImage speaks version {}.{:02} of the Linux boot protocol; 2.12 (Linux 3.8) or later is needed",
        version >> 8, version & 0xff
    )]
    TooOld {
        /// The setup header's version.
        version: u16,
    },
    /// The payload does not decompress.
    #[error("the bzImage's {codec} payload cannot be unpacked: {reason}; copy or build it again")]
    Unpack {
        /// Its compression.
        codec: Codec,
        /// The decoder's reason.
        reason: String,
    },
    /// The payload decompresses to something that is no ELF file.
    #[error("the bzImage's payload unpacks to something that is not an ELF kernel; name the vmlinux instead")]
    PayloadNotElf,
}

impl KernelError {
    /// For `map_err` on reading `what`.
    pub(super) fn reading(what: &'static str) -> impl FnOnce(io::Error) -> KernelError {
        move |source| KernelError::Read { what, source }
    }
}
