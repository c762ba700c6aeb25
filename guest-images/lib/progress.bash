# What a long build shows: one line that is rewritten on a terminal, a line every half minute elsewhere, the log's end on failure.
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

say() {
    printf 'guest-images: %s\n' "$*" >&2
}

# Runs a command with its output in a log: step LABEL FILE COMMAND...
# FILE is an extended regular expression for output lines that stand for one more file done, or empty: then only time is shown.
step() {
    local label=$1 file=$2 start=$SECONDS
    shift 2
    local log=$cache/log/${label// /-}.log
    if "$@" 2>&1 | show_progress "$label" "$file" >"$log"; then
        finish_line "$label: done in $((SECONDS - start)) s"
        return
    fi
    finish_line "$label: FAILED after $((SECONDS - start)) s; the end of the log:"
    tail -n 25 "$log" >&2
    die "$label failed; the whole log is $log"
}

# Passes its input on, and shows once a second on a terminal, every half minute elsewhere, how far it has come.
show_progress() {
    local label=$1 file=$2 line files=0 count='' start=$SECONDS last=$SECONDS interval=30
    [[ ! -t 2 ]] || interval=1
    while IFS= read -r line; do
        printf '%s\n' "$line"
        if [[ -n $file && $line =~ $file ]]; then
            files=$((files + 1))
            count="$files files, "
        fi
        if ((SECONDS - last >= interval)); then
            last=$SECONDS
            if [[ -t 2 ]]; then
                printf '\r\e[Kguest-images: %s: %s%d s' "$label" "$count" $((SECONDS - start)) >&2
            else
                say "$label: $count$((SECONDS - start)) s"
            fi
        fi
    done
}

finish_line() {
    if [[ -t 2 ]]; then
        printf '\r\e[K' >&2
    fi
    say "$1"
}
