//! Links the freestanding `guest-init` program: static, at a fixed address, without C start-up code or libraries.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        // Text and read-only data in one segment: the guest takes one page fault for both.
        "-Wl,-z,noseparate-code,--no-rosegment,--build-id=none",
        // The core library mentions the unwinder in tables that are never used with panic = "abort".
        "-Wl,--defsym=rust_eh_personality=0",
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
