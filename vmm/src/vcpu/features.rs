//! Which features of a CPU a snapshot's guest has seen, and which of them another host lacks.

use std::arch::x86_64::{__cpuid, __cpuid_count};

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use crate::host::HostKind;

/// A register of CPUID's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// EAX
    Eax,
    /// EBX
    Ebx,
    /// ECX
    Ecx,
    /// EDX
    Edx,
}

/// A word of CPUID each bit of which is a feature.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    /// Bits that do not tell of the CPU, but of how the guest has set it up, or of how posada has arranged its CPUs.
    ignored: u32,
    /// What comes before each name.
    prefix: &'static str,
    /// The features from bit 0 on, as Linux names them; "-" where there is none.
    names: &'static str,
}

/// Intel SDM Vol 2, CPUID, tables 3-10 and 3-11, leaves 7 and 0xD; AMD APM Vol 3, appendix E.4.2; and for KVM's own leaf Linux,
/// Documentation/virt/kvm/x86/cpuid.rst.
const WORDS: [Word; 12] = [
    Word {
        function: 1,
        index: 0,
        register: Register::Ecx,
        // MONITOR goes by IA32_MISC_ENABLE and OSXSAVE by CR4; the TSC-deadline timer and "hypervisor" are always announced.
        ignored: 1 << 3 | 1 << 24 | 1 << 27 | 1 << 31,
        prefix: "",
        names: "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
                sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    },
    Word {
        function: 1,
        index: 0,
        register: Register::Edx,
        // The APIC goes by its base MSR, HTT by the number of CPUs.
        ignored: 1 << 9 | 1 << 28,
        prefix: "",
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr \
                sse sse2 ss ht tm ia64 pbe",
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Ebx,
        ignored: 0,
        prefix: "",
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a \
                avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni \
                avx512bw avx512vl",
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Ecx,
        ignored: 1 << 4, // OSPKE goes by CR4.
        prefix: "",
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b \
                enqcmd sgx_lc pks",
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Edx,
        ignored: 0,
        prefix: "",
        names: "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - \
                rtm_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile \
                amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities ssbd",
    },
    Word {
        function: 7,
        index: 1,
        register: Register::Eax,
        ignored: 0,
        prefix: "",
        names: "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred \
                lkgs wrmsrns - amx_fp16 hreset avx_ifma - - lam",
    },
    Word {
        function: 0xd,
        index: 0,
        register: Register::Eax,
        ignored: 0,
        prefix: "xstate_",
        names: "x87 sse avx bndregs bndcsr opmask zmm_hi256 hi16_zmm pt pkru pasid cet_u cet_s hdc uintr lbr hwp xtilecfg \
                xtiledata",
    },
    Word {
        function: 0xd,
        index: 1,
        register: Register::Eax,
        ignored: 0,
        prefix: "",
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        ignored: 1 << 1, // CmpLegacy goes by the number of CPUs.
        prefix: "",
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
                fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        ignored: 1 << 9, // as in leaf 1
        prefix: "",
        names: "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr \
                fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    },
    Word {
        function: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        ignored: 0,
        prefix: "",
        names: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - stibp_always_on - - - - - \
                amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc - amd_psfd btc_no brs",
    },
    Word {
        function: 0x4000_0001,
        index: 0,
        register: Register::Eax,
        ignored: 0,
        prefix: "kvm_",
        names: "clocksource nop_io_delay mmu_op clocksource2 async_pf steal_time pv_eoi pv_unhalt - pv_tlb_flush \
                async_pf_vmexit pv_send_ipi poll_control pv_sched_yield async_pf_int msi_ext_dest_id hc_map_gpa_range \
                migration_control - - - - - - clocksource_stable",
    },
];

impl Word {
    fn name(&self, bit: usize) -> String {
        match self.names.split_ascii_whitespace().nth(bit) {
            Some(name) if name != "-" => format!("{}{name}", self.prefix),
            _ => {
                let (function, index, register) = (self.function, self.index, self.register);
                format!("bit {bit} of CPUID {function:#x}.{index} {register:?}")
            }
        }
    }
}

/// Some features of a CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureWord {
    /// EAX on CPUID's input.
    pub function: u32,
    /// ECX on its input.
    pub index: u32,
    /// Which register of its output this is.
    pub register: Register,
    /// That register.
    pub bits: u32,
}

/// What a guest has seen of a CPU, or what a host can show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFeatures {
    /// What runs the guest's kernel code. A guest that was made for one kind does not run on the other.
    pub kind: HostKind,
    /// The twelve letters of CPUID leaf 0.
    pub vendor: String,
    /// All other features.
    pub words: Vec<FeatureWord>,
}

impl CpuFeatures {
    /// What a guest on this host sees that was given `cpuid`, as
    /// [`VcpuState::cpuid`](super::state::VcpuState::cpuid) holds it; all that it can see, if that is all that KVM supports.
    ///
    /// kvm-pvm shows its guests leaves 1, 7 and Dh.1 of the host's CPU, whatever they were given.
    pub fn shown(cpuid: &[kvm_cpuid_entry2], kind: HostKind) -> Self {
        let word = |word: &Word| FeatureWord {
            function: word.function,
            index: word.index,
            register: word.register,
            bits: match kind {
                HostKind::Pvm if matches!((word.function, word.index), (1 | 7, _) | (0xd, 1)) => {
                    of_this_cpu(word)
                }
                _ => given(cpuid, word),
            },
        };
        Self {
            kind,
            vendor: vendor(cpuid),
            words: WORDS.iter().map(word).collect(),
        }
    }

    /// Why a guest that has seen these features cannot go on where there are those of `host`: one sentence, or `None` if it can.
    pub fn lacking(&self, host: &Self) -> Option<String> {
        if self.kind != host.kind {
            let (kind, other) = (self.kind, host.kind);
            return Some(format!(
                "the snapshot is of a guest on a host of the kind {kind}, and this host is {other}"
            ));
        }
        if self.vendor != host.vendor {
            let (vendor, other) = (&self.vendor, &host.vendor);
            return Some(format!(
                "the snapshot is of a guest on a {vendor} CPU, and this host's is {other}"
            ));
        }
        let missing: Vec<String> = self.words.iter().flat_map(|word| host.missing(word)).collect();
        if missing.is_empty() {
            return None;
        }
        Some(format!(
            "the snapshot's guest uses a CPU with {}, which this host lacks",
            missing.join(", ")
        ))
    }

    /// The names of those features of `wanted` that are not here.
    fn missing(&self, wanted: &FeatureWord) -> Vec<String> {
        let same = |function, index, register| (function, index, register) == wanted.place();
        let Some(word) = WORDS.iter().find(|w| same(w.function, w.index, w.register)) else {
            return Vec::new();
        };
        let here = self.words.iter().find(|w| w.place() == wanted.place());
        let missing = wanted.bits & !word.ignored & !here.map_or(0, |here| here.bits);
        (0..32)
            .filter(|bit| missing & 1 << bit != 0)
            .map(|bit| word.name(bit))
            .collect()
    }
}

impl FeatureWord {
    fn place(&self) -> (u32, u32, Register) {
        (self.function, self.index, self.register)
    }
}

fn vendor(cpuid: &[kvm_cpuid_entry2]) -> String {
    let leaf = cpuid.iter().find(|entry| entry.function == 0);
    let letters = leaf.map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    let letters: Vec<u8> = letters.into_iter().flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&letters).into_owned()
}

fn given(cpuid: &[kvm_cpuid_entry2], word: &Word) -> u32 {
    let leaf = cpuid
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (word.function, word.index));
    leaf.map_or(0, |leaf| match word.register {
        Register::Eax => leaf.eax,
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    })
}

fn of_this_cpu(word: &Word) -> u32 {
    if __cpuid(0).eax < word.function {
        return 0;
    }
    let leaf = __cpuid_count(word.function, word.index);
    match word.register {
        Register::Eax => leaf.eax,
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    }
}

#[cfg(test)]
mod tests;
