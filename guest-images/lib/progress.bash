# What a long build shows: one line that is rewritten on a terminal, a line every half minute elsewhere, the log's end on failure.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

say() {
    printf 'guest-images: %s\n' "$*" >&2
}

# Runs a command with its output in a log, counting output lines as progress: step LABEL UNIT COMMAND...
# The unit is an extended regular expression; lines that match it are counted.
step() {
    local label=$1 unit=$2 start=$SECONDS
    shift 2
    local log=$cache/log/${label// /-}.log
    if "$@" 2>&1 | show_progress "$label" "$unit" "$log"; then
        finish_line "$label: done in $((SECONDS - start)) s"
        return
    fi
    finish_line "$label: FAILED after $((SECONDS - start)) s; the end of the log:"
    tail -n 25 "$log" >&2
    die "$label failed; the whole log is $log"
}

show_progress() {
    local label=$1 unit=$2 log=$3 line count=0 start=$SECONDS last=$SECONDS interval=30
    [[ ! -t 2 ]] || interval=1
    while IFS= read -r line; do
        printf '%s\n' "$line"
        [[ ! $line =~ $unit ]] || count=$((count + 1))
        if ((SECONDS - last >= interval)); then
            last=$SECONDS
            if [[ -t 2 ]]; then
                printf '\r\e[Kguest-images: %s: %d files, %d s' "$label" "$count" $((SECONDS - start)) >&2
            else
                say "$label: $count files, $((SECONDS - start)) s"
            fi
        fi
    done >"$log"
}

finish_line() {
    if [[ -t 2 ]]; then
        printf '\r\e[K' >&2
    fi
    say "$1"
}
