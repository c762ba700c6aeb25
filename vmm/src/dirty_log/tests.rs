//! A guest and devices that write, and what is known of it.

use std::sync::Arc;

use devices::virtio::Chain;
use devices::virtio::testing::{Buffer, DriverQueue, Recorder};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes as _, GuestAddress};

use super::*;

/// Where the guest's code is: `mov [bx], al; out 0x80, al`.
const CODE: u64 = 0x1000;
const PROGRAM: [u8; 4] = [0x88, 0x07, 0xe6, 0x80];

struct Guest {
    vm: VmFd,
    vcpu: VcpuFd,
    memory: GuestMemory,
}

impl Guest {
    /// One in real mode, with two regions.
    fn new() -> Self {
        let kvm = Kvm::new().expect("this test needs /dev/kvm; run `make test KVM=none` to leave it out");
        let vm = kvm.create_vm().unwrap();
        let regions = [(GuestAddress(0), 4 << 20), (GuestAddress(8 << 20), 2 << 20)];
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        set_slots(&vm, &memory, false).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        memory.write_slice(&PROGRAM, GuestAddress(CODE)).unwrap();
        Self { vm, vcpu, memory }
    }

    /// Has the guest write one byte to `address`.
    fn write(&mut self, address: u64) {
        let mut sregs = self.vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.selector) = (address, 0);
        self.vcpu.set_sregs(&sregs).unwrap();
        let regs = kvm_bindings::kvm_regs {
            rip: CODE,
            rax: 7,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).unwrap();
        let exit = self.vcpu.run().unwrap();
        assert!(matches!(exit, VcpuExit::IoOut(0x80, [7])), "{exit:?}");
    }

    fn take(&self) -> Vec<(u64, u64)> {
        take(&self.vm, &self.memory).unwrap().into()
    }
}

#[test]
fn kvm_what_the_guest_writes_is_recorded_once() {
    let mut guest = Guest::new();
    guest.write(0x5000);
    record(&guest.vm, &guest.memory, true).unwrap();
    assert_eq!(guest.take(), []);
    guest.write(0x5000);
    guest.write(0x5fff);
    guest.write((8 << 20) + 0x3000);
    // The second region's pages follow those of the first.
    assert_eq!(guest.take(), [(5, 1), (1024 + 3, 1)]);
    assert_eq!(guest.take(), []);
    guest.write(0x5000);
    assert_eq!(guest.take(), [(5, 1)]);
}

#[test]
fn kvm_what_devices_write_is_recorded_too() {
    let mut guest = Guest::new();
    record(&guest.vm, &guest.memory, true).unwrap();
    let mut driver = DriverQueue::new(&guest.memory, 0x10_0000, 16);
    let mut queue = driver
        .device_side(0, Arc::new(Recorder::default()), false)
        .unwrap();
    driver.add(&[Buffer::Read(0x20_0000, 16), Buffer::Write(0x30_0800, 0x1000)]);
    guest.take();

    let mut chain = Chain::new(16);
    assert!(queue.pop(&mut chain).unwrap());
    assert!(chain.write(0, &[1; 0x1000]));
    guest.write(0x30_2000);
    assert_eq!(guest.take(), [(0x300, 3)]);
    queue.complete(chain.head(), 0x1000).unwrap();
    assert_eq!(guest.take(), [(driver.state().used_ring / PAGE_SIZE, 1)]);
}

#[test]
fn kvm_nothing_is_recorded_any_more() {
    let mut guest = Guest::new();
    record(&guest.vm, &guest.memory, true).unwrap();
    record(&guest.vm, &guest.memory, false).unwrap();
    guest.write(0x5000);
    guest.memory.write_obj(1u8, GuestAddress(0x6000)).unwrap();
    assert!(take(&guest.vm, &guest.memory).is_err());
    record(&guest.vm, &guest.memory, true).unwrap();
    assert_eq!(guest.take(), []);
}
