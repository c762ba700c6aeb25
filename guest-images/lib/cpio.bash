# Writes cpio archives in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst) that depend on nothing
# but their contents: no times, no owners, no inode numbers of this machine, and no root needed.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

# cpio_begin ARCHIVE: starts an archive; the functions below add to it.
cpio_begin() {
    archive=$1 archive_inode=0
    : >"$archive"
}

# cpio_directory PATH
cpio_directory() {
    cpio_entry "$1" 040755 0
}

# cpio_file PATH MODE SOURCE
cpio_file() {
    local size
    size=$(stat -c %s "$3")
    cpio_entry "$1" "0100$2" "$size"
    cat "$3" >>"$archive"
    cpio_pad "$size"
}

# cpio_link PATH TARGET
cpio_link() {
    cpio_entry "$1" 0120777 "${#2}"
    printf '%s' "$2" >>"$archive"
    cpio_pad "${#2}"
}

# cpio_end: the trailer, padded to a multiple of four so that another archive can follow.
cpio_end() {
    cpio_entry 'TRAILER!!!' 0 0
}

# Header and name: magic, inode, mode, uid, gid, links, mtime, size, device and special device (major, minor), name size, check.
cpio_entry() {
    local path=$1 mode=$2 size=$3
    archive_inode=$((archive_inode + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
        "$archive_inode" "$((mode))" 0 0 1 0 "$size" 0 0 0 0 $((${#path} + 1)) 0 "$path" >>"$archive"
    cpio_pad $((110 + ${#path} + 1))
}

# cpio_pad LENGTH: zeros up to a multiple of four after LENGTH bytes that began at one.
cpio_pad() {
    head -c $(((4 - $1 % 4) % 4)) /dev/zero >>"$archive"
}
