# Debian's stock cloud kernel as shipped, and an initramfs with our init and the virtio modules that this kernel does not have built in.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

# What init loads, in this order; what each needs goes before it. ext4 is in the list in case a later kernel has it as a module.
cloud_modules=(virtio_mmio virtio_pci virtio_blk virtio_net virtio_rng vmw_vsock_virtio_transport ext4)

build_cloud() {
    local package key
    need cloud apt-cache:apt apt-get:apt dpkg-deb:dpkg modinfo:kmod tar:tar flock:util-linux
    need_programs cloud
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
    [[ -n $package ]] || die 'apt knows no package linux-image-cloud-amd64; run apt-get update, on Debian for amd64'
    key=$(cloud_key "$package")
    if [[ -e $cache/cloud-$key && $(readlink "$cache/cloud") == "cloud-$key" ]]; then
        return
    fi

    lock_cache
    [[ -e $cache/cloud-$key ]] || make_cloud "$key" "$package"
    point cloud "$key"
    say "cloud guest ready: $cache/cloud"
}

cloud_key() {
    {
        program_inputs init
        agent_inputs
        sha256sum /bin/busybox
        declare -f make_cloud add_modules base_system
        printf '%s\n' "${cloud_modules[@]}"
        apt-cache show --no-all-versions "$1" | grep -E '^(Version|SHA256):'
    } | key_of
}

make_cloud() {
    local key=$1 package=$2 result=$work/cloud tree=$work/tree
    guest_program guest-init ''
    agent_program
    mkdir "$work/download" "$tree" "$result"
    step 'cloud kernel download' '' download_package "$package" "$work/download"
    step 'cloud kernel unpacking' '' dpkg-deb --extract "$work/download/"*.deb "$tree"
    cp "$tree/boot/vmlinuz-"* "$result/vmlinuz"
    cpio_begin "$result/initramfs.cpio"
    base_system
    add_modules "$tree"
    cpio_end
    publish "$result" "cloud-$key"
}

download_package() {
    cd "$2" && apt-get download "$1"
}

# Adds the modules to the archive in the order of loading, and that order as /etc/modules, which init reads.
add_modules() {
    local tree=$1 name path
    declare -A module_paths=()
    module_order=()
    while IFS= read -r path; do
        name=${path##*/}
        module_paths[${name%.ko}]=$path
    done < <(find "$tree/lib/modules" -name '*.ko')
    for name in "${cloud_modules[@]}"; do
        order_module "$name"
    done
    cpio_directory lib
    cpio_directory lib/modules
    : >"$work/modules"
    for path in "${module_order[@]}"; do
        cpio_file "lib/modules/${path##*/}" 644 "$path"
        printf '/lib/modules/%s\n' "${path##*/}" >>"$work/modules"
    done
    cpio_file etc/modules 644 "$work/modules"
}

# Appends a module to module_order, after what it depends on. One that the package lacks is built into the kernel.
order_module() {
    local name=${1//-/_} path dependency
    path=${module_paths[$name]:-${module_paths[${name//_/-}]:-}}
    [[ -n $path && " ${module_order[*]} " != *" $path "* ]] || return 0
    while IFS= read -r dependency; do
        [[ -z $dependency ]] || order_module "$dependency"
    done < <(modinfo --field depends "$path" | tr ',' '\n')
    module_order+=("$path")
}
