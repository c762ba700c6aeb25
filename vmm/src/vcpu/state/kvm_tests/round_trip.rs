//! A state that is restored and saved again is the same, but for what time changes.

use std::time::Instant;

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_irqchip, kvm_msr_entry, kvm_vcpu_events,
};
use kvm_ioctls::Kvm;

use super::super::{StateFormat, VcpuState, msrs, tsc};
use super::*;

/// A guest of two vCPUs that has come to its first exit, with values in registers that are not those of reset.
fn odd_guest() -> Guest {
    // mov rax, DATA; mov cr2, rax; mov dr0, rax; mov eax, 0x34; out 0x43, al; mov al, 0x77; out 0x40, al; out 0x40, al (the timer);
    // mov al, 0x11; out 0x20, al; mov al, 0x30; out 0x21, al (the first interrupt controller);
    // mov esi, 0xfec00000; mov dword [rsi], 0x14; mov dword [rsi + 16], 0x10061 (a pin of the I/O APIC); out PORT, al.
    let code = [
        &[0x48, 0xb8][..],
        &DATA.to_le_bytes(),
        &[0x0f, 0x22, 0xd0, 0x0f, 0x23, 0xc0],
        &[0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x77, 0xe6, 0x40, 0xe6, 0x40],
        &[0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x30, 0xe6, 0x21],
        &[0xbe, 0, 0, 0xc0, 0xfe, 0xc7, 0x06, 0x14, 0, 0, 0],
        &[0xc7, 0x46, 0x10, 0x61, 0, 1, 0, 0xe6, PORT],
    ]
    .concat();
    let mut guest = Guest::new(2, &code);
    // KERNEL_GS_BASE, STAR, SYSENTER_EIP, PAT, the default memory type, and IA32_MC1_CTL.
    let odd = [
        (0xc000_0102, 0x1234_5000),
        (0xc000_0081, 0x23_0010_0000_0000),
        (0x176, 0x7654_3210),
        (0x277, 0x0007_0106_0007_0106),
        (0x2ff, 0x806),
        (0x404, 0),
    ];
    let odd = odd.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    msrs::write(&guest.vcpus[1], odd.iter()).unwrap();
    assert!(guest.run(0, 1).is_continue());
    for msr in odd {
        assert_eq!(
            msrs::get(&guest.vcpus[1], msr.index).unwrap(),
            Some(msr.data),
            "{:#x}",
            msr.index
        );
    }
    guest
}

/// The state without what goes on while nothing runs.
fn timeless(mut state: VcpuState) -> VcpuState {
    state.msrs.retain(|msr| msr.index != msrs::IA32_TSC);
    state.tsc_offset = None;
    state
}

fn bytes(chip: &kvm_irqchip) -> Vec<u8> {
    cbor4ii::serde::to_vec(Vec::new(), chip).unwrap()
}

#[test]
fn kvm_a_restored_state_is_the_saved_one() {
    let mut guest = odd_guest();
    let saved = guest.save();
    let again = guest.restored(&saved).save();
    for (before, after) in saved.cpus.iter().zip(&again.cpus) {
        assert_eq!(timeless(after.clone()), timeless(before.clone()));
    }
    assert_eq!(saved.cpus[0].sregs.cr2, DATA);
    assert_eq!(saved.cpus[0].debug_registers.db[0], DATA);
    assert_eq!(bytes(&again.machine.pic_master), bytes(&saved.machine.pic_master));
    assert_eq!(bytes(&again.machine.pic_slave), bytes(&saved.machine.pic_slave));
    assert_eq!(bytes(&again.machine.ioapic), bytes(&saved.machine.ioapic));
    let [mut before, mut after] = [saved.machine.pit, again.machine.pit];
    assert_eq!(before.channels[0].count, 0x7777);
    for channel in before.channels.iter_mut().chain(&mut after.channels) {
        channel.count_load_time = 0;
    }
    assert_eq!(before, after);
}

/// A guest whose vCPUs have these events, and the same moved to another machine: what either is saved with.
fn with_events(change: impl Fn(&mut kvm_vcpu_events)) -> [kvm_vcpu_events; 2] {
    let mut guest = odd_guest();
    for vcpu in &guest.vcpus {
        let mut events = vcpu.get_vcpu_events().unwrap();
        change(&mut events);
        vcpu.set_vcpu_events(&events).unwrap();
    }
    let saved = guest.save();
    let again = guest.restored(&saved).save();
    [saved.cpus[0].events, again.cpus[0].events]
}

fn offers(cap: u32) -> bool {
    let offered = Kvm::new().unwrap().check_extension_raw(cap.into()) > 0;
    if !offered {
        eprintln!("not tested: this KVM does not have the extension {cap}");
    }
    offered
}

#[test]
fn kvm_a_triple_fault_that_waits_is_kept() {
    if !offers(KVM_CAP_X86_TRIPLE_FAULT_EVENT) {
        return;
    }
    for pending in [0, 1] {
        for events in with_events(|events| events.triple_fault.pending = pending) {
            assert_eq!(events.triple_fault.pending, pending);
        }
    }
}

#[test]
fn kvm_a_page_fault_that_waits_is_kept_with_its_address() {
    if !offers(KVM_CAP_EXCEPTION_PAYLOAD) {
        return;
    }
    let page_fault = |events: &mut kvm_vcpu_events| {
        events.exception.pending = 1;
        events.exception.nr = 14;
        events.exception.has_error_code = 1;
        events.exception.error_code = 2;
        (events.exception_has_payload, events.exception_payload) = (1, 0x1234_5678);
    };
    for events in with_events(page_fault) {
        assert_eq!((events.exception.pending, events.exception.nr), (1, 14));
        assert_eq!(
            (events.exception_has_payload, events.exception_payload),
            (1, 0x1234_5678)
        );
    }
}

#[test]
fn kvm_a_state_of_a_kvm_with_more_events_fits_one_with_fewer_unless_it_has_them() {
    let mut guest = odd_guest();
    let mut state = guest.save().cpus.remove(0);
    let format = StateFormat {
        event_flags: 0,
        ..StateFormat::new(&guest.kvm).unwrap()
    };
    let more = KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    state.events.flags |= more;
    assert_eq!(state.events_for(&format).flags & more, 0);
    state.events.triple_fault.pending = 1;
    assert_eq!(
        state.events_for(&format).flags & more,
        KVM_VCPUEVENT_VALID_TRIPLE_FAULT
    );
}

#[test]
fn kvm_a_state_can_be_saved_twice() {
    let mut guest = odd_guest();
    let [first, second] = [guest.save(), guest.save()];
    for (first, second) in first.cpus.into_iter().zip(second.cpus) {
        assert_eq!(timeless(first), timeless(second));
    }
}

#[test]
fn kvm_a_machine_goes_back_to_what_it_was() {
    // again: in eax, PORT; add rbx, rax; jmp again.
    let mut guest = Guest::new(1, &[0xe5, PORT, 0x48, 0x01, 0xc3, 0xeb, 0xf9]);
    assert!(guest.run(0, 3).is_continue());
    let saved = guest.save();
    assert!(guest.run(0, 5).is_continue());
    let later = guest.save();
    assert_ne!(later.cpus[0].regs.rbx, saved.cpus[0].regs.rbx);
    guest.restore_state(&saved);
    let again = guest.save();
    assert_eq!(timeless(again.cpus[0].clone()), timeless(saved.cpus[0].clone()));
    assert!(guest.run(0, 5).is_continue());
}

#[test]
fn kvm_clocks_go_on_from_where_they_stood() {
    let mut guest = odd_guest();
    let at = Instant::now();
    let saved = guest.save();
    let mut moved = guest.restored(&saved);
    let clock = moved.vm.get_clock().unwrap().clock;
    let elapsed = u64::try_from(at.elapsed().as_nanos()).unwrap();
    assert!(clock >= saved.machine.clock);
    assert!(clock - saved.machine.clock <= elapsed);
    let again = moved.save();
    for (before, after) in saved.cpus.iter().zip(&again.cpus) {
        assert!(after.msr(msrs::IA32_TSC) >= before.msr(msrs::IA32_TSC));
    }
    let offsets: Vec<_> = moved.vcpus.iter().map(tsc::offset).collect();
    assert_eq!(offsets[0], offsets[1]);
}

#[test]
fn kvm_a_state_that_this_host_cannot_have_is_refused_by_name() {
    let mut guest = odd_guest();
    let saved = guest.save();
    let refusal = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = saved.cpus[0].clone();
        change(&mut state);
        let restore = super::super::CpuRestore::new(vec![state]);
        let format = super::super::StateFormat::new(&guest.kvm).unwrap();
        let refused = restore.restore(0, &guest.vcpus[0], &format);
        refused.unwrap_err().to_string()
    };
    let unknown = kvm_msr_entry {
        index: 0xdead,
        data: 7,
        ..Default::default()
    };
    let sentence = refusal(&|state| state.msrs.push(unknown));
    assert!(sentence.contains("MSR 0xdead = 0x7"), "{sentence}");
    let sentence = refusal(&|state| state.tsc_khz /= 2);
    assert!(sentence.contains("counts time by a TSC of"), "{sentence}");
}
