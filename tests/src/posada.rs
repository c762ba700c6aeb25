//! The posada command under test: built once per test program, of what the tests were built of.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The posada binary, up to date with its sources.
///
/// Cargo tells only a package's own tests where its binaries are, so it is asked here to build this one; where
/// it is up to date already that takes a fraction of a second.
///
/// # Panics
/// With the compiler's messages, if posada does not build.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build(&env::current_exe().expect("a running program has a path")))
}

/// `program` is what cargo built and runs: `TARGET/TRIPLE/PROFILE/deps/NAME` or `TARGET/TRIPLE/PROFILE/NAME`, as .cargo/config.toml
/// names the triple.
fn build(program: &Path) -> PathBuf {
    const PLACE: &str = "cargo puts programs into TARGET/TRIPLE/PROFILE";
    let profile_dir = program
        .ancestors()
        .skip(1)
        .find(|directory| !directory.ends_with("deps"))
        .expect(PLACE);
    let target_dir = profile_dir.ancestors().nth(2).expect(PLACE);
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        // Not `dev`, for whose way to panic all crates would be built once more.
        Some("debug") | None => "test",
        Some(name) => name,
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    // The whole workspace is named so that dependencies get the features that `cargo test` gave them.
    let output = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--workspace",
            "--bin",
            "posada",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "posada does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    profile_dir.join("posada")
}
