//! The one memory access that Rust has no safe word for: a 16-byte compare-and-exchange on guest RAM.

use std::arch::asm;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::volatile_memory::VolatileSlice;

/// Replaces the 16 bytes of `slice` by `new` if they equal `old`; returns what was there.
///
/// `None` if the slice is not 16 bytes at a 16-byte boundary, or this CPU has no `cmpxchg16b`. Atomic towards vCPUs, whose
/// own `lock cmpxchg16b` works on the same memory: Linux's SLUB allocator relies on that.
pub fn compare_exchange_16<B: BitmapSlice>(
    slice: &VolatileSlice<'_, B>,
    old: u128,
    new: u128,
) -> Option<u128> {
    let guard = slice.ptr_guard_mut();
    let target = guard.as_ptr().cast::<u128>();
    if slice.len() != 16 || !target.is_aligned() || !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: `target` is aligned and points to 16 bytes of a live mapping that `slice` borrows; the CPU has the instruction;
    // guest memory is only ever accessed by volatile or atomic operations, so that there is no reference to alias. RBX, which
    // the compiler reserves, gets its value back; both operands name their registers, for an unnamed one may be RBX itself. (The intrinsic for this needs a library call in debug builds.)
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new as u64 => _,
            in("rdi") target,
            inout("rax") low,
            inout("rdx") high,
            in("rcx") (new >> 64) as u64,
            options(nostack),
        );
    }
    slice.bitmap().mark_dirty(0, 16);
    Some(u128::from(high) << 64 | u128::from(low))
}
