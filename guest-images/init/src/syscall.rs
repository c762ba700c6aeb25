//! The Linux system calls that init makes, as thin safe functions. There is no C library underneath: numbers, flags and layouts are
//! those of the x86-64 kernel interface (Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi).

use core::arch::asm;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::ptr;

/// A kernel error number (`errno`).
#[derive(Clone, Copy, Debug)]
pub struct Errno(pub u16);

/// What a system call returns.
pub type Result<T> = core::result::Result<T, Errno>;

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub u32);

/// Process and signal numbers as the kernel gives them.
pub type Pid = i32;

/// Signal numbers (asm-generic/signal.h).
pub mod signal {
    pub const HUP: u32 = 1;
    pub const INT: u32 = 2;
    pub const KILL: u32 = 9;
    pub const USR1: u32 = 10;
    pub const USR2: u32 = 12;
    pub const ALRM: u32 = 14;
    pub const TERM: u32 = 15;
    pub const CHLD: u32 = 17;
    pub const CONT: u32 = 18;
    pub const IO: u32 = 29;
}

/// The ways in which reboot(2) ends the machine (linux/reboot.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum End {
    Restart = 0x0123_4567,
    Halt = 0xcdef_0123,
    PowerOff = 0x4321_fedc,
}

/// `struct utsname` (linux/utsname.h): NUL-terminated names of 65 bytes each.
#[repr(C)]
pub struct Utsname {
    system: [u8; 65],
    node: [u8; 65],
    release: [u8; 65],
    version: [u8; 65],
    machine: [u8; 65],
    domain: [u8; 65],
}

impl Utsname {
    /// The kernel's release, such as `6.1.0`.
    pub fn release(&self) -> &[u8] {
        self.release.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// `struct sysinfo` (linux/sysinfo.h).
#[repr(C)]
pub struct Sysinfo {
    uptime: i64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    processes: u16,
    padding: u16,
    total_high: u64,
    free_high: u64,
    unit: u32,
}

impl Sysinfo {
    /// Memory that the kernel manages, in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.total_ram.saturating_mul(u64::from(self.unit)) >> 20
    }
}

/// The kernel's `struct termios` (asm-generic/termbits.h), which is not the C library's.
#[repr(C)]
pub struct Termios {
    input: u32,
    output: u32,
    /// Control flags.
    pub control: u32,
    local: u32,
    line: u8,
    characters: [u8; 19],
}

/// `CRTSCTS` (asm-generic/termbits-common.h): hardware flow control by RTS and CTS.
pub const CRTSCTS: u32 = 0x8000_0000;

/// A system call with up to five arguments.
///
/// # Safety
/// The arguments must be what the call expects; what it writes to must be valid for that and not otherwise referenced.
pub unsafe fn call(number: usize, args: [usize; 5]) -> Result<usize> {
    let [a, b, c, d, e] = args;
    let returned: isize;
    // SAFETY: `syscall` clobbers rax, rcx and r11 only; the caller vouches for the memory that the kernel reads and writes.
    unsafe {
        asm!("syscall", inlateout("rax") number => returned, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, out("rcx") _, out("r11") _, options(nostack));
    }
    match usize::try_from(returned) {
        Ok(value) => Ok(value),
        // Errors are -4095 to -1, which fit.
        Err(_) => Err(Errno(returned.unsigned_abs() as u16)),
    }
}

/// The address of something that the kernel reads.
pub fn address<T>(reference: &T) -> usize {
    ptr::from_ref(reference).expose_provenance()
}

/// read(2) until the buffer is full or the file ends; returns what was read.
pub fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
    let fd = open(path, Access::Read)?;
    let mut length = 0;
    let outcome = loop {
        let room = buffer.get_mut(length..).unwrap_or_default();
        // SAFETY: the kernel writes at most `room.len()` bytes into `room`, which is ours alone.
        match unsafe {
            call(
                0,
                [
                    fd.0 as usize,
                    room.as_mut_ptr().expose_provenance(),
                    room.len(),
                    0,
                    0,
                ],
            )
        } {
            Ok(0) => break Ok(()),
            Ok(count) => length += count,
            Err(error) => break Err(error),
        }
    };
    close(fd);
    outcome?;
    Ok(buffer.get(..length).unwrap_or_default())
}

/// write(2) of all of `bytes`, as far as the file takes them: there is nowhere to report an error to.
pub fn write(fd: Fd, mut bytes: &[u8]) {
    // SAFETY: the kernel only reads, and only `bytes`.
    while let Ok(count @ 1..) = unsafe {
        call(
            1,
            [
                fd.0 as usize,
                bytes.as_ptr().expose_provenance(),
                bytes.len(),
                0,
                0,
            ],
        )
    } {
        bytes = bytes.get(count..).unwrap_or_default();
    }
}

/// How a file is opened.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Access {
    /// `O_RDONLY | O_CLOEXEC`
    Read = 0o2_000_000,
    /// `O_RDWR | O_NOCTTY | O_CLOEXEC`
    Terminal = 0o2_000_402,
    /// `O_RDONLY | O_NONBLOCK | O_CLOEXEC`
    Poll = 0o2_004_000,
}

/// open(2).
pub fn open(path: &CStr, access: Access) -> Result<Fd> {
    // SAFETY: the kernel only reads, and only the NUL-terminated path.
    let fd = unsafe { call(2, [path.as_ptr().expose_provenance(), access as usize, 0, 0, 0]) }?;
    // Descriptors are small.
    Ok(Fd(fd as u32))
}

/// close(2).
pub fn close(fd: Fd) {
    // SAFETY: no memory is involved. An error means that the descriptor was closed already.
    let _ = unsafe { call(3, [fd.0 as usize, 0, 0, 0, 0]) };
}

/// dup2(2).
pub fn duplicate(from: Fd, to: Fd) -> Result<()> {
    // SAFETY: no memory is involved.
    unsafe { call(33, [from.0 as usize, to.0 as usize, 0, 0, 0]) }.map(drop)
}

/// Whether a file exists: access(2) with `F_OK`.
pub fn exists(path: &CStr) -> bool {
    // SAFETY: the kernel only reads, and only the NUL-terminated path.
    unsafe { call(21, [path.as_ptr().expose_provenance(), 0, 0, 0, 0]) }.is_ok()
}

/// mkdir(2) with mode 0755.
pub fn make_directory(path: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads, and only the NUL-terminated path.
    unsafe { call(83, [path.as_ptr().expose_provenance(), 0o755, 0, 0, 0]) }.map(drop)
}

/// chdir(2).
pub fn change_directory(path: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads, and only the NUL-terminated path.
    unsafe { call(80, [path.as_ptr().expose_provenance(), 0, 0, 0, 0]) }.map(drop)
}

/// mount(2) of a file system that needs no device, without flags or options.
pub fn mount(kind: &CStr, at: &CStr) -> Result<()> {
    let kind = kind.as_ptr().expose_provenance();
    // SAFETY: the kernel only reads, and only the NUL-terminated strings.
    unsafe { call(165, [kind, at.as_ptr().expose_provenance(), kind, 0, 0]) }.map(drop)
}

/// sethostname(2).
pub fn set_host_name(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel only reads, and only `name`.
    unsafe { call(170, [name.as_ptr().expose_provenance(), name.len(), 0, 0, 0]) }.map(drop)
}

/// finit_module(2) without parameters.
pub fn load_module(path: &CStr) -> Result<()> {
    let fd = open(path, Access::Read)?;
    // SAFETY: the kernel reads the file and the empty parameter string, nothing else.
    let outcome = unsafe { call(313, [fd.0 as usize, c"".as_ptr().expose_provenance(), 0, 0, 0]) };
    close(fd);
    outcome.map(drop)
}

/// Whether there is a socket device that leads to a host: ioctl(2) `IOCTL_VM_SOCKETS_GET_LOCAL_CID` (vsock(7)) tells of an address.
pub fn has_socket_device() -> bool {
    const VMADDR_CID_ANY: u32 = u32::MAX;
    let Ok(fd) = open(c"/dev/vsock", Access::Read) else {
        return false;
    };
    let mut cid = VMADDR_CID_ANY;
    // SAFETY: the kernel writes the 4 bytes of `cid`.
    let outcome = unsafe {
        call(
            16,
            [
                fd.0 as usize,
                0x7b9,
                ptr::from_mut(&mut cid).expose_provenance(),
                0,
                0,
            ],
        )
    };
    close(fd);
    outcome.is_ok() && cid != VMADDR_CID_ANY
}

/// uname(2).
pub fn kernel_name() -> Result<Utsname> {
    let mut name = MaybeUninit::<Utsname>::zeroed();
    // SAFETY: the kernel fills in exactly a `struct utsname`, for which all bit patterns are valid.
    unsafe {
        call(63, [name.as_mut_ptr().expose_provenance(), 0, 0, 0, 0])?;
        Ok(name.assume_init())
    }
}

/// sysinfo(2).
pub fn system_info() -> Result<Sysinfo> {
    let mut info = MaybeUninit::<Sysinfo>::zeroed();
    // SAFETY: the kernel fills in exactly a `struct sysinfo`, for which all bit patterns are valid.
    unsafe {
        call(99, [info.as_mut_ptr().expose_provenance(), 0, 0, 0, 0])?;
        Ok(info.assume_init())
    }
}

/// The number of CPUs that this process may run on: sched_getaffinity(2), for up to 1024 of them.
pub fn cpu_count() -> Result<u64> {
    let mut mask = [0_u64; 16];
    // SAFETY: the kernel writes at most `size_of_val(&mask)` bytes into `mask`.
    unsafe {
        call(
            204,
            [0, size_of_val(&mask), mask.as_mut_ptr().expose_provenance(), 0, 0],
        )
    }?;
    Ok(mask.iter().map(|word| u64::from(word.count_ones())).sum())
}

/// umount2(2) without flags.
pub fn unmount(at: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads, and only the NUL-terminated path.
    unsafe { call(166, [at.as_ptr().expose_provenance(), 0, 0, 0, 0]) }.map(drop)
}

/// Makes a mounted file system read-only: mount(2) with `MS_REMOUNT | MS_RDONLY`.
pub fn make_read_only(at: &CStr) -> Result<()> {
    // SAFETY: the kernel only reads, and only the NUL-terminated path; source, type and options are not used.
    unsafe { call(165, [0, at.as_ptr().expose_provenance(), 0, 0x21, 0]) }.map(drop)
}

/// The settings of a terminal: ioctl(2) `TCGETS`.
pub fn terminal(fd: Fd) -> Result<Termios> {
    let mut termios = MaybeUninit::<Termios>::zeroed();
    // SAFETY: the kernel fills in exactly its `struct termios`, for which all bit patterns are valid.
    unsafe {
        call(
            16,
            [
                fd.0 as usize,
                0x5401,
                termios.as_mut_ptr().expose_provenance(),
                0,
                0,
            ],
        )?;
        Ok(termios.assume_init())
    }
}

/// Changes the settings of a terminal at once: ioctl(2) `TCSETS`.
pub fn set_terminal(fd: Fd, termios: &Termios) -> Result<()> {
    // SAFETY: the kernel only reads, and only `termios`.
    unsafe { call(16, [fd.0 as usize, 0x5402, address(termios), 0, 0]) }.map(drop)
}

/// Makes this process the leader of a new session that has the terminal `fd`: setsid(2), ioctl(2) `TIOCSCTTY`.
pub fn take_terminal(fd: Fd) -> Result<()> {
    // SAFETY: no memory is involved. 1: take it even if another session has it.
    unsafe {
        call(112, [0; 5])?;
        call(16, [fd.0 as usize, 0x540e, 1, 0, 0]).map(drop)
    }
}

/// Sets which signals this process holds back: rt_sigprocmask(2) with `SIG_SETMASK`.
pub fn hold_signals(signals: &[u32]) -> Result<()> {
    let mask = signal_set(signals);
    // SAFETY: the kernel only reads, and only the 8 bytes of `mask`.
    unsafe { call(14, [2, address(&mask), 0, size_of_val(&mask), 0]) }.map(drop)
}

/// Waits for one of the signals, which must be held back: rt_sigtimedwait(2) without a time limit.
pub fn wait_signal(signals: &[u32]) -> Result<u32> {
    let mask = signal_set(signals);
    // SAFETY: the kernel only reads, and only the 8 bytes of `mask`. Signal numbers are small.
    unsafe { call(128, [address(&mask), 0, 0, size_of_val(&mask), 0]) }.map(|number| number as u32)
}

fn signal_set(signals: &[u32]) -> u64 {
    signals.iter().fold(0, |set, number| set | 1 << (number - 1))
}

/// sync(2).
pub fn sync() {
    // SAFETY: no memory is involved; the call cannot fail.
    let _ = unsafe { call(162, [0; 5]) };
}

/// reboot(2): returns only if the kernel cannot end the machine in this way.
pub fn end_machine(end: End) -> Errno {
    // SAFETY: no memory is involved. The first two arguments are the call's magic numbers (linux/reboot.h).
    match unsafe { call(169, [0xfee1_dead, 0x2812_1969, end as usize, 0, 0]) } {
        Ok(_) => Errno(0),
        Err(error) => error,
    }
}

/// exit_group(2).
pub fn exit(status: u8) -> ! {
    // SAFETY: no memory is involved, and the call does not return.
    unsafe {
        let _ = call(231, [usize::from(status), 0, 0, 0, 0]);
        asm!("ud2", options(noreturn));
    }
}
