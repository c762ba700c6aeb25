//! Guests of a few instructions, in 64-bit mode, with one device; and their way into another machine.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::thread;

use arch_x86_64::cpuid::CpuTopology;
use arch_x86_64::layout;
use devices::{BusDevice, GuestRequest};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::super::{CpuRestore, StateFormat, VcpuState};
use crate::host::HostKind;
use crate::machine_state::MachineState;
use crate::vcpu::exit::{self, Buses, ExitCounts, Next};
use crate::vcpu::{setup, testing};

const RAM: usize = 4 << 20;
const GDT: u64 = 0x500;
pub const IDT: u64 = 0x1000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const DIRECTORIES: u64 = 0xb000;
const STACK: u64 = 0x7000;
/// Where handlers of interrupts are.
pub const HANDLER: u64 = 0x8000;
/// Where the program is.
pub const CODE: u64 = 0x10_0000;
/// Where its data are.
pub const DATA: u64 = 0x20_0000;
/// Where the device is.
pub const MMIO: u64 = 0xd000_0000;
/// The device's ports, an address beside which there are others.
pub const PORT: u8 = 0x80;
/// A write to this port ends a guest.
pub const DONE: u8 = 0x88;

/// Gives a different value for each read, and keeps what is written. It is outside of machines, and goes on when they change.
#[derive(Default)]
pub struct Probe {
    reads: Mutex<u64>,
    pub written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl BusDevice for Probe {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut reads = self.reads.lock().unwrap();
        *reads += 1;
        let value = reads.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        data.copy_from_slice(&value.to_be_bytes()[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        self.written.lock().unwrap().push((offset, data.to_vec()));
        match offset == u64::from(DONE - PORT) && data.len() == 1 {
            true => ControlFlow::Break(GuestRequest::PowerOff),
            false => ControlFlow::Continue(()),
        }
    }
}

/// What a guest has done by its end.
pub struct Outcome {
    pub regs: kvm_regs,
    pub data: Vec<u8>,
    pub written: Vec<(u64, Vec<u8>)>,
}

/// A snapshot without memory, as a file holds it.
pub struct Saved {
    pub cpus: Vec<VcpuState>,
    pub machine: MachineState,
}

pub struct Guest {
    pub vcpus: Vec<VcpuFd>,
    pub vm: VmFd,
    pub ram: GuestMemoryMmap<()>,
    pub probe: Arc<Probe>,
    pub buses: Buses,
    pub kvm: Kvm,
}

impl Guest {
    /// A machine that has not run, whose first vCPU is about to run `code`.
    pub fn new(cpus: u32, code: &[u8]) -> Self {
        let guest = Self::empty(Arc::default(), |kvm, vm| {
            let leaves = setup::supported_leaves(kvm).unwrap();
            let topology = CpuTopology { cpus, smt: false };
            let make = |index: u32| {
                let vcpu = vm.create_vcpu(index.into()).unwrap();
                let cpuid = setup::cpuid(&leaves, index, topology, HostKind::detect()).unwrap();
                vcpu.set_cpuid2(&cpuid).unwrap();
                setup::set_msrs(&vcpu).unwrap();
                vcpu
            };
            (0..cpus).map(make).collect()
        });
        guest.write_tables();
        guest.store(CODE, code);
        guest.store(CODE + code.len() as u64, &[0xe6, DONE, 0xf4]);
        guest.vcpus[0]
            .set_sregs(&long_mode(guest.vcpus[0].get_sregs().unwrap()))
            .unwrap();
        guest.vcpus[0]
            .set_regs(&kvm_regs {
                rip: CODE,
                rsp: STACK,
                rflags: 2,
                ..Default::default()
            })
            .unwrap();
        guest
    }

    fn empty(probe: Arc<Probe>, make: impl FnOnce(&Kvm, &VmFd) -> Vec<VcpuFd>) -> Self {
        let kvm = Kvm::new().expect("this test needs /dev/kvm; run `make test KVM=none` to leave it out");
        let vm = kvm.create_vm().unwrap();
        super::super::enable_events(&vm);
        vm.set_tss_address(layout::KVM_TSS.0 as usize).unwrap();
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP.0).unwrap();
        vm.create_irq_chip().unwrap();
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).unwrap();
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: ram.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is mapped by `ram`, which lives as long as the VM: both are fields of `Guest`.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let mut buses = Buses::default();
        buses.pio.insert(PORT.into(), 16, probe.clone()).unwrap();
        buses.mmio.insert(MMIO, 0x2000, probe.clone()).unwrap();
        Self {
            vcpus: make(&kvm, &vm),
            vm,
            ram,
            probe,
            buses,
            kvm,
        }
    }

    /// The machine's state, which has been through the snapshot's encoding.
    pub fn save(&mut self) -> Saved {
        let format = StateFormat::new(&self.kvm).unwrap();
        let machine = through_cbor(&MachineState::save(&self.vm).unwrap());
        let mut save = |vcpu| through_cbor(&VcpuState::save(vcpu, &self.buses, &format).unwrap());
        let cpus = self.vcpus.iter_mut().map(&mut save).collect();
        Saved { cpus, machine }
    }

    /// Another machine with this one's memory and device, and a state. Each vCPU is restored by a thread of its own.
    pub fn restored(&self, saved: &Saved) -> Self {
        let new = Self::empty(self.probe.clone(), |_, vm| {
            let make = |(index, state): (u64, &VcpuState)| {
                let vcpu = vm.create_vcpu(index).unwrap();
                vcpu.set_cpuid2(&state.cpuid().unwrap()).unwrap();
                vcpu
            };
            (0..).zip(&saved.cpus).map(make).collect()
        });
        let mut bytes = vec![0; RAM];
        self.ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        new.store(0, &bytes);
        new.restore_state(saved);
        new
    }

    /// Gives this machine a state.
    pub fn restore_state(&self, saved: &Saved) {
        let restore = CpuRestore::new(saved.cpus.clone());
        let format = StateFormat::new(&self.kvm).unwrap();
        thread::scope(|scope| {
            for (index, vcpu) in (0..).zip(&self.vcpus) {
                let (restore, format) = (&restore, &format);
                scope.spawn(move || restore.restore(index, vcpu, format).unwrap());
            }
        });
        saved.machine.restore(&self.vm).unwrap();
    }

    /// Lets a vCPU run until it has been answered `exits` times, or the guest has ended; says which.
    pub fn run(&mut self, cpu: usize, exits: usize) -> ControlFlow<()> {
        let vcpu = &mut self.vcpus[cpu];
        let mut answered = 0;
        while answered < exits {
            match exit::handle(exit::enter(vcpu), &self.buses, &ExitCounts::default()) {
                Next::Enter => answered += 1,
                // A state was saved, or the vCPU has just been started.
                Next::Check => vcpu.set_kvm_immediate_exit(0),
                Next::Request(_) => return ControlFlow::Break(()),
                other => panic!("{other:?} at {:#x}", vcpu.get_regs().unwrap().rip),
            }
        }
        ControlFlow::Continue(())
    }

    /// Lets the first vCPU run to its end, where it has finished the instruction that told of it.
    pub fn finish(&mut self) -> Outcome {
        assert!(self.run(0, usize::MAX).is_break());
        let saved = self.save();
        let mut data = vec![0; 0x1000];
        self.ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        Outcome {
            regs: saved.cpus[0].regs,
            data,
            written: self.probe.written.lock().unwrap().clone(),
        }
    }

    pub fn store(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Has `code`, followed by `iretq`, called for an interrupt or exception.
    pub fn handle(&self, vector: u8, code: &[u8]) {
        let gate = HANDLER & 0xffff | 0x10 << 16 | 0x8e00 << 32 | HANDLER >> 16 << 48;
        self.store(IDT + u64::from(vector) * 16, &gate.to_le_bytes());
        self.store(HANDLER, &[code, &[0x48, 0xcf]].concat());
    }

    /// Maps the first 4 GiB to themselves by 2 MiB pages, for user mode, too; and a code and a data segment.
    fn write_tables(&self) {
        let store = |value: u64, at: u64| self.ram.write_obj(value, GuestAddress(at)).unwrap();
        store(PDPT | 7, PML4);
        for gigabyte in 0..4 {
            store((DIRECTORIES + gigabyte * 0x1000) | 7, PDPT + gigabyte * 8);
        }
        for page in 0..4 * 512 {
            store(page << 21 | 0x87, DIRECTORIES + page * 8);
        }
        store(0x00af_9b00_0000_ffff, GDT + 0x10);
        store(0x00cf_9300_0000_ffff, GDT + 0x18);
    }
}

fn through_cbor<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let bytes = cbor4ii::serde::to_vec(Vec::new(), value).unwrap();
    cbor4ii::serde::from_slice(&bytes).unwrap()
}

/// 64-bit mode at CPL 0, with SSE and AVX.
fn long_mode(reset: kvm_sregs) -> kvm_sregs {
    kvm_sregs {
        cr0: 0x8005_0033 & !(1 << 18),            // PG, WP, NE, ET, MP, PE
        cr4: 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18, // PAE, OSFXSR, OSXMMEXCPT, OSXSAVE
        efer: 1 << 10 | 1 << 8,                   // LMA, LME
        ..testing::flat(reset, (GDT, 0x1f), (IDT, 0xfff), PML4)
    }
}
