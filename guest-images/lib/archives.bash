# Programs for a Linux guest, each as a cpio archive to append to an initramfs: the kernel unpacks one after the other (Linux,
# Documentation/driver-api/early-userspace/buffer-format.rst). Run one with the guest option posada.init=/NAME.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

build_checks() {
    build_archive checks
}

build_worker() {
    # The numbers that it shares with the bare guest.
    build_archive worker bare/src/numbers.rs
}

# Builds NAME.cpio with the program of the package guest-NAME, which is in the directory NAME: build_archive NAME [INPUT...]
build_archive() {
    local name=$1 key
    key=$(archive_key "$@")
    if [[ -e $cache/$name-$key && $(readlink "$cache/$name") == "$name-$key" ]]; then
        return
    fi

    need "$name" cargo:cargo rustc:rustc cc:gcc flock:util-linux
    lock_cache
    [[ -e $cache/$name-$key ]] || make_archive "$name" "$key"
    point "$name" "$key"
    say "$name ready: $cache/$name"
}

archive_key() {
    local name=$1
    shift
    {
        program_inputs "$name"
        (($# == 0)) || inputs "$@"
        declare -f make_archive
    } | key_of
}

make_archive() {
    local name=$1 key=$2 result=$work/$1
    # The initramfs has no libraries.
    guest_program "guest-$name" '-C target-feature=+crt-static'
    mkdir "$result"
    cpio_begin "$result/$name.cpio"
    cpio_file "$name" 755 "$work/guest-$name"
    cpio_end
    publish "$result" "$name-$key"
}
