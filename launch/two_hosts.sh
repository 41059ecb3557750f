#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces with a cable between them, a launcher in each.
#
#   export LAUNCH_OPTIONS='--mixed_precision no'
#   launch/two_hosts.sh launch/ddp.yaml train configs/demo.yaml steps=40
#
# First the accelerate file, then the trainer's own arguments. Needs root, and ip (iproute2).
# From the environment: PROCESSES (on each host; 1), LAUNCH_OPTIONS (more of accelerate's, such as
# --mixed_precision no), TWO_HOSTS (the namespaces' name; the hosts are NAME-0 and NAME-1, so that
# `ip -n NAME-1 link set eth0 down` cuts the cable), PYTHON.
set -euo pipefail

usage="usage: $0 ACCELERATE_FILE COMMAND [ARGUMENT ...]"
file=${1:?$usage}
shift
: "${1:?$usage}"
[ -f "$file" ] || { echo "$file is not there; name a file of launch/" >&2; exit 2; }
name=${TWO_HOSTS:-two-hosts-$$}
processes=${PROCESSES:-1}
python=${PYTHON:-python}
[ "$(id -u)" = 0 ] || { echo "namespaces need root: run it with sudo" >&2; exit 2; }

launchers=()
cleanup() {
    trap - EXIT
    for launcher in "${launchers[@]}"; do
        kill "$launcher" 2>/dev/null || true
    done
    wait
    for host in 0 1; do
        # What a launcher left behind when it was killed itself.
        ip netns pids "$name-$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns delete "$name-$host" 2>/dev/null || true
    done
}
tell() { # hand a signal on; the launchers hand it to their processes
    kill -s "$1" "${launchers[@]}" 2>/dev/null || true
}
trap cleanup EXIT
trap 'tell TERM' INT TERM
trap 'tell USR1' USR1
# Else SIGUSR1 kills a launcher, and its processes get 30 s to save.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-120}

for host in 0 1; do
    ip netns add "$name-$host"
    ip -n "$name-$host" link set lo up
done
ip link add eth0 netns "$name-0" type veth peer name eth0 netns "$name-1"
for host in 0 1; do
    ip -n "$name-$host" address add "10.77.0.$((host + 1))/24" dev eth0
    ip -n "$name-$host" link set eth0 up
done

export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0
for host in 0 1; do
    # shellcheck disable=SC2086  # several options
    ip netns exec "$name-$host" "$python" -m accelerate.commands.launch --config_file "$file" \
        --num_machines 2 --machine_rank "$host" --num_processes $((2 * processes)) \
        --main_process_ip 10.77.0.1 --main_process_port 29500 ${LAUNCH_OPTIONS:-} \
        -m trainer "$@" > >(sed -u "s/^/[host $host] /") 2>&1 &
    launchers+=($!)
done

code=0
for launcher in "${launchers[@]}"; do
    # A trapped signal ends a wait, not the launcher.
    while :; do
        ended=0
        wait "$launcher" || ended=$?
        kill -0 "$launcher" 2>/dev/null || break
    done
    [ "$ended" = 0 ] || code=$ended
done
exit "$code"
