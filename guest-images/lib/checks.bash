# The program that checks a guest's CPU, as a cpio archive to append to an initramfs: the kernel unpacks one after the other
# (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). Run it with the guest option posada.init=/checks.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

build_checks() {
    local key
    key=$(checks_key)
    if [[ -e $cache/checks-$key && $(readlink "$cache/checks") == "checks-$key" ]]; then
        return
    fi

    need checks cargo:cargo rustc:rustc cc:gcc flock:util-linux
    lock_cache
    [[ -e $cache/checks-$key ]] || make_checks "$key"
    point checks "$key"
    say "checks ready: $cache/checks"
}

checks_key() {
    {
        program_inputs checks
        declare -f make_checks
    } | key_of
}

make_checks() {
    local key=$1 result=$work/checks
    # The initramfs has no libraries.
    guest_program guest-checks '-C target-feature=+crt-static'
    mkdir "$result"
    cpio_begin "$result/checks.cpio"
    cpio_file checks 755 "$work/guest-checks"
    cpio_end
    publish "$result" "checks-$key"
}
