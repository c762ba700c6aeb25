//! Memory that a device reads and writes: equal pieces, which stay the device's to the end of the run.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use core::alloc::Layout;

/// `count` pieces of `stride` bytes each, one after the other. Zeroed, and so touched.
pub struct Buffers {
    start: *mut u8,
    stride: usize,
    count: usize,
}

impl Buffers {
    /// From a page on.
    ///
    /// # Panics
    /// If there is no such memory.
    pub fn new(count: usize, stride: usize) -> Self {
        Self::aligned(count, stride, 4096)
    }

    /// From a multiple of `alignment`, a power of two, on.
    ///
    /// # Panics
    /// If there is no such memory.
    pub fn aligned(count: usize, stride: usize, alignment: usize) -> Self {
        let bytes = stride
            .checked_mul(count)
            .expect("buffers fit into the address space");
        let layout =
            Layout::from_size_align(bytes.max(1), alignment).expect("buffers fit into the address space");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Self { start, stride, count }
    }

    /// The address of a byte of a piece, as a device sees it.
    pub fn address(&self, piece: usize, byte: usize) -> u64 {
        self.at(piece, byte).expose_provenance() as u64
    }

    /// Reads a value from a piece.
    pub fn read<T: Copy>(&self, piece: usize, byte: usize) -> T {
        assert!(byte + size_of::<T>() <= self.stride);
        // SAFETY: it is within the piece. Volatile, because the device may write at any time.
        unsafe { self.at(piece, byte).cast::<T>().read_volatile() }
    }

    /// Writes a value to a piece.
    pub fn write<T>(&self, piece: usize, byte: usize, value: T) {
        assert!(byte + size_of::<T>() <= self.stride);
        // SAFETY: as above.
        unsafe { self.at(piece, byte).cast::<T>().write_volatile(value) }
    }

    /// The start of a piece.
    pub fn start(&self, piece: usize) -> *mut u8 {
        self.at(piece, 0)
    }

    /// Fills a piece.
    pub fn fill(&self, piece: usize, value: u8) {
        for byte in 0..self.stride {
            self.write(piece, byte, value);
        }
    }

    fn at(&self, piece: usize, byte: usize) -> *mut u8 {
        assert!(piece < self.count && byte < self.stride);
        // SAFETY: it is within the allocation.
        unsafe { self.start.add(piece * self.stride + byte) }
    }
}
