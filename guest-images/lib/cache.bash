# The cache of built images: keys made of inputs, one builder at a time, results that appear whole or not at all.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

die() {
    printf 'guest-images/build: %s\n' "$*" >&2
    exit 1
}

# Prints a key for its standard input, which describes everything that goes into a result.
key_of() {
    local sum
    sum=$(sha256sum)
    printf '%s\n' "${sum:0:16}"
}

# Prints the contents and names, relative to guest-images, of files and directories, for a key.
inputs() {
    (cd "$images" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
}

# Dies unless the commands (or files) are there, naming the Debian packages that bring them: need IMAGE command:package...
need() {
    local image=$1 pair missing=()
    shift
    for pair in "$@"; do
        if [[ $pair == /* ]]; then
            [[ -e ${pair%%:*} ]] || missing+=("${pair#*:}")
        else
            command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
        fi
    done
    ((${#missing[@]} == 0)) ||
        die "building \"$image\" needs these Debian packages: ${missing[*]}; install them with: apt-get install ${missing[*]}"
}

# Takes the cache for this process and gives it a directory $work for intermediate files, which goes away with the process.
lock_cache() {
    [[ -z ${work:-} ]] || return 0
    mkdir -p "$cache/log"
    exec {cache_lock}>"$cache/.lock"
    if ! flock --nonblock "$cache_lock"; then
        say "another build is under way in $cache; waiting for it"
        flock "$cache_lock"
    fi
    # Whoever left a work directory behind was killed: it does not hold the lock.
    rm -rf "$cache"/work.*
    work=$(mktemp -d "$cache/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
}

# Moves a finished directory into the cache: publish DIRECTORY NAME. Readers see all of it or nothing.
publish() {
    chmod 755 "$1"
    sync -f "$1"
    mv -T "$1" "$cache/$2"
}

# Makes NAME-KEY what NAME stands for, and drops all but the three newest of its kind: point NAME KEY.
point() {
    local name=$1 key=$2 old
    [[ $(readlink "$cache/$name" 2>/dev/null) != "$name-$key" ]] || return 0
    ln -s "$name-$key" "$work/$name"
    mv -T "$work/$name" "$cache/$name"
    touch "$cache/$name-$key"
    prune "$name"
}

# Keeps the three newest results NAME-*: a switch between branches does not rebuild, and the disk does not fill up.
prune() {
    local old
    # Names are ours, NAME-HEXDIGITS, so that ls can be read line by line.
    # shellcheck disable=SC2012
    ls -dt "$cache/$1"-* | tail -n +4 | while IFS= read -r old; do
        rm -rf "$old"
    done
}
