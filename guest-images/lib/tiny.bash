# The tiny guest: Linux 6.1, unpatched, from Debian's source package, and its initramfs.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

tarball=/usr/src/linux-source-6.1.tar.xz
fragment=$images/tiny-6.1.config

# Inline memset and memcpy as `rep stosq` and `rep movsq`. Where the host interprets the guest's kernel, each step of a string
# instruction takes 0.25 µs whatever its width, and GCC's choice for start-up code (which it optimises for size) is `rep stosb`.
#
# Who, where and when would make each build differ.
kernel_settings=(
    KCFLAGS=-mstringop-strategy=rep_8byte
    KBUILD_BUILD_USER=posada KBUILD_BUILD_HOST=guest-images KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC'
)

# Sources that a 64-bit x86 guest does not compile. Kconfig files and makefiles stay, since they refer to each other.
left_out=(
    '*/Documentation/[!K]*' '*/arch/[a-w]*/*.[chS]' '*/arch/[a-w]*/*.dts*'
    '*/samples/*.[chS]' '*/sound/*.[chS]' '*/tools/perf/*' '*/tools/testing/*'
    '*/drivers/'{gpu,media,staging,infiniband,net/ethernet,net/wireless,scsi,usb,iio,video,mtd,hwmon,pinctrl,clk,crypto,isdn}'/*.[chS]'
)

build_tiny() {
    local kernel initramfs key
    kernel=$(kernel_key)
    initramfs=$(initramfs_key)
    key=$(printf '%s\n' "$kernel" "$initramfs" | key_of)
    if [[ -e $cache/tiny-$key && $(readlink "$cache/tiny") == "tiny-$key" ]]; then
        return
    fi

    need tiny make:make gcc:gcc ld:binutils flex:flex bison:bison bc:bc xz:xz-utils tar:tar flock:util-linux \
        /usr/include/gelf.h:libelf-dev "$tarball:linux-source-6.1"
    need_programs tiny
    lock_cache
    [[ -e $cache/kernel-$kernel ]] || build_kernel "$kernel"
    [[ -e $cache/initramfs-$initramfs ]] || build_initramfs "$initramfs"
    if [[ ! -e $cache/tiny-$key ]]; then
        mkdir "$work/tiny"
        ln "$cache/kernel-$kernel/"{vmlinux,bzImage,config} "$cache/initramfs-$initramfs/initramfs.cpio" "$work/tiny"
        publish "$work/tiny" "tiny-$key"
    fi
    point tiny "$key"
    prune kernel
    prune initramfs
    say "tiny guest ready: $cache/tiny"
}

kernel_key() {
    {
        # Not the comments: a word in one is not worth minutes.
        grep -E '^(# )?CONFIG_' "$fragment"
        declare -f configure_kernel
        printf '%s\n' "${kernel_settings[@]}"
        dpkg-query -W linux-source-6.1 gcc binutils 2>/dev/null || true
        grep -F "${tarball##*/}" /var/lib/dpkg/info/linux-source-6.1.md5sums 2>/dev/null || true
        stat -L -c %s "$tarball" 2>/dev/null || true
        gcc --version 2>/dev/null || true
    } | key_of
}

initramfs_key() {
    {
        program_inputs init
        agent_inputs
        declare -f build_initramfs
        sha256sum /bin/busybox 2>/dev/null || true
    } | key_of
}

build_kernel() {
    local key=$1 source=$work/linux build=$work/kernel result=$work/result pattern excludes=()
    for pattern in "${left_out[@]}"; do
        excludes+=("--exclude=$pattern")
    done
    mkdir "$source" "$build" "$result"
    step 'kernel source' . tar --extract --verbose --file "$tarball" --directory "$source" --strip-components=1 \
        "${excludes[@]}"
    step 'kernel config' '' configure_kernel "$source" "$build"
    step 'kernel build' '^  (CC|AS|AR|LD|OBJCOPY|HOSTCC) ' \
        make -C "$source" O="$build" -j "$(nproc)" "${kernel_settings[@]}" vmlinux bzImage
    # Note type 18, XEN_ELFNOTE_PHYS32_ENTRY, is the PVH entry point.
    readelf --notes "$build/vmlinux" >"$work/notes"
    grep -Fq '(0x00000012)' "$work/notes" || die 'the kernel has no PVH note; tiny-6.1.config must have CONFIG_PVH=y'
    strip --strip-debug -o "$result/vmlinux" "$build/vmlinux"
    cp "$build/arch/x86/boot/bzImage" "$build/.config" "$result"
    mv "$result/.config" "$result/config"
    publish "$result" "kernel-$key"
    rm -rf "$source" "$build"
}

# tinyconfig, the fragment on top, and a check that kconfig took every line of it: a dependency that is not met drops one silently.
# (`|| return`: bash's -e has no effect in what `step` runs.)
configure_kernel() {
    local source=$1 build=$2 line symbol lost=0
    make -C "$source" O="$build" tinyconfig || return
    (cd "$source" && ./scripts/kconfig/merge_config.sh -m -O "$build" "$build/.config" "$fragment") || return
    make -C "$source" O="$build" olddefconfig || return
    while IFS= read -r line; do
        case $line in
        CONFIG_*) grep -Fqx "$line" "$build/.config" && continue ;;
        '# CONFIG_'*' is not set')
            symbol=${line#\# }
            grep -q "^${symbol%% *}=" "$build/.config" || continue
            ;;
        *) continue ;;
        esac
        printf 'error: the kernel configuration does not hold to: %s\n' "$line"
        lost=1
    done <"$fragment"
    return $lost
}

build_initramfs() {
    local key=$1 result=$work/initramfs
    guest_program guest-init ''
    agent_program
    mkdir "$result"
    cpio_begin "$result/initramfs.cpio"
    base_system
    cpio_end
    publish "$result" "initramfs-$key"
}
