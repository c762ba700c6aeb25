//! Other processes: starts a program without copying this one, sends signals, sees them end.

use core::arch::asm;
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;
use core::ptr;

use crate::syscall::{Errno, Pid, Result, address, call, signal};

/// execve(2): returns only if it failed. The lists end with a null pointer.
pub fn execute<const A: usize, const E: usize>(
    path: &CStr,
    arguments: &List<'_, A>,
    environment: &List<'_, E>,
) -> Errno {
    // SAFETY: the kernel only reads the strings and the two lists, which `List` keeps null-terminated.
    match unsafe {
        call(
            59,
            [
                path.as_ptr().expose_provenance(),
                address(arguments),
                address(environment),
                0,
                0,
            ],
        )
    } {
        Ok(_) => Errno(0),
        Err(error) => error,
    }
}

/// A null-terminated list of strings, as execve(2) takes them.
#[repr(C)]
pub struct List<'a, const N: usize> {
    strings: [&'a c_char; N],
    end: *const c_char,
}

impl<'a, const N: usize> List<'a, N> {
    /// The strings in order.
    pub fn new(strings: [&'a CStr; N]) -> Self {
        // SAFETY: a CStr has at least its terminator, so its address is that of a readable byte.
        let strings = strings.map(|string| unsafe { &*string.as_ptr() });
        Self {
            strings,
            end: ptr::null(),
        }
    }
}

/// What a child needs in order to become another program.
pub trait Child {
    /// Runs in the child while this process stands still; it must end in `execute` or `exit`.
    fn run(&self) -> !;
}

/// Starts a child without copying this process: clone(2) with `CLONE_VM | CLONE_VFORK`, on a stack of its own.
///
/// On a host that interprets the guest's kernel a fork takes tens of milliseconds; this takes two.
pub fn spawn<C: Child>(child: &C) -> Result<Pid> {
    extern "C" fn enter<C: Child>(child: &C) -> ! {
        child.run()
    }

    const CLONE_VM: usize = 0x100;
    const CLONE_VFORK: usize = 0x4000;
    // 16 KiB, aligned as the ABI wants it.
    let mut stack = MaybeUninit::<[u128; 1024]>::uninit();
    let top = stack.as_mut_ptr().expose_provenance() + size_of_val(&stack);
    let returned: isize;
    // SAFETY: the child runs `enter` on `stack`, which lives until the child has left our memory, because CLONE_VFORK keeps us
    // in the call until then; `child` is only read. The parent goes on behind the label with the usual clobbers.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "2:",
            inlateout("rax") 56_isize => returned,
            in("rdi") CLONE_VM | CLONE_VFORK | signal::CHLD as usize,
            in("rsi") top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") 0,
            in("r12") enter::<C> as extern "C" fn(&C) -> !,
            in("r13") child,
            out("rcx") _,
            out("r11") _,
        );
    }
    match usize::try_from(returned) {
        Ok(pid) => Ok(pid as Pid),
        Err(_) => Err(Errno(returned.unsigned_abs() as u16)),
    }
}

/// Whether there are children of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// This one has ended, with this wait status.
    Child(Pid, u32),
    /// None has ended since the last time.
    NoneEnded,
    /// There are none.
    NoneLeft,
}

/// A child that has ended, if there is one: wait4(2) with `WNOHANG`.
pub fn reap() -> Reaped {
    let mut status = 0_u32;
    // SAFETY: the kernel writes the 4 bytes of `status`.
    match unsafe {
        call(
            61,
            [
                usize::MAX,
                ptr::from_mut(&mut status).expose_provenance(),
                1,
                0,
                0,
            ],
        )
    } {
        Ok(pid @ 1..) => Reaped::Child(pid as Pid, status),
        Ok(_) => Reaped::NoneEnded,
        Err(_) => Reaped::NoneLeft,
    }
}

/// Has the kernel send this process [`signal::ALRM`] in so many seconds: alarm(2).
pub fn alarm(seconds: u32) {
    // SAFETY: no memory is involved; the call cannot fail.
    let _ = unsafe { call(37, [seconds as usize, 0, 0, 0, 0]) };
}

/// Sends a signal to a process: kill(2).
pub fn signal_one(pid: Pid, number: u32) {
    // SAFETY: no memory is involved. An error means that there is no such process. Its number is positive.
    let _ = unsafe { call(62, [pid as usize, number as usize, 0, 0, 0]) };
}

/// Sends a signal to every process but this one: kill(2) with process -1.
pub fn signal_all(number: u32) {
    // SAFETY: no memory is involved. An error means that there is no other process.
    let _ = unsafe { call(62, [usize::MAX, number as usize, 0, 0, 0]) };
}
