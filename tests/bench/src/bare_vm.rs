//! The floor: KVM's ioctls and nothing else, to run the same guest on the same machine.
//!
//! It makes what any VMM for such a guest must make, memory, interrupt controllers, one vCPU with CPUID and
//! registers, and answers exits with as little as there can be: a byte on the serial port is written out, a
//! write to ACPI's sleep register ends the run.

use std::io::Write;
use std::os::fd::AsRawFd;

use arch_x86_64::layout;
use arch_x86_64::registers::Segment;
use devices::virtio::{DirtyMap, GuestMemory};
use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs,
    kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use posada_tests::payload::LOAD_ADDRESS;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Guest memory in bytes: what posada gives a guest by default.
pub const MEMORY: usize = 128 << 20;

/// KVM_RUN, `_IO(0xae, 0x80)` (linux/kvm.h).
const KVM_RUN: libc::c_ulong = 0xae80;
const PAGE_TABLES: u64 = 0x9000;
/// Present, writable, and in a page directory: a page of 2 MiB (Intel SDM Vol 3 §4.5.4).
const TABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x83;

/// A machine with one vCPU, about to execute a program in 64-bit mode.
pub struct BareVm {
    /// The vCPU.
    pub vcpu: VcpuFd,
    /// Its memory.
    pub memory: GuestMemory,
    /// KVM's side of it.
    pub vm: VmFd,
}

impl BareVm {
    /// Makes the machine and puts `code` where it starts.
    pub fn new(code: &[u8]) -> Self {
        let kvm = Kvm::new().expect("this benchmark needs /dev/kvm");
        let vm = kvm.create_vm().expect("KVM_CREATE_VM");
        let memory = map();
        for (slot, region) in (0..).zip(memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the mapping lives as long as the machine, which owns it.
            unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
        }
        vm.set_tss_address(layout::KVM_TSS.0 as usize)
            .expect("KVM_SET_TSS_ADDR");
        vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).expect("KVM_CREATE_PIT2");
        let vcpu = vm.create_vcpu(0).expect("KVM_CREATE_VCPU");
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .expect("KVM_GET_SUPPORTED_CPUID");
        vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");

        memory
            .write_slice(code, GuestAddress(LOAD_ADDRESS))
            .expect("the program fits");
        write_page_tables(&memory);
        enter_long_mode(&vcpu);
        Self { vcpu, memory, vm }
    }

    /// Runs the guest until it switches off; its serial output goes to `output`.
    pub fn run(&mut self, output: &mut impl Write) {
        loop {
            // SAFETY: KVM_RUN takes no argument; what it fills is mapped by the vCPU.
            let result = unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_RUN, 0) };
            assert_eq!(result, 0, "KVM_RUN: {}", std::io::Error::last_os_error());
            let run = self.vcpu.get_kvm_run();
            match run.exit_reason {
                KVM_EXIT_MMIO => {}
                KVM_EXIT_IO => {
                    // SAFETY: exit_reason says that the kernel filled this member of the union.
                    let io = unsafe { run.__bindgen_anon_1.io };
                    if io.port == layout::COM1_PORT {
                        let start = std::ptr::from_mut(run).cast::<u8>();
                        // SAFETY: the kernel put the byte there, within its mapping of kvm_run.
                        let byte = unsafe { start.add(io.data_offset as usize).read() };
                        output.write_all(&[byte]).expect("the output takes a byte");
                    } else if io.port == layout::SLEEP_CONTROL_PORT {
                        return;
                    }
                }
                other => panic!("unexpected exit {other}"),
            }
        }
    }
}

fn map() -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory for a guest");
    for region in memory.iter() {
        let region: &MmapRegion<DirtyMap> = region;
        // SAFETY: the range is exactly the region's own mapping.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
    }
    memory
}

/// Maps the first 4 GiB to themselves, in pages of 2 MiB.
fn write_page_tables(memory: &GuestMemory) {
    let put = |value: u64, at: u64| {
        memory
            .write_obj(value, GuestAddress(at))
            .expect("page tables fit")
    };
    let directories = PAGE_TABLES + 0x2000;
    put((PAGE_TABLES + 0x1000) | TABLE, PAGE_TABLES);
    for gib in 0..4 {
        put(
            (directories + gib * 0x1000) | TABLE,
            PAGE_TABLES + 0x1000 + gib * 8,
        );
    }
    for page in 0..4 * 512 {
        put((page << 21) | LARGE_PAGE, directories + page * 8);
    }
}

fn enter_long_mode(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().expect("KVM_GET_SREGS");
    // Protection and paging; physical address extension; long mode enabled and active (Intel SDM Vol 3 §2.5).
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, PAGE_TABLES, 0x20, 0x500);
    sregs.cs = segment(&Segment::code64(0x10));
    let data = segment(&Segment::data(0x18));
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    let regs = kvm_regs {
        rip: LOAD_ADDRESS,
        rsp: 0x8ff0,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).expect("KVM_SET_REGS");
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: 1,
        db: segment.db.into(),
        s: 1,
        l: segment.l.into(),
        g: 1,
        ..Default::default()
    }
}
