//! Links the freestanding `bare-guest` program as a kernel: static, at 1 MiB, laid out by `link.ld`, without C start-up code or libraries.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    let directory = env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let script = format!("-Wl,-T,{directory}/link.ld");
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        // The core library mentions the unwinder in tables that are never used with panic = "abort".
        "-Wl,--defsym=rust_eh_personality=0,--defsym=_Unwind_Resume=0",
        &script,
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
