//! Memory for programs and devices: the RAM behind the image, in powers of two, each given back to its own list.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

use crate::start_info::Range;

/// Blocks of 16 bytes are the smallest: they hold the link of a free list.
const SMALLEST: usize = 16;
const CLASSES: usize = usize::BITS as usize;
/// Blocks larger than a page begin at a page.
const PAGE: usize = 4096;

struct State {
    next: usize,
    end: usize,
    /// The first address behind the RAM.
    ram_end: usize,
    /// Address of the first free block of each size, `1 << class`; it holds the address of the next. 0 ends a list.
    free: [usize; CLASSES],
}

struct Pool(UnsafeCell<State>);

// SAFETY: there is one CPU, and handlers do not allocate.
unsafe impl Sync for Pool {}

#[global_allocator]
static POOL: Pool = Pool(UnsafeCell::new(State {
    next: 0,
    end: 0,
    ram_end: 0,
    free: [0; CLASSES],
}));

/// Makes RAM that nobody else uses available.
///
/// # Safety
/// It must be RAM, mapped to itself, and not be used for anything else. To be called once, before the first allocation.
pub unsafe fn fill(ram: &Range) {
    // SAFETY: nobody else has a reference: allocations begin after this.
    let state = unsafe { &mut *POOL.0.get() };
    (state.next, state.end, state.ram_end) = (ram.start, ram.end - PAGE, ram.end);
}

/// The first address behind the RAM. The page before it is nobody's.
pub fn ram_end() -> u64 {
    // SAFETY: there is one CPU, and nobody keeps a reference.
    unsafe { (*POOL.0.get()).ram_end as u64 }
}

impl State {
    fn class(layout: Layout) -> usize {
        let size = layout.size().max(layout.align()).max(SMALLEST);
        size.next_power_of_two().trailing_zeros() as usize
    }

    fn take(&mut self, layout: Layout) -> *mut u8 {
        let class = Self::class(layout);
        let block = self.free[class];
        if block != 0 {
            // SAFETY: a free block holds its list's next, and is nobody's.
            self.free[class] = unsafe { ptr::with_exposed_provenance::<usize>(block).read() };
            return ptr::with_exposed_provenance_mut(block);
        }
        let size = 1_usize << class;
        let start = self.next.next_multiple_of(size.min(PAGE).max(layout.align()));
        match start.checked_add(size) {
            Some(end) if end <= self.end => {
                self.next = end;
                ptr::with_exposed_provenance_mut(start)
            }
            _ => ptr::null_mut(),
        }
    }
}

// SAFETY: blocks come from RAM that is nobody else's, are as large and as aligned as the layout says, and each is with one owner
// or in one list.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one CPU; this function does not call itself.
        unsafe { &mut *self.0.get() }.take(layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: one CPU; the caller gives the block up, which is at least as large as a link.
        unsafe {
            let first = &mut (*self.0.get()).free[State::class(layout)];
            block.cast::<usize>().write(*first);
            *first = block.expose_provenance();
        }
    }
}
