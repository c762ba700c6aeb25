//! What `virtio-drivers` asks of the machine: every address is what it is to the device, and memory comes from the pool.

use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The machine under an identity map.
pub struct Identity;

fn pages(count: usize) -> Layout {
    let size = count.saturating_mul(PAGE_SIZE);
    Layout::from_size_align(size, PAGE_SIZE).expect("a driver asks for a sane number of pages")
}

// SAFETY: `dma_alloc` returns zeroed pages that are nobody else's until they are given back; the others return what they got,
// which under the identity map is right.
unsafe impl Hal for Identity {
    fn dma_alloc(count: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not empty: drivers ask for at least a page.
        let start = unsafe { alloc_zeroed(pages(count)) };
        match NonNull::new(start) {
            Some(start) => (start.expose_provenance().get() as PhysAddr, start),
            None => handle_alloc_error(pages(count)),
        }
    }

    unsafe fn dma_dealloc(_address: PhysAddr, start: NonNull<u8>, count: usize) -> i32 {
        // SAFETY: the caller vouches that `dma_alloc` has returned it, for the same layout.
        unsafe { dealloc(start.as_ptr(), pages(count)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(ptr::with_exposed_provenance_mut(address as usize)).expect("no device is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().expose_provenance().get() as PhysAddr
    }

    unsafe fn unshare(_address: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
