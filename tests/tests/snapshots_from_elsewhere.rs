//! Snapshots from hosts that are not like this one: refused by one sentence, before the guest goes on.

use std::fs;
use std::path::Path;

use posada_tests::{Guest, posada};
use vmm::host::HostKind;
use vmm::snapshot::{Manifest, format};
use vmm::vcpu::features::{CpuFeatures, Register};
use vmm_sys_util::tempdir::TempDir;

/// AVX512PF, which only the CPUs called Knights have had: CPUID leaf 7, EBX bit 26 (Intel SDM Vol 2, CPUID).
const RARE: (u32, u32, Register, u32) = (7, 0, Register::Ebx, 26);

/// A snapshot of a guest that counts on with each line of input.
fn snapshot(place: &Path) {
    let name = format!("from-elsewhere-{}", std::process::id());
    let mut guest = Guest::bare("program=count").named(&name).start();
    guest.wait_for("count 1\n");
    posada(&["snapshot", &name, place.to_str().unwrap(), "--stop"]).expect_status(0);
    guest.wait().expect_status(0);
}

/// Has the snapshot be of another host, in all else as whole as it was.
fn taken_on(place: &Path, change: impl FnOnce(&mut CpuFeatures)) {
    let state = place.join("state");
    let mut manifest: Manifest = format::read(&state).unwrap();
    change(&mut manifest.cpu);
    fs::remove_file(&state).unwrap();
    format::write(&state, &manifest).unwrap();
}

fn is_refused(place: &Path, named: &[&str]) {
    let ended = Guest::restored(place).input("\n").run();
    assert_eq!(ended.console(), "", "the guest has not run");
    ended.expect_refusal(1, named);
}

#[test]
fn a_guest_that_may_use_what_this_cpu_lacks_does_not_run_here() {
    let directory = TempDir::new().unwrap();
    let place = directory.as_path().join("s");
    snapshot(&place);
    taken_on(&place, |_| {});
    let mut guest = Guest::restored(&place).start();
    guest.send("\n");
    guest.wait_for("count 2\n");
    drop(guest);

    taken_on(&place, |cpu| {
        let (function, index, register, bit) = RARE;
        let mut words = cpu.words.iter_mut();
        let word =
            words.find(|word| (word.function, word.index, word.register) == (function, index, register));
        word.unwrap().bits |= 1 << bit;
    });
    is_refused(&place, &["a CPU with avx512pf", "this host lacks"]);
    taken_on(&place, |cpu| cpu.vendor = "GenuineOther".to_owned());
    is_refused(&place, &["a GenuineOther CPU", "this host's is"]);
    taken_on(&place, |cpu| {
        cpu.kind = match cpu.kind {
            HostKind::Hardware => HostKind::Pvm,
            HostKind::Pvm => HostKind::Hardware,
        };
    });
    is_refused(&place, &["a host of the kind", "this host is"]);
}
