//! What was written to guest memory since the last snapshot: by vCPUs, which KVM records, and by posada's devices.

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use crate::error::{Doing, Error};
use crate::memory::GuestMemory;
use crate::snapshot::ranges::{PAGE_SIZE, PageRanges};

/// Gives KVM the regions of `memory`, each as the slot of its number, and says whether writes to them are recorded.
pub fn set_slots(fd: &VmFd, memory: &GuestMemory, record: bool) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: if record { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        };
        // SAFETY: the region's mapping is kept by `memory`, of which every vCPU holds a share, so it outlives
        // all that can run in it; and the regions of one GuestMemory do not overlap.
        unsafe { fd.set_user_memory_region(region) }.doing("give the guest its memory")?;
    }
    Ok(())
}

/// Begins to record what is written to `memory`, or ends it.
///
/// KVM may take some milliseconds, in which it waits for all vCPUs to have left its old list of slots, so this is done before a guest
/// is paused; devices rest while it is. What was recorded until the pause is then of no interest: [`take`] it.
///
/// While a guest's writes are recorded, the first one to each page costs an exit, and its memory is mapped page by page.
///
/// # Errors
/// KVM cannot.
pub fn record(fd: &VmFd, memory: &GuestMemory, on: bool) -> Result<(), Error> {
    memory
        .iter()
        .for_each(|region| region.get_mmap().bitmap().record(on));
    set_slots(fd, memory, on)
}

/// The pages that were written since the last call or since [`record`], and begins anew. The guest and its devices rest meanwhile.
///
/// # Errors
/// Nothing is recorded.
pub fn take(fd: &VmFd, memory: &GuestMemory) -> Result<PageRanges, Error> {
    let (mut by_vcpus, mut by_devices) = (PageRanges::default(), PageRanges::default());
    let mut first = 0;
    for (slot, region) in (0..).zip(memory.iter()) {
        let log = fd.get_dirty_log(slot, region.len() as usize);
        by_vcpus.add_bitmap(first, log.doing("read which pages the guest has written")?);
        by_devices.add_bitmap(first, region.get_mmap().bitmap().take());
        first += region.len() / PAGE_SIZE;
    }
    Ok(by_vcpus.union(&by_devices))
}

#[cfg(test)]
mod tests;
