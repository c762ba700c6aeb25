//! Tests of the CPUID changes on leaf sets like those of Intel and AMD hosts.

use super::*;

const COUNTS: [u32; 6] = [1, 2, 7, 64, 128, 254];

fn leaf(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> Leaf {
    Leaf {
        function,
        index: index.unwrap_or(0),
        indexed: index.is_some(),
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn text(word: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*word)
}

/// As KVM lists a Sapphire Rapids host with two threads per core, CPU 5 having been asked.
fn intel() -> Vec<Leaf> {
    vec![
        leaf(0, None, [0x20, text(b"Genu"), text(b"ntel"), text(b"ineI")]),
        leaf(1, None, [0xc06f2, 0x0540_0800, 0x7ffa_b223, 0x0f8b_fbff]),
        leaf(4, Some(0), [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
        leaf(4, Some(1), [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
        leaf(4, Some(2), [0xfc00_4143, 0x03c0_003f, 0x7ff, 0]),
        leaf(4, Some(3), [0xfc1f_c163, 0x0380_003f, 0x1_bfff, 4]),
        leaf(4, Some(4), [0, 0, 0, 0]),
        leaf(6, None, [0x77, 2, 9, 0]),
        leaf(7, Some(0), [2, 0xf1bf_07ab, 0x1b41_5f6e, 0xffdd_4432]),
        leaf(7, Some(1), [0x1c30, 0, 0, 1 << 19]),
        leaf(0xa, None, [0x0830_0805, 0, 0xf, 0x8604]),
        leaf(0xb, Some(0), [1, 2, 0x100, 5]),
        leaf(0xb, Some(1), [7, 96, 0x201, 5]),
        leaf(0x1c, Some(0), [0x4000_000b, 7, 7, 0]),
        leaf(0x1f, Some(0), [1, 2, 0x100, 5]),
        leaf(0x1f, Some(1), [7, 96, 0x201, 5]),
        leaf(
            0x4000_0000,
            None,
            [0x4000_0001, text(b"KVMK"), text(b"VMKV"), text(b"M\0\0\0")],
        ),
        leaf(0x4000_0001, None, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0008, None, [0x3039, 0x0100_d000, 0, 0]),
    ]
}

/// As KVM lists a Zen 3 host.
fn amd() -> Vec<Leaf> {
    vec![
        leaf(0, None, [0x10, text(b"Auth"), text(b"cAMD"), text(b"enti")]),
        leaf(1, None, [0xa0_0f11, 0x0540_0800, 0x76fa_b203, 0x078b_fbff]),
        leaf(6, None, [4, 0, 1, 0]),
        leaf(0xb, Some(0), [1, 2, 0x100, 5]),
        leaf(0xb, Some(1), [6, 64, 0x201, 5]),
        leaf(
            0x8000_0001,
            None,
            [0xa0_0f11, 0x4000_0000, 0x75c2_37ff, 0x2fd3_fbff],
        ),
        leaf(0x8000_0008, None, [0x3030, 0x111e_f657, 0x603f, 0x1_0000]),
        leaf(0x8000_001d, Some(0), [0x4121, 0x01c0_003f, 0x3f, 0]),
        leaf(0x8000_001d, Some(1), [0x4122, 0x01c0_003f, 0x3f, 0]),
        leaf(0x8000_001d, Some(2), [0x4143, 0x01c0_003f, 0x3ff, 2]),
        leaf(0x8000_001d, Some(3), [0x3_c163, 0x03c0_003f, 0x7fff, 1]),
        leaf(0x8000_001d, Some(4), [0, 0, 0, 0]),
        leaf(0x8000_001e, None, [5, 0x102, 0x300, 0]),
        leaf(0x8000_0022, None, [1, 0x46, 0, 0]),
        leaf(0x8000_0026, Some(0), [1, 2, 0x100, 5]),
    ]
}

fn adjusted(mut leaves: Vec<Leaf>, vcpu: u32, cpus: u32) -> Vec<Leaf> {
    adjust(&mut leaves, vcpu, CpuTopology { cpus, smt: false });
    leaves
}

fn with_threads(mut leaves: Vec<Leaf>, vcpu: u32, cpus: u32) -> Vec<Leaf> {
    adjust(&mut leaves, vcpu, CpuTopology { cpus, smt: true });
    leaves
}

fn find(leaves: &[Leaf], function: u32, index: u32) -> Leaf {
    *leaves
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (function, index))
        .unwrap()
}

fn bits(register: u32, low: u32, width: u32) -> u32 {
    register >> low & ((1 << width) - 1)
}

#[test]
fn leaf_1_has_the_apic_id_and_count() {
    for (host, cpus) in [intel(), amd()]
        .into_iter()
        .flat_map(|host| COUNTS.map(|cpus| (host.clone(), cpus)))
    {
        for vcpu in [0, cpus / 2, cpus - 1] {
            let found = find(&adjusted(host.clone(), vcpu, cpus), 1, 0);
            assert_eq!(bits(found.ebx, 24, 8), vcpu);
            assert_eq!(bits(found.ebx, 16, 8), cpus.next_power_of_two().min(255));
            assert_eq!(bits(found.edx, 28, 1), u32::from(cpus > 1), "HTT");
            // Cache line size and the rest are the host's.
            assert_eq!(found.ebx as u16, 0x800);
        }
    }
}

#[test]
fn leaf_1_features() {
    let host = find(&intel(), 1, 0);
    let found = find(&adjusted(intel(), 0, 1), 1, 0);
    assert_eq!(found.eax, host.eax);
    let changed = 1 << 31 | 1 << 24 | 1 << 27 | 1 << 15;
    assert_eq!(found.ecx & !changed, host.ecx & !changed);
    assert_eq!(
        found.ecx & changed,
        1 << 31 | 1 << 24,
        "hypervisor, TSC deadline; no OSXSAVE, no PDCM"
    );
    assert_eq!(found.edx, host.edx & !(1 << 28));
}

#[test]
fn intel_caches_belong_to_cores_or_the_package() {
    for cpus in COUNTS {
        let ids = cpus.next_power_of_two();
        let leaves = adjusted(intel(), 0, cpus);
        for (index, sharing) in [(0, 1), (1, 1), (2, 1), (3, ids)] {
            let (found, host) = (find(&leaves, 4, index), find(&intel(), 4, index));
            assert_eq!(bits(found.eax, 14, 12) + 1, sharing);
            assert_eq!(bits(found.eax, 26, 6) + 1, ids.min(64));
            assert_eq!(found.eax & 0x3fff, host.eax & 0x3fff);
            assert_eq!((found.ebx, found.ecx, found.edx), (host.ebx, host.ecx, host.edx));
        }
        assert_eq!(
            find(&leaves, 4, 4),
            leaf(4, Some(4), [0; 4]),
            "the end of the list"
        );
    }
}

#[test]
fn topology_leaves_have_one_package_of_single_threaded_cores() {
    let shifts = [(1, 0), (2, 1), (7, 3), (64, 6), (128, 7), (254, 8)];
    for (cpus, shift) in shifts {
        let vcpu = cpus - 1;
        let leaves = adjusted(intel(), vcpu, cpus);
        for function in [0xb, 0x1f] {
            let found: Vec<_> = leaves
                .iter()
                .filter(|leaf| leaf.function == function)
                .copied()
                .collect();
            let expected = [
                leaf(function, Some(0), [0, 1, 0x100, vcpu]),
                leaf(function, Some(1), [shift, cpus, 0x201, vcpu]),
                leaf(function, Some(2), [0, 0, 2, vcpu]),
            ];
            assert_eq!(found, expected);
        }
        let amd = adjusted(amd(), vcpu, cpus);
        assert_eq!(find(&amd, 0xb, 1), leaf(0xb, Some(1), [shift, cpus, 0x201, vcpu]));
        assert!(
            amd.iter()
                .all(|leaf| !matches!(leaf.function, 0x1f | 0x8000_0026))
        );
    }
}

#[test]
fn two_threads_are_told_to_share_a_core_and_its_caches() {
    for (cpus, shift) in [(2, 1), (6, 3), (64, 6), (254, 8)] {
        let vcpu = cpus - 1;
        let ids = 1 << shift;
        let leaves = with_threads(intel(), vcpu, cpus);
        let levels = [0, 1, 2].map(|index| find(&leaves, 0xb, index));
        let expected = [
            leaf(0xb, Some(0), [1, 2, 0x100, vcpu]),
            leaf(0xb, Some(1), [shift, cpus, 0x201, vcpu]),
            leaf(0xb, Some(2), [0, 0, 2, vcpu]),
        ];
        assert_eq!(levels, expected);
        assert_eq!(bits(find(&leaves, 1, 0).ebx, 16, 8), ids.min(255));
        for (index, sharing) in [(0, 2), (1, 2), (2, 2), (3, ids)] {
            let found = find(&leaves, 4, index);
            assert_eq!(bits(found.eax, 14, 12) + 1, sharing);
            assert_eq!(bits(found.eax, 26, 6) + 1, (ids / 2).min(64));
        }
        let leaves = with_threads(amd(), vcpu, cpus);
        let ids_of_core = find(&leaves, 0x8000_001e, 0);
        assert_eq!((ids_of_core.eax, ids_of_core.ebx), (vcpu, 0x100 | (vcpu / 2)));
        assert_eq!(bits(find(&leaves, 0x8000_0008, 0).ecx, 0, 8), cpus - 1);
        for (index, sharing) in [(0, 2), (1, 2), (2, 2), (3, ids)] {
            assert_eq!(bits(find(&leaves, 0x8000_001d, index).eax, 14, 12) + 1, sharing);
        }
    }
}

#[test]
fn a_cpu_that_is_alone_has_its_core_for_itself() {
    for host in [intel(), amd()] {
        assert_eq!(with_threads(host.clone(), 0, 1), adjusted(host, 0, 1));
    }
}

#[test]
fn an_old_cpu_gets_no_topology_leaves() {
    let mut old = intel();
    old[0].eax = 0xa;
    old.retain(|leaf| leaf.function <= 0xa);
    assert!(adjusted(old, 0, 2).iter().all(|leaf| leaf.function <= 0xa));
}

#[test]
fn amd_counts_and_ids() {
    for (cpus, shift) in [(1, 0), (2, 1), (7, 3), (64, 6), (254, 8)] {
        let vcpu = cpus - 1;
        let leaves = adjusted(amd(), vcpu, cpus);
        let counts = find(&leaves, 0x8000_0008, 0);
        assert_eq!(
            (bits(counts.ecx, 0, 8), bits(counts.ecx, 12, 4)),
            (cpus - 1, shift)
        );
        assert_eq!(
            (counts.eax, counts.ebx, counts.edx),
            (0x3030, 0x111e_f657, 0x1_0000)
        );
        assert_eq!(
            find(&leaves, 0x8000_001e, 0),
            leaf(0x8000_001e, None, [vcpu, vcpu, 0, 0])
        );
        let features = find(&leaves, 0x8000_0001, 0);
        assert_eq!(bits(features.ecx, 1, 1), u32::from(cpus > 1), "CmpLegacy");
        assert_eq!(
            features.ecx & (1 << 23 | 1 << 24 | 1 << 28),
            0,
            "performance counters"
        );
        assert_eq!(bits(features.ecx, 22, 1), 1, "TopologyExtensions");
        for (index, sharing) in [(0, 1), (1, 1), (2, 1), (3, cpus.next_power_of_two())] {
            assert_eq!(bits(find(&leaves, 0x8000_001d, index).eax, 14, 12) + 1, sharing);
        }
        assert_eq!(find(&leaves, 0x8000_001d, 4).eax, 0);
    }
}

#[test]
fn amd_registers_that_intel_reserves_stay_as_they_are() {
    let leaves = adjusted(intel(), 3, 7);
    assert_eq!(find(&leaves, 0x8000_0008, 0), find(&intel(), 0x8000_0008, 0));
    let hygon = [text(b"Hygo"), text(b"uine"), text(b"nGen")];
    let mut leaves = amd();
    (leaves[0].ebx, leaves[0].ecx, leaves[0].edx) = (hygon[0], hygon[1], hygon[2]);
    assert_eq!(
        find(&adjusted(leaves, 3, 7), 0x8000_0008, 0),
        find(&adjusted(amd(), 3, 7), 0x8000_0008, 0)
    );
}

#[test]
fn there_is_no_pmu_and_no_power_management() {
    let leaves = adjusted(intel(), 0, 4);
    assert_eq!(find(&leaves, 0xa, 0), leaf(0xa, None, [0; 4]));
    assert_eq!(find(&leaves, 0x1c, 0), leaf(0x1c, Some(0), [0; 4]));
    assert_eq!(find(&leaves, 6, 0), leaf(6, None, [4, 0, 0, 0]), "ARAT only");
    assert_eq!(
        find(&leaves, 7, 0).edx,
        find(&intel(), 7, 0).edx & !(1 << 19),
        "ARCH_LBR"
    );
    assert_eq!(find(&leaves, 7, 1), find(&intel(), 7, 1));
    assert_eq!(
        find(&adjusted(amd(), 0, 4), 0x8000_0022, 0),
        leaf(0x8000_0022, None, [0; 4])
    );
}

#[test]
fn kvms_leaves_and_brand_stay_as_they_are() {
    let leaves = adjusted(intel(), 1, 2);
    for function in [0, 0x4000_0000, 0x4000_0001] {
        assert_eq!(find(&leaves, function, 0), find(&intel(), function, 0));
    }
}

#[test]
fn adjusting_twice_changes_nothing_more() {
    for host in [intel(), amd()] {
        let once = adjusted(host, 6, 7);
        assert_eq!(adjusted(once.clone(), 6, 7), once);
    }
}
