//! Catches CPU exceptions as signals and goes on behind the instruction that raised them.
//!
//! A probe stores in `RESUME` where to go on and then executes the instruction; the handler notes the signal, and makes the
//! interrupted context continue at `RESUME`. So each probe also goes through rt_sigreturn with all registers.

use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// Where the handler lets the interrupted code go on.
pub static RESUME: AtomicUsize = AtomicUsize::new(0);
/// How many interval timer signals have arrived.
pub static TICKS: AtomicU64 = AtomicU64::new(0);

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicUsize = AtomicUsize::new(0);

/// The trap flag in RFLAGS (Intel SDM Vol. 1, § 3.4.3.3).
const TRAP_FLAG: i64 = 1 << 8;

/// What a probe raised.
#[derive(Debug, PartialEq, Eq)]
pub struct Trap {
    /// The signal; 0 if there was none.
    pub signal: i32,
    /// The faulting address, where the signal has one.
    pub address: usize,
}

/// Runs a probe and says which signal it raised.
pub fn catch(probe: impl FnOnce()) -> Trap {
    SIGNAL.store(0, Ordering::SeqCst);
    ADDRESS.store(0, Ordering::SeqCst);
    probe();
    Trap {
        signal: SIGNAL.load(Ordering::SeqCst),
        address: ADDRESS.load(Ordering::SeqCst),
    }
}

/// Installs the handlers: of exceptions, and of the interval timer.
///
/// # Errors
/// What sigaction(2) says.
pub fn install() -> std::io::Result<()> {
    for signal in [
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSEGV,
        libc::SIGBUS,
    ] {
        handle(
            signal,
            on_exception as *const () as usize,
            libc::SA_SIGINFO | libc::SA_NODEFER,
        )?;
    }
    handle(libc::SIGALRM, on_tick as *const () as usize, libc::SA_RESTART)
}

fn handle(signal: i32, handler: usize, flags: i32) -> std::io::Result<()> {
    // SAFETY: zeros are a valid `sigaction`; both handlers have the signature that their flags promise and only touch atomics and
    // the context that they are given.
    let status = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaction(signal, &action, std::ptr::null_mut())
    };
    if status == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

extern "C" fn on_tick(_signal: i32) {
    TICKS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn on_exception(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let resume = RESUME.swap(0, Ordering::SeqCst);
    if resume == 0 {
        // Not ours: let it kill us with the default action when the instruction is executed again.
        // SAFETY: no memory is involved.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a valid siginfo and ucontext to an SA_SIGINFO handler. The registers of the FPU are ours to spoil: the
    // kernel restores the interrupted code's.
    unsafe {
        SIGNAL.store(signal, Ordering::SeqCst);
        ADDRESS.store((*info).si_addr().addr(), Ordering::SeqCst);
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        registers[libc::REG_RIP as usize] = resume as i64;
        registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
        std::arch::asm!("pxor xmm7, xmm7", "fninit", out("xmm7") _);
    }
}

/// Executes instructions that raise an exception: `probe!("ud2")`, or with a value for them in r8:
/// `probe!("jmp r8"; address)`. They may use what a function may, except for r8 and r9, and need not leave the stack as it was.
macro_rules! probe {
    ($($code:literal),+) => {
        $crate::trap::probe!($($code),+; 0)
    };
    ($($code:literal),+; $value:expr) => {
        // SAFETY: whatever the instructions do ends in the handler, which lets us go on at label 2 with the registers as they are
        // then; those that the instructions change are declared, and the stack pointer is put back.
        unsafe {
            std::arch::asm!(
                "mov r9, rsp",
                "lea rax, [rip + 2f]",
                "mov [rcx], rax",
                $($code,)+
                "2:",
                "mov rsp, r9",
                inout("rcx") $crate::trap::RESUME.as_ptr() => _,
                in("r8") $value,
                out("r9") _,
                clobber_abi("sysv64"),
            )
        }
    };
}
pub(crate) use probe;
