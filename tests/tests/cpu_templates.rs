//! What a guest's CPUs show of the host's, when they are to show something else.

use std::fs;

use posada_tests::served::{START, Served};
use posada_tests::{Guest, Running, payload, posada};
use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

payload! {
    /// Prints the first four letters of the CPU's name (Intel SDM Vol 2, CPUID leaf 80000002H) at once, and once more when it has
    /// been sent something.
    name_payload,
    "mov edi, 2",
    "2:",
    "mov eax, 0x80000002",
    "xor ecx, ecx",
    "cpuid",
    "mov ebx, eax",
    "mov ecx, 4",
    "3:",
    "mov eax, ebx",
    "mov dx, 0x3f8",
    "out dx, al",
    "shr ebx, 8",
    "dec ecx",
    "jnz 3b",
    "say 10",
    "dec edi",
    "jz 5f",
    // Receive interrupts and RTS: it listens; then the line status register says when there is a byte.
    "mov dx, 0x3f9", "mov al, 1", "out dx, al",
    "mov dx, 0x3fc", "mov al, 2", "out dx, al",
    "4:", "mov dx, 0x3fd", "in al, dx", "test al, 1", "jz 4b",
    "jmp 2b",
    "5:", "power_off",
}

/// A template by which the name begins with these letters.
fn named(letters: &[u8; 4]) -> Value {
    let bitmap = format!("0b{:032b}", u32::from_le_bytes(*letters));
    json!({ "cpuid_modifiers": [
        { "leaf": "0x80000002", "subleaf": "0x0", "flags": 0, "modifiers": [{ "register": "eax", "bitmap": bitmap }] },
    ]})
}

fn end(mut guest: Running, letters: &str) {
    guest.send("x");
    guest.wait_for(letters);
    guest.wait().expect_status(0);
}

#[test]
fn a_guest_sees_the_cpu_of_its_template_and_still_does_in_another_process() {
    let place = TempDir::new().unwrap();
    let (template, snapshot) = (place.as_path().join("cpu.json"), place.as_path().join("s"));
    fs::write(&template, named(b"inn!").to_string()).unwrap();
    let name = format!("cpu-{}", std::process::id());
    let mut guest = Guest::payload(name_payload())
        .arg("--cpu-template")
        .arg(&template)
        .named(&name)
        .start();
    guest.wait_for("inn!\n");
    posada(&["snapshot", &name, snapshot.to_str().unwrap(), "--stop"]).expect_status(0);
    guest.wait().expect_status(0);
    fs::remove_file(&template).unwrap();
    end(Guest::restored(&snapshot).start(), "inn!\n");
}

#[test]
fn firecrackers_clients_give_a_template_by_a_request() {
    let mut served = Served::start("cpu", &[]);
    let kernel = served.place("kernel");
    fs::write(&kernel, payload::elf(name_payload(), false)).unwrap();
    let source = json!({ "kernel_image_path": kernel, "boot_args": "" });
    served.put("/boot-source", &source.to_string()).expect(204);
    served.put("/cpu-config", &named(b"one?").to_string()).expect(204);
    served.put("/cpu-config", &named(b"two?").to_string()).expect(204);
    served.put("/actions", START).expect(204);
    served.running.wait_for("two?\n");
    end(served.running, "two?\n");
}

#[test]
fn a_template_for_another_host_is_refused_with_what_is_missing() {
    let place = TempDir::new().unwrap();
    let template = place.as_path().join("cpu.json");
    for (text, status, named) in [
        (json!({ "kvm_capabilities": ["4000000"] }), 1, "4000000"),
        (
            json!({ "kvm_capabilities": ["!4000000"], "msr_modifiers": [{ "addr": "0x7fffffff", "bitmap": "0b1" }] }),
            1,
            "0x7fffffff",
        ),
        (
            json!({ "cpuid_modifiers": [{ "leaf": "0x12345678", "subleaf": "0", "flags": 0, "modifiers": [] }] }),
            1,
            "0x12345678",
        ),
    ] {
        fs::write(&template, text.to_string()).unwrap();
        Guest::payload(name_payload())
            .arg("--cpu-template")
            .arg(&template)
            .run()
            .expect_refusal(status, &[named]);
    }
    fs::write(&template, "{\"cpu\": 386}").unwrap();
    let ended = Guest::payload(name_payload())
        .arg("--cpu-template")
        .arg(&template)
        .run();
    let messages = ended.expect_status(2).messages();
    assert!(messages.contains("no CPU template"), "{messages}");
}
