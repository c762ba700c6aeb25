# The guest without an operating system: an ELF file that is booted by PVH.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

build_bare() {
    local key
    key=$(bare_key)
    if [[ -e $cache/bare-$key && $(readlink "$cache/bare") == "bare-$key" ]]; then
        return
    fi

    need bare cargo:cargo rustc:rustc cc:gcc flock:util-linux
    lock_cache
    [[ -e $cache/bare-$key ]] || make_bare "$key"
    point bare "$key"
    say "bare ready: $cache/bare"
}

bare_key() {
    {
        program_inputs bare
        # What it shares with the tiny guest's init, and the crates that it uses.
        inputs init/src/memory.rs
        sha256sum <"$images/../Cargo.lock"
        declare -f make_bare
    } | key_of
}

make_bare() {
    local key=$1 result=$work/bare
    guest_program bare-guest '' --features freestanding
    mkdir "$result"
    cp "$work/bare-guest" "$result/bare-guest"
    publish "$result" "bare-$key"
}
