//! A vCPU and a guest's memory without KVM, for the tests of the fallback.

mod cpu_comparison;
mod exceptions;
mod hostile;
mod paging;
mod registers;
mod xsave;

use std::collections::BTreeMap;
use std::io;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::cpu::{Cpu, DescriptorTable, Exception, Mode, Segment, control};
use super::paging::entry;
use super::xstate::{Layout, XsaveImage};
use super::{Error, complete};

/// Bytes of guest RAM.
const RAM: u64 = 4 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
/// Where instructions go.
const CODE: u64 = 0x1_0000;
/// Where operands go: in the part of memory that 4 KiB pages map.
const DATA: u64 = 0x2_0000;
/// The first address of a 2 MiB page.
const LARGE: u64 = 2 << 20;
/// The first address of a 1 GiB page that maps guest-physical 0.
const HUGE: u64 = 1 << 30;

/// Components that the tests use: those of CPUs with AVX-512 and protection keys, as far as this one has them.
const COMPONENTS: u64 = 0x2e7;

struct TestCpu {
    gprs: [u64; 16],
    rip: u64,
    rflags: u64,
    mode: Mode,
    bases: [u64; 2],
    gdt: DescriptorTable,
    ldt: DescriptorTable,
    msrs: BTreeMap<u32, u64>,
    xcr0: u64,
    xsave: XsaveImage,
    raised: Option<Exception>,
    flushes: usize,
}

impl Cpu for TestCpu {
    fn gpr(&self, number: u8) -> u64 {
        self.gprs[usize::from(number & 15)]
    }
    fn set_gpr(&mut self, number: u8, value: u64) {
        self.gprs[usize::from(number & 15)] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn mode(&self) -> Mode {
        self.mode
    }
    fn segment_base(&self, segment: Segment) -> u64 {
        self.bases[segment as usize]
    }
    fn set_segment_base(&mut self, segment: Segment, base: u64) {
        self.bases[segment as usize] = base;
    }
    fn gdt(&self) -> DescriptorTable {
        self.gdt
    }
    fn ldt(&self) -> DescriptorTable {
        self.ldt
    }
    fn msr(&mut self, index: u32) -> io::Result<u64> {
        self.msrs
            .get(&index)
            .copied()
            .ok_or_else(|| io::Error::other("no such MSR"))
    }
    fn xcr0(&mut self) -> io::Result<u64> {
        Ok(self.xcr0)
    }
    fn get_xsave(&mut self, image: &mut XsaveImage) -> io::Result<()> {
        image.clone_from(&self.xsave);
        Ok(())
    }
    fn set_xsave(&mut self, image: &XsaveImage) -> io::Result<()> {
        self.xsave.clone_from(image);
        Ok(())
    }
    fn flush_tlb(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }
    fn raise(&mut self, exception: Exception) -> io::Result<()> {
        self.raised = Some(exception);
        Ok(())
    }
}

/// A vCPU at CPL 0 with everything enabled, and RAM: the first 2 MiB mapped at themselves by 4 KiB pages, the next by a 2 MiB page.
struct Guest {
    cpu: TestCpu,
    ram: GuestMemoryMmap<()>,
    scratch: XsaveImage,
}

impl Guest {
    fn new() -> Self {
        let layout = Layout::of_this_cpu(4096);
        let cr0 = control::CR0_PG | control::CR0_WP | control::CR0_NE | control::CR0_MP;
        let cr4 = control::CR4_OSFXSR | control::CR4_FSGSBASE | control::CR4_OSXSAVE | control::CR4_PKE;
        let mode = Mode {
            cr0,
            cr3: PML4,
            cr4,
            efer: control::EFER_LMA | control::EFER_NXE,
            cpl: 0,
            code64: true,
        };
        let cpu = TestCpu {
            gprs: [0; 16],
            rip: CODE,
            rflags: 2,
            mode,
            bases: [0; 2],
            gdt: DescriptorTable::default(),
            ldt: DescriptorTable::default(),
            msrs: BTreeMap::from([(0x10, 0x1_2345_6789), (0xc000_0103, 7), (0xda0, 0)]),
            xcr0: components(),
            xsave: XsaveImage::new(layout.clone()),
            raised: None,
            flushes: 0,
        };
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        let guest = Guest {
            cpu,
            ram,
            scratch: XsaveImage::new(layout),
        };
        let rights = entry::PRESENT | entry::WRITE;
        guest.store(PML4, &(PDPT | rights | entry::USER).to_le_bytes());
        guest.store(PDPT, &(DIRECTORY | rights | entry::USER).to_le_bytes());
        guest.store(PDPT + 8, &(rights | entry::LARGE).to_le_bytes());
        guest.store(DIRECTORY, &(TABLE | rights | entry::USER).to_le_bytes());
        guest.store(DIRECTORY + 8, &(LARGE | rights | entry::LARGE).to_le_bytes());
        for page in 0..512 {
            guest.set_entry(page << 12, page << 12 | rights);
        }
        guest
    }

    /// Sets the page table entry for an address in the first 2 MiB.
    fn set_entry(&self, address: u64, value: u64) {
        self.store(TABLE + (address >> 12) * 8, &value.to_le_bytes());
    }

    fn entry(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.load(TABLE + (address >> 12) * 8))
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Completes the one instruction `code`.
    fn run(&mut self, code: &[u8]) -> Result<(), Error> {
        self.cpu.rip = CODE;
        self.cpu.raised = None;
        self.store(CODE, code);
        complete(&mut self.cpu, &self.ram, &[], &mut self.scratch)
    }

    /// Completes `code`, which must raise no exception.
    fn finish(&mut self, code: &[u8]) {
        self.run(code).unwrap();
        assert_eq!(
            (self.cpu.raised, self.cpu.rip),
            (None, CODE + code.len() as u64),
            "{code:02x?}"
        );
    }

    /// Runs `code`, which must raise an exception and leave RIP alone.
    fn fault(&mut self, code: &[u8]) -> Exception {
        self.run(code).unwrap();
        assert_eq!(self.cpu.rip, CODE, "{code:02x?}");
        self.cpu.raised.expect("an exception")
    }
}

/// Those of [`COMPONENTS`] that this CPU and kernel have.
fn components() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every CPU that runs KVM guests has XSAVE, and the kernel enables it for user space; this reads XCR0.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    (u64::from(high) << 32 | u64::from(low)) & COMPONENTS
}
