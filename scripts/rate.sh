#!/usr/bin/env bash
# How fast is it? 64-byte packets over veth, one worker: Greyhound's two directions beside a bare AF_XDP forwarder.
#
# The source (CPU 0) sends more than anybody can take; the forwarder under test (CPU 1) receives from one veth pair
# and sends out of another; a counter drops what arrives at the far end. The kernel's copy-mode transmit, which all
# three pay, is most of the cost, so the ratios say more than the rates, and CPU time per packet more than either
# on a machine that others use too. The three take turns, and the table shows the median of all rounds.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: sudo scripts/rate.sh [--rounds N] [--seconds S] [--yes]

  --rounds N   measurements of each kind (default 5)
  --seconds S  length of each (default 3)
  --yes        install Rust with rustup if it is missing

With GREYHOUND=PATH in the environment, that executable is measured.
END
}

ROUNDS=5 SECONDS_EACH=3 YES=''
while [[ $# -gt 0 ]]; do
    case $1 in
        --rounds) ROUNDS=${2:?--rounds needs a number} && shift ;;
        --seconds) SECONDS_EACH=${2:?--seconds needs a number} && shift ;;
        --yes) YES=yes ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

NAME=greyhound-rate-$$
ROLES=(source router sink)
RELEASE=$ROOT/target/release
GREYHOUND=${GREYHOUND:-$RELEASE/greyhound}
HELPER=$ROOT/scripts/rate_table.py
DIR=''
PIDS=()

ns() { printf '%s-%s' "$NAME" "$1"; }
in_ns() {
    local role=$1
    shift
    ip netns exec "$(ns "$role")" "$@"
}
stats() { "$GREYHOUND" stats --json --socket "$DIR/control.sock"; }

# Ends the processes that are still there, by the numbers that were noted when they were started.
stop_all() {
    local pid
    for pid in "${PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in "${PIDS[@]}"; do
        for _ in {1..100}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    PIDS=()
}

# shellcheck disable=SC2317,SC2329 # called by the trap
finish() {
    local status=$? role
    trap '' INT TERM HUP
    trap - EXIT
    stop_all
    for role in "${ROLES[@]}"; do ip netns del "$(ns "$role")" 2>/dev/null || true; done
    [[ -z $DIR ]] || rm -rf "$DIR"
    exit "$status"
}

# A veth pair from "$1" $2 to "$3" $4, one queue each way, as native XDP on a veth wants it.
link() {
    local one=(numtxqueues 1 numrxqueues 1)
    ip -n "$(ns "$1")" link add "$2" "${one[@]}" type veth peer name "$4" "${one[@]}" netns "$(ns "$3")"
    ip -n "$(ns "$1")" link set "$2" up
    ip -n "$(ns "$3")" link set "$4" up
}

mac_of() { in_ns "$1" cat "/sys/class/net/$2/address"; }

# Both kinds of measurement use the same two devices of the router: packets come in by "in" and leave by "out".
build_network() {
    local role
    for role in "${ROLES[@]}"; do
        ip netns add "$(ns "$role")"
        # Nothing but the measured packets: no neighbour discovery of IPv6.
        in_ns "$role" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
    done
    in_ns router sysctl -qw net.ipv4.ip_forward=1
    link source eth0 router in
    link router out sink eth0
    ip -n "$(ns router)" address add 198.51.100.1/24 dev in
    ip -n "$(ns router)" address add 192.0.2.1/24 dev out
    ip -n "$(ns router)" address add 10.3.0.1/24 dev out
    for address in 192.0.2.2 10.3.0.2; do
        ip -n "$(ns router)" neighbour add "$address" lladdr "$(mac_of sink eth0)" dev out nud permanent
    done
    ip -n "$(ns router)" neighbour add 198.51.100.2 lladdr "$(mac_of source eth0)" dev in nud permanent
}

# Encapsulation: inner packets come in by "in", the tunnel leaves by "out". Decapsulation: the other way round.
configure() {
    local kind=$1 underlay=$2 overlay=$3 local=$4 remote=$5
    cat >"$DIR/$kind.toml" <<END
[router]
underlay = ["$underlay"]
overlay = ["$overlay"]
workers = [1]
control = "$DIR/control.sock"

[[tunnel]]
name = "gre1"
mode = "gre"
local = "$local"
remote = "$remote"
routes = ["10.2.0.0/24"]
END
}

# Runs "$2…" in namespace $1 in the background; its process number is then in $STARTED, what it prints in $DIR/$OUTPUT.
start() {
    local role=$1
    shift
    ip netns exec "$(ns "$role")" "$@" >"$DIR/$OUTPUT" 2>&1 &
    STARTED=$!
    PIDS+=("$STARTED")
}

start_router() {
    rm -f "$DIR/control.sock"
    OUTPUT=forwarder start router "$GREYHOUND" run --config "$DIR/$1.toml"
    FORWARDER=$STARTED
    for _ in {1..100}; do
        kill -0 "$FORWARDER" 2>/dev/null || break
        if stats >"$DIR/stats" 2>/dev/null && "$HELPER" ready "$DIR/stats"; then return; fi
        sleep 0.1
    done
    die "the router did not come up: $(tail -n 3 "$DIR/forwarder")"
}

# The bare forwarder attaches its program last.
start_bare() {
    OUTPUT=forwarder start router "$RELEASE/examples/bare_forward" in out --cpu 1 --seconds "$((SECONDS_EACH + 30))" \
        --from-mac "$(mac_of router out)" --to-mac "$(mac_of sink eth0)"
    FORWARDER=$STARTED
    for _ in {1..100}; do
        kill -0 "$FORWARDER" 2>/dev/null || break
        if in_ns router ip link show in | grep -q 'prog/xdp'; then return; fi
        sleep 0.1
    done
    die "the bare forwarder did not come up: $(tail -n 3 "$DIR/forwarder")"
}

# One measurement of kind $1: bare, encapsulate or decapsulate. Its facts go to $DIR/results, one JSON object a line.
measure() {
    local kind=$1 packet=(--src 10.1.0.2 --dst 10.2.0.2) counter sources=() n
    if [[ $kind == bare ]]; then start_bare; else start_router "$kind"; fi
    [[ $kind != decapsulate ]] || packet=(--gre "198.51.100.2,198.51.100.1" --src 10.2.0.2 --dst 10.3.0.2)
    OUTPUT=counter start sink taskset -c 0 "$RELEASE/examples/count" eth0 --warmup 2 --seconds "$SECONDS_EACH" --pid "$FORWARDER"
    counter=$STARTED
    # Two, because each waits for the kernel's grace periods between its calls; the other fills the gaps.
    for n in 1 2; do
        OUTPUT=source$n start source "$RELEASE/examples/blast" eth0 --cpu 0 --seconds "$((SECONDS_EACH + 4))" --size 64 \
            --to-mac "$(mac_of router in)" "${packet[@]}"
        sources+=("$STARTED")
    done
    wait "$counter" || die "the counter: $(tail -n 3 "$DIR/counter")"
    ip -n "$(ns router)" -json link show >"$DIR/links"
    [[ $kind == bare ]] || stats >"$DIR/stats"
    grep VmRSS "/proc/$FORWARDER/status" >"$DIR/memory"
    wait "${sources[@]}" || die "the source: $(tail -n 3 "$DIR/source2")"
    stop_all
    "$HELPER" judge "$kind" "$DIR" >>"$DIR/results"
}

# What a router that nobody uses takes of the CPU.
measure_idle() {
    start_router decapsulate
    sleep 2
    "$HELPER" idle "$FORWARDER" 5 >>"$DIR/results"
    stop_all
}

is_root || die "network namespaces need root: sudo scripts/rate.sh"
[[ $(nproc) -ge 2 ]] || die "two CPUs are needed: one for the source, one for the forwarder"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

step "What it takes"
install_packages "${BUILD_PACKAGES[@]}" iproute2 procps python3 util-linux
find_rust "$YES"
(cd "$ROOT" && as_builder cargo build --release --locked --examples --bins --target-dir target)
ok "a release build, with its examples"

step "source (CPU 0) -- in, forwarder (CPU 1), out -- sink; $ROUNDS rounds of $SECONDS_EACH s each"
DIR=$(mktemp -d "/tmp/$NAME.XXXXXX")
build_network
configure encapsulate out in 192.0.2.1 192.0.2.2
configure decapsulate in out 198.51.100.1 198.51.100.2
note "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
measure_idle
for ((round = 1; round <= ROUNDS; round++)); do
    for kind in bare encapsulate decapsulate; do measure "$kind"; done
    note "round $round of $ROUNDS; load $(cut -d' ' -f1 /proc/loadavg)"
done

step "64-byte packets, one veth pair in and one out, one worker"
"$HELPER" table "$DIR/results"
