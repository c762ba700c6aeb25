use arch_x86_64::cpuid::CpuTopology;
use kvm_ioctls::Kvm;

use super::*;
use crate::config::CpuTemplate;
use crate::vcpu::Host;

fn cpu(function: u32, ecx: u32) -> CpuFeatures {
    let vendor = kvm_cpuid_entry2 {
        ebx: u32::from_le_bytes(*b"Genu"),
        edx: u32::from_le_bytes(*b"ineI"),
        ecx: u32::from_le_bytes(*b"ntel"),
        ..Default::default()
    };
    let leaf = kvm_cpuid_entry2 {
        function,
        ecx,
        ..Default::default()
    };
    CpuFeatures::shown(&[vendor, leaf], HostKind::Hardware)
}

#[test]
fn a_cpu_lacks_nothing_that_it_has() {
    let snapshot = cpu(1, 1 << 28 | 1 << 12);
    assert_eq!(snapshot.vendor, "GenuineIntel");
    assert_eq!(snapshot.lacking(&snapshot), None);
    assert_eq!(snapshot.lacking(&cpu(1, u32::MAX)), None);
}

#[test]
fn what_is_missing_is_named() {
    let sentence = cpu(1, 1 << 28 | 1 << 25 | 1 << 12).lacking(&cpu(1, 1 << 25));
    assert_eq!(
        sentence.unwrap(),
        "the snapshot's guest uses a CPU with fma, avx, which this host lacks"
    );
    let sentence = cpu(7, 1 << 15).lacking(&cpu(7, 0)).unwrap();
    assert!(sentence.contains("bit 15 of CPUID 0x7.0 Ecx"), "{sentence}");
}

#[test]
fn what_the_guest_has_switched_on_is_no_feature() {
    let osxsave = 1 << 27;
    assert_eq!(cpu(1, osxsave).lacking(&cpu(1, 0)), None);
}

#[test]
fn another_vendors_cpu_and_another_kind_of_host_are_refused() {
    let (snapshot, mut host) = (cpu(1, 0), cpu(1, 0));
    host.vendor = "AuthenticAMD".to_owned();
    let sentence = snapshot.lacking(&host).unwrap();
    assert!(
        sentence.contains("GenuineIntel") && sentence.contains("AuthenticAMD"),
        "{sentence}"
    );
    host.kind = HostKind::Pvm;
    let sentence = snapshot.lacking(&host).unwrap();
    assert!(
        sentence.contains("VT-x") && sentence.contains("kvm-pvm"),
        "{sentence}"
    );
}

#[test]
fn every_word_names_at_most_its_own_bits() {
    for word in &WORDS {
        let names = word.names.split_ascii_whitespace().count();
        assert!(names <= 32, "CPUID {:#x} has {names} names", word.function);
    }
    let last: Vec<String> = WORDS[..5].iter().map(|word| word.name(31)).collect();
    assert_eq!(last, ["hypervisor", "pbe", "avx512vl", "pks", "ssbd"]);
    assert_eq!(WORDS[5].name(26), "lam");
    assert_eq!(WORDS[9].name(29), "lm");
    assert_eq!(WORDS[11].name(24), "kvm_clocksource_stable");
}

#[test]
fn a_snapshot_without_a_word_needs_nothing_of_it() {
    let mut snapshot = cpu(1, u32::MAX);
    snapshot.words.clear();
    assert_eq!(snapshot.lacking(&cpu(1, 0)), None);
}

#[test]
fn kvm_a_guest_of_this_host_can_go_on_here() {
    let kvm = Kvm::new().expect("this test needs /dev/kvm; run `make test KVM=none` to leave it out");
    let kind = HostKind::detect();
    let leaves = crate::vcpu::setup::supported_leaves(&kvm).unwrap();
    let topology = CpuTopology { cpus: 2, smt: false };
    let host = Host::new(kvm, kind, topology, CpuTemplate::default())
        .features()
        .unwrap();
    let cpuid = crate::vcpu::setup::cpuid(&leaves, 1, topology, kind).unwrap();
    let guest = CpuFeatures::shown(cpuid.as_slice(), kind);
    assert_eq!(guest.lacking(&host), None);
    let bytes = cbor4ii::serde::to_vec(Vec::new(), &guest).unwrap();
    assert_eq!(cbor4ii::serde::from_slice::<CpuFeatures>(&bytes).unwrap(), guest);
}
