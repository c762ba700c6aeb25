//! Tests of host detection and of what is set up once.

use std::path::PathBuf;
use std::{env, fs, process};

use super::*;

/// A directory with some sysfs modules and one cpuinfo, removed at the end.
struct Host(PathBuf);

impl Host {
    fn new(name: &str, modules: &[&str], flags: &str) -> Self {
        let root = env::temp_dir().join(format!("posada-pvm-{}-{name}", process::id()));
        for module in modules {
            fs::create_dir_all(root.join("module").join(module)).unwrap();
        }
        fs::create_dir_all(&root).unwrap();
        let cpuinfo = format!("processor\t: 0\nflags\t\t: fpu vme {flags}\nvmx flags\t: vnmi\n\n");
        fs::write(root.join("cpuinfo"), cpuinfo).unwrap();
        Host(root)
    }

    fn is_pvm(&self) -> bool {
        is_pvm_host_at(&self.0, &self.0)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn kvm_pvm_alone_is_a_pvm_host() {
    assert!(Host::new("alone", &["kvm", "kvm_pvm"], "sse").is_pvm());
}

#[test]
fn hardware_virtualisation_wins() {
    assert!(!Host::new("intel", &["kvm", "kvm_pvm", "kvm_intel"], "sse vmx").is_pvm());
    assert!(!Host::new("amd", &["kvm", "kvm_pvm", "kvm_amd"], "sse svm").is_pvm());
    assert!(!Host::new("none", &["kvm"], "sse").is_pvm());
}

#[test]
fn a_built_in_module_without_its_hardware_does_not_count() {
    assert!(Host::new("builtin", &["kvm", "kvm_pvm", "kvm_intel", "kvm_amd"], "sse").is_pvm());
    // kvm_intel is there, and the flag of the other vendor.
    assert!(Host::new("mixed", &["kvm_pvm", "kvm_intel"], "svm").is_pvm());
}

#[test]
fn cpuid_loses_hypercall_ipis_and_supervisor_state_only() {
    let leaf = |function, index| kvm_cpuid_entry2 {
        function,
        index,
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
        ..Default::default()
    };
    let mut entries = [leaf(1, 0), leaf(0xd, 0), leaf(0xd, 1), leaf(0x4000_0001, 0)];
    let before = entries;
    mask_cpuid(&mut entries);
    assert_eq!(entries[..2], before[..2]);
    assert_eq!(
        (entries[2].eax, entries[2].ebx, entries[2].ecx, entries[2].edx),
        (u32::MAX, u32::MAX, 0, 0)
    );
    assert_eq!((entries[3].eax, entries[3].ebx), (!(1 << 11), u32::MAX));
}
