//! CPUID: all that a guest is told differently from what the host supports, in one place.
//!
//! "SDM" is Intel's Software Developer's Manual Vol 2, CPUID; "APM" is AMD's Architecture Programmer's Manual Vol 3,
//! appendix E, which is in the order of function numbers.

#[cfg(test)]
mod tests;

/// One CPUID leaf, or one subleaf of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX on input.
    pub function: u32,
    /// ECX on input, where `indexed`.
    pub index: u32,
    /// Whether ECX selects a subleaf of this leaf (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
    pub indexed: bool,
    /// EAX on output.
    pub eax: u32,
    /// EBX on output.
    pub ebx: u32,
    /// ECX on output.
    pub ecx: u32,
    /// EDX on output.
    pub edx: u32,
}

/// How the guest's CPUs are arranged: one package of cores, whose threads' APIC ids are the CPU numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// Number of CPUs, 1 to [`crate::layout::MAX_CPUS`].
    pub cpus: u32,
    /// Whether two that follow each other are the threads of one core. One that is alone has its core for itself.
    pub smt: bool,
}

impl CpuTopology {
    /// Bits of the APIC id that number the CPUs of the package.
    fn id_bits(self) -> u32 {
        self.cpus.max(1).next_power_of_two().trailing_zeros()
    }

    /// APIC ids that the package has room for: `cpus` rounded up to a power of two.
    fn id_count(self) -> u32 {
        1 << self.id_bits()
    }

    /// Bits of the APIC id that number the threads of a core.
    fn thread_bits(self) -> u32 {
        (self.smt && self.cpus > 1).into()
    }

    /// Threads of a core, which have as many APIC ids.
    fn threads(self) -> u32 {
        1 << self.thread_bits()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD, or Hygon, which follows it.
    Amd,
}

/// Changes the host's supported leaves (KVM_GET_SUPPORTED_CPUID) to what the guest's CPU number `vcpu` has.
///
/// The VMM must have an in-kernel local APIC with TSC-deadline timer (KVM_CAP_TSC_DEADLINE_TIMER), which is announced
/// here. Leaves not named in this module stay as they are, those of KVM's paravirtual interface (0x4000_0000..) among
/// them. The order of leaves may change.
pub fn adjust(leaves: &mut Vec<Leaf>, vcpu: u32, topology: CpuTopology) {
    let vendor = vendor(leaves);
    for leaf in leaves.iter_mut() {
        match leaf.function {
            0x1 => features(leaf, vcpu, topology),
            0x4 => intel_cache(leaf, topology),
            0x6 => power(leaf),
            0x7 if leaf.index == 0 => leaf.edx &= !(1 << 19), // ARCH_LBR needs the PMU, see `performance`
            0xa | 0x1c | 0x23 | 0x8000_0022 => performance(leaf),
            0x8000_0001 if vendor == Vendor::Amd => amd_features(leaf, topology),
            0x8000_0008 if vendor == Vendor::Amd => amd_core_count(leaf, topology),
            0x8000_001d => amd_cache(leaf, topology),
            0x8000_001e => amd_ids(leaf, vcpu, topology),
            _ => {}
        }
    }
    extended_topology(leaves, vcpu, topology);
}

fn vendor(leaves: &[Leaf]) -> Vendor {
    // "AuthenticAMD" and "HygonGenuine" in EBX, EDX, ECX of leaf 0; the first four letters tell them.
    match leaves
        .iter()
        .find(|leaf| leaf.function == 0)
        .map(|leaf| leaf.ebx.to_le_bytes())
    {
        Some([b'A', b'u', b't', b'h'] | [b'H', b'y', b'g', b'o']) => Vendor::Amd,
        _ => Vendor::Intel,
    }
}

/// Sets the bits `low..low + width` of `register` to `value`, cut off at the largest value they hold.
fn set_bits(register: &mut u32, low: u32, width: u32, value: u32) {
    let max = (1 << width) - 1;
    *register = *register & !(max << low) | value.min(max) << low;
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    set_bits(register, bit, 1, on.into());
}

/// Leaf 1: features, APIC id and logical processor count (SDM leaf 01H; APM).
fn features(leaf: &mut Leaf, vcpu: u32, topology: CpuTopology) {
    set_bits(&mut leaf.ebx, 24, 8, vcpu); // initial APIC id
    set_bits(&mut leaf.ebx, 16, 8, topology.id_count()); // ids in this package; valid with HTT
    set_bit(&mut leaf.edx, 28, topology.cpus > 1); // HTT: more than one logical processor
    set_bit(&mut leaf.ecx, 15, false); // PDCM: no MSR IA32_PERF_CAPABILITIES without a PMU
    // KVM leaves the timer out of its list on older kernels, as it depends on the in-kernel APIC.
    set_bit(&mut leaf.ecx, 24, true); // TSC-deadline timer
    set_bit(&mut leaf.ecx, 27, false); // OSXSAVE follows the guest's CR4; at reset it is clear
    set_bit(&mut leaf.ecx, 31, true); // "running under a hypervisor"; how a guest finds KVM's leaves
}

/// Leaf 4: Intel's caches (SDM leaf 04H). First and second levels belong to a core, later ones to the package.
fn intel_cache(leaf: &mut Leaf, topology: CpuTopology) {
    if leaf.eax & 0x1f == 0 {
        return; // type 0: no more caches
    }
    let level = leaf.eax >> 5 & 0x7;
    set_bits(&mut leaf.eax, 14, 12, sharing(level, topology) - 1); // ids that share this cache, less 1
    let cores = topology.id_count() / topology.threads();
    set_bits(&mut leaf.eax, 26, 6, cores - 1); // core ids in this package, less 1
}

/// Leaf 6: power management (SDM leaf 06H; APM). The local APIC timer always runs (ARAT); frequencies, sensors and
/// hints are the host's, and their MSRs are not in the guest.
fn power(leaf: &mut Leaf) {
    *leaf = Leaf {
        eax: 1 << 2,
        ..empty(leaf)
    };
}

/// Leaves 0xA, 0x1C, 0x23 and 0x8000_0022: performance counters (SDM; APM). There is no PMU in the guest: counters
/// cost MSR switches at every exit, and a guest that finds some keeps its watchdog on them.
fn performance(leaf: &mut Leaf) {
    *leaf = empty(leaf);
}

/// The same leaf with all outputs 0.
fn empty(leaf: &Leaf) -> Leaf {
    Leaf {
        function: leaf.function,
        index: leaf.index,
        indexed: leaf.indexed,
        ..Leaf::default()
    }
}

/// Leaf 0x8000_0001 of AMD (APM).
fn amd_features(leaf: &mut Leaf, topology: CpuTopology) {
    set_bit(&mut leaf.ecx, 1, topology.cpus > 1); // CmpLegacy: the logical processors of leaf 1 are cores
    for performance_counters in [23, 24, 28] {
        set_bit(&mut leaf.ecx, performance_counters, false); // core, northbridge and L3 counters: no PMU
    }
}

/// Leaf 0x8000_0008 of AMD (APM); the register is reserved on Intel.
fn amd_core_count(leaf: &mut Leaf, topology: CpuTopology) {
    set_bits(&mut leaf.ecx, 0, 8, topology.cpus.max(1) - 1); // NC: threads in the package, less 1
    set_bits(&mut leaf.ecx, 12, 4, topology.id_bits()); // ApicIdSize
}

/// Leaf 0x8000_001D: AMD's caches (APM), like [`intel_cache`].
fn amd_cache(leaf: &mut Leaf, topology: CpuTopology) {
    if leaf.eax & 0x1f == 0 {
        return;
    }
    let level = leaf.eax >> 5 & 0x7;
    set_bits(&mut leaf.eax, 14, 12, sharing(level, topology) - 1); // NumSharingCache
}

/// APIC ids that share a cache of this level.
fn sharing(level: u32, topology: CpuTopology) -> u32 {
    match level {
        ..3 => topology.threads(),
        _ => topology.id_count(),
    }
}

/// Leaf 0x8000_001E: AMD's ids (APM).
fn amd_ids(leaf: &mut Leaf, vcpu: u32, topology: CpuTopology) {
    leaf.eax = vcpu; // extended APIC id
    leaf.ebx = vcpu >> topology.thread_bits() & 0xff; // core id
    set_bits(&mut leaf.ebx, 8, 8, topology.threads() - 1); // threads per core, less 1
    leaf.ecx = 0; // node 0 of 1
    leaf.edx = 0;
}

/// Leaves 0xB and 0x1F: the levels of the APIC id (SDM leaves 0BH and 1FH; APM), rebuilt from nothing. 0x8000_0026,
/// AMD's own form of them, goes: what a guest finds in 0xB says the same.
fn extended_topology(leaves: &mut Vec<Leaf>, vcpu: u32, topology: CpuTopology) {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    let highest = leaves
        .iter()
        .find(|leaf| leaf.function == 0)
        .map_or(0, |leaf| leaf.eax);
    leaves.retain(|leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026));
    for function in [0xb, 0x1f] {
        if highest < function {
            continue;
        }
        let level = |index, kind: u32, shift, count| Leaf {
            function,
            index,
            indexed: true,
            eax: shift,
            ebx: count,
            ecx: kind << 8 | index,
            edx: vcpu,
        };
        leaves.push(level(0, SMT, topology.thread_bits(), topology.threads()));
        leaves.push(level(1, CORE, topology.id_bits(), topology.cpus));
        leaves.push(level(2, 0, 0, 0));
    }
}
