//! The round trip of an exit: guest → posada's run loop → bus → a trivial device → guest.

use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use arch_x86_64::cpuid::CpuTopology;
use arch_x86_64::layout;
use devices::power::{self, PowerRegisters};
use devices::{BusDevice, GuestRequest};
use posada_bench::bare_vm::BareVm;
use posada_bench::programs::{self, ADDRESS, EXITS, PORT};
use vmm::config::CpuTemplate;
use vmm::host::{self, HostKind};
use vmm::lifecycle::{Lifecycle, Stop};
use vmm::machine::Machine;
use vmm::pvm::PvmVcpu;
use vmm::vcpu::{Buses, Host, Vcpu};

use crate::table::Table;

const RUNS: usize = 31;
const LIMIT: f64 = 1.02;

/// A device that takes everything and does nothing.
struct Trivial;

impl BusDevice for Trivial {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> ControlFlow<GuestRequest> {
        ControlFlow::Continue(())
    }
}

/// Measures exits by ports and by memory.
pub fn measure(table: &mut Table) {
    compare("PIO exit, round trip", programs::port_exits(), table);
    compare("MMIO exit, round trip", programs::memory_exits(), table);
}

fn compare(what: &'static str, code: &[u8], table: &mut Table) {
    let pairs: Vec<_> = (0..RUNS)
        .map(|_| (through_posada(code), through_floor(code)))
        .collect();
    table.ratio(what, &pairs, "µs", LIMIT);
}

fn through_floor(code: &[u8]) -> f64 {
    let mut vm = BareVm::new(code);
    microseconds_each(|| vm.run(&mut std::io::sink()))
}

/// The same machine, but run by posada's loop with posada's buses and as many devices as a guest has.
fn through_posada(code: &[u8]) -> f64 {
    let BareVm { vcpu, memory, vm } = BareVm::new(code);
    // It stays until the time has been taken: taking a machine apart costs milliseconds.
    let machine = Arc::new(Machine { fd: vm, memory });
    let mut buses = Buses::default();
    let power = Arc::new(PowerRegisters::new(layout::S5_SLEEP_TYPE, layout::RESET_VALUE));
    for port in [u64::from(PORT), 0x60, 0x64, 0x70, 0x3f8, 0x505] {
        buses.pio.insert(port, 1, Arc::new(Trivial)).expect("a free port");
    }
    buses
        .pio
        .insert(layout::SLEEP_CONTROL_PORT.into(), power::PORTS, power)
        .expect("a free port");
    buses
        .mmio
        .insert(ADDRESS, 0x1000, Arc::new(Trivial))
        .expect("a free address");
    let kind = HostKind::detect();
    let pvm = match kind {
        HostKind::Hardware => None,
        HostKind::Pvm => {
            Some(PvmVcpu::new(&machine.fd, layout::PVM_STUB).expect("what a vCPU needs on kvm-pvm"))
        }
    };
    let lifecycle = Arc::new(Lifecycle::new().expect("an eventfd"));
    lifecycle.start();
    let kvm = host::open().expect("KVM");
    let topology = CpuTopology { cpus: 1, smt: false };
    // Nobody asks it for anything: the other end is gone.
    let (_, requests) = mpsc::channel();
    let vcpu = Vcpu {
        index: 0,
        fd: vcpu,
        host: Arc::new(Host::new(kvm, kind, topology, CpuTemplate::default())),
        requests,
        counts: Arc::default(),
        buses: buses.into(),
        machine: machine.clone(),
        pvm,
        lifecycle: lifecycle.clone(),
    };
    let time = microseconds_each(|| vcpu.run(false));
    assert_eq!(lifecycle.stop_reason(), Some(Stop::PowerOff));
    time
}

fn microseconds_each(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e6 / f64::from(EXITS)
}
