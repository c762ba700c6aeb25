//! Getting a vCPU out of the guest from another thread.
//!
//! A signal makes KVM_RUN return. Should it come just before KVM_RUN, its handler has set `immediate_exit`,
//! which makes KVM_RUN return at once (KVM API documentation, §5 "kvm_run"): no kick is ever lost.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{self, addr_of_mut};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// The kvm_run of the vCPU that this thread runs.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `run` points into the mapping of this thread's vCPU, which is there for as long as its
        // `Kickable` is. The write is volatile and of one byte that only this handler and, between two runs,
        // the run loop touch.
        unsafe { addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

/// Installs the handler of the kick signal, for the whole process.
pub fn install() -> Result<(), errno::Error> {
    register_signal_handler(SIGRTMIN(), on_kick)
}

/// While this exists, the thread that made it can be kicked out of its vCPU.
pub struct Kickable<'a> {
    vcpu: PhantomData<&'a VcpuFd>,
    /// Bound to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Kickable<'_> {
    /// Makes kicks of this thread reach `vcpu`.
    pub fn arm(vcpu: &mut VcpuFd) -> Self {
        RUN.set(vcpu.get_kvm_run());
        Self {
            vcpu: PhantomData,
            not_send: PhantomData,
        }
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// Makes the thread leave the guest, or not enter it, so that its run loop looks up.
pub fn kick<T>(thread: &JoinHandle<T>) -> Result<(), errno::Error> {
    thread.kill(SIGRTMIN())
}
