# The guest's own programs, built by cargo, and the initramfs made of them.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

# Everything that a program in DIRECTORY depends on, for a key.
program_inputs() {
    inputs "$1" lib/programs.bash lib/cpio.bash
    sed -n '/^\[profile/,$p' "$images/../Cargo.toml"
    rustc --version
}

# Named, so that cargo does not apply a guest program's flags to what runs here to build it.
target=x86_64-unknown-linux-gnu

# Builds a workspace package's program for the guest: guest_program PACKAGE RUSTFLAGS [CARGO-OPTION...]; leaves it at $work/PACKAGE.
guest_program() {
    local package=$1 flags=$2
    shift 2
    step "program $package" '' env CARGO_TARGET_DIR="$work/target" RUSTFLAGS="$flags" \
        cargo build --manifest-path "$images/../Cargo.toml" --release --package "$package" --target "$target" "$@"
    cp "$work/target/$target/release/$package" "$work/$package"
}

# The agent, which runs in any guest: static, at a fixed address, which saves the guest pages to change. Leaves it at $work/guest-agent.
agent_program() {
    guest_program guest-agent '-C target-feature=+crt-static -C relocation-model=static'
}

agent_inputs() {
    inputs agent
    # The crates that it uses.
    sha256sum <"$images/../Cargo.lock"
    declare -f agent_program
}

need_programs() {
    need "$1" cargo:cargo rustc:rustc cc:gcc /usr/include/stdio.h:libc6-dev /bin/busybox:busybox-static
    # Debian's other busybox package is linked dynamically, and the initramfs has no libraries.
    if head -c 4096 /bin/busybox | grep -q ld-linux; then
        die "/bin/busybox is linked dynamically; install the static one with: apt-get install busybox-static"
    fi
}

# The base of every initramfs, in an archive that cpio_begin has started. The shell runs busybox's applets by name without links for
# them (each link would cost the guest time at boot); /bin/sh is for scripts.
base_system() {
    local directory
    for directory in bin etc proc sys tmp run; do
        cpio_directory "$directory"
    done
    cpio_file init 755 "$work/guest-init"
    cpio_file bin/busybox 755 /bin/busybox
    cpio_link bin/sh busybox
    cpio_file bin/posada-agent 755 "$work/guest-agent"
}
