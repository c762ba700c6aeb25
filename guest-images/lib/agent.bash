# The agent by itself: one static file for any image (docs/agent.md).
# shellcheck shell=bash disable=SC2154 # $images, $cache and $work are those of guest-images/build

build_agent() {
    local key
    key=$(agent_key)
    if [[ -e $cache/agent-$key && $(readlink "$cache/agent") == "agent-$key" ]]; then
        return
    fi

    need agent cargo:cargo rustc:rustc cc:gcc flock:util-linux
    lock_cache
    [[ -e $cache/agent-$key ]] || make_agent "$key"
    point agent "$key"
    say "agent ready: $cache/agent/posada-agent"
}

agent_key() {
    {
        program_inputs agent
        agent_inputs
        declare -f make_agent
    } | key_of
}

make_agent() {
    local key=$1 result=$work/agent
    agent_program
    mkdir "$result"
    cp "$work/guest-agent" "$result/posada-agent"
    publish "$result" "agent-$key"
}
