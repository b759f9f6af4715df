#!/usr/bin/env bash
# Two Greyhounds, three GRE tunnels and a host at either end, in network namespaces of their own.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: sudo scripts/demo.sh [--keep] [--yes] [--bytes N]
       sudo scripts/demo.sh --clean

  --keep     leave everything running at the end, and say what to try
  --clean    remove what --keep left
  --yes      install Rust with rustup if it is missing
  --bytes N  bytes of each TCP run (default 500000000)
END
}

KEEP='' YES='' CLEAN='' BYTES=500000000
while [[ $# -gt 0 ]]; do
    case $1 in
        --keep) KEEP=yes ;;
        --clean) CLEAN=yes ;;
        --yes) YES=yes ;;
        --bytes) BYTES=${2:?--bytes needs a number} && shift ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

KEPT=/run/greyhound-demo
NAME=greyhound-demo-$$
ROLES=(hostA routerA underlay routerB hostB)
TUNNELS=("gre1=plain" "gre2=key" "gre3=key csum seq")
GREYHOUND=$ROOT/target/release/greyhound
DIR=''
FAILED=''

ns() { printf '%s-%s' "$NAME" "$1"; }
in_ns() {
    local role=$1
    shift
    ip netns exec "$(ns "$role")" "$@"
}
socket_of() { printf '%s/%s.sock' "$DIR" "$1"; }
stats() { "$GREYHOUND" stats --json --socket "$(socket_of "$1")"; }

# Removes the namespaces called $1-…, whatever runs in them, and the directory $2.
remove() {
    local name=$1 dir=$2 role pids
    for role in "${ROLES[@]}"; do
        [[ -e /run/netns/$name-$role ]] || continue
        read -ra pids < <(ip netns pids "$name-$role" | tr '\n' ' ') || true
        [[ ${#pids[@]} -eq 0 ]] || kill -TERM "${pids[@]}" 2>/dev/null || true
    done
    for role in "${ROLES[@]}"; do
        [[ -e /run/netns/$name-$role ]] || continue
        for _ in {1..50}; do
            read -ra pids < <(ip netns pids "$name-$role" | tr '\n' ' ') || true
            [[ ${#pids[@]} -eq 0 ]] && break
            sleep 0.1
        done
        [[ ${#pids[@]} -eq 0 ]] || kill -KILL "${pids[@]}" 2>/dev/null || true
        ip netns del "$name-$role" || true
    done
    rm -rf "$dir"
}

# shellcheck disable=SC2317,SC2329 # called by the trap
finish() {
    local status=$?
    trap '' INT TERM HUP
    trap - EXIT
    # A signal may come while a step's output goes into a file.
    exec >&3
    if [[ -n $DIR ]]; then
        if [[ $status -ne 0 && $status -lt 128 ]]; then
            for side in A B; do
                [[ -s $DIR/$side.log ]] && note "router $side's last words:" && tail -n 5 "$DIR/$side.log" | quote
            done
        fi
        if [[ $status -ne 0 || -z $KEEP ]]; then
            remove "$NAME" "$DIR"
            note "removed: namespaces, routers, files; nothing is left"
        fi
    fi
    exit "$status"
}

clean() {
    local dir any=''
    for dir in "$KEPT"/*; do
        [[ -d $dir ]] || continue
        any=yes
        remove "$(basename "$dir")" "$dir"
        note "removed $(basename "$dir")"
    done
    rmdir "$KEPT" 2>/dev/null || true
    [[ -n $any ]] || note "nothing was kept"
}

# A veth pair between two namespaces. One queue each way: native XDP wants a device to have as many receive
# queues as its peer has transmit queues.
link() {
    local one=(numtxqueues 1 numrxqueues 1)
    ip -n "$(ns "$1")" link add "$2" "${one[@]}" type veth peer name "$4" "${one[@]}" netns "$(ns "$3")"
    ip -n "$(ns "$1")" link set "$2" up
    ip -n "$(ns "$3")" link set "$4" up
}

address() {
    local role=$1 device=$2 a
    shift 2
    for a in "$@"; do
        # nodad: an address that is still being checked for duplicates cannot be used.
        if [[ $a == *:* ]]; then
            ip -n "$(ns "$role")" address add "$a" dev "$device" nodad
        else
            ip -n "$(ns "$role")" address add "$a" dev "$device"
        fi
    done
}

build_network() {
    local role side n
    for role in "${ROLES[@]}"; do
        ip netns add "$(ns "$role")"
        ip -n "$(ns "$role")" link set lo up
    done
    for role in routerA underlay routerB; do
        in_ns "$role" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
    done
    link hostA eth0 routerA lan
    link routerA wan underlay toA
    link underlay toB routerB wan
    link routerB lan hostB eth0
    address routerA wan 192.0.2.1/30
    address underlay toA 192.0.2.2/30
    address underlay toB 198.51.100.2/30
    address routerB wan 198.51.100.1/30
    ip -n "$(ns routerA)" route add 198.51.100.0/30 via 192.0.2.2
    ip -n "$(ns routerB)" route add 192.0.2.0/30 via 198.51.100.2
    for n in 1 2 3; do
        address hostA eth0 "10.1.$n.2/24" "fd00:1:$n::2/64"
        address routerA lan "10.1.$n.1/24" "fd00:1:$n::1/64"
        address hostB eth0 "10.2.$n.2/24" "fd00:2:$n::2/64"
        address routerB lan "10.2.$n.1/24" "fd00:2:$n::1/64"
    done
    for side in A B; do
        n=1 && [[ $side == B ]] && n=2
        ip -n "$(ns "host$side")" route add default via "10.$n.1.1"
        ip -n "$(ns "host$side")" -6 route add default via "fd00:$n:1::1"
    done
}

# The configuration of router $1, whose side is number $2 and whose address is $3, towards side $4 at $5.
configure() {
    local side=$1 mine=$2 local=$3 other=$4 remote=$5 n options
    cat >"$DIR/$side.toml" <<END
[router]
underlay = ["wan"]
overlay = ["lan"]
control = "$(socket_of "$side")"
END
    for n in 1 2 3; do
        case $n in
            1) options='' ;;
            2) options='key = 42' ;;
            3) options=$'key = 43\ncsum = true\nseq = true' ;;
        esac
        cat >>"$DIR/$side.toml" <<END

[[tunnel]]
name = "gre$n"
mode = "gre"
local = "$local"
remote = "$remote"
ttl = 64
$options
address = ["172.16.$n.$mine/30", "fd00:172:$n::$mine/64"]
routes = ["10.$other.$n.0/24", "fd00:$other:$n::/64"]
END
    done
}

# Starts router $1 and waits until it says that its tunnels are up.
start_router() {
    local side=$1 pid
    ip netns exec "$(ns "router$side")" "$GREYHOUND" run --config "$DIR/$side.toml" >"$DIR/$side.log" 2>&1 3>&- </dev/null &
    pid=$!
    for _ in {1..200}; do
        kill -0 "$pid" 2>/dev/null || break
        if stats "$side" >"$DIR/$side.json" 2>/dev/null && "$ROOT/scripts/demo_stats.py" ready "$DIR/$side.json"; then
            ok "router $side runs (pid $pid)"
            return
        fi
        sleep 0.1
    done
    die "router $side did not come up: $(tail -n 3 "$DIR/$side.log")"
}

# Runs a step of the show: its words, then the command. What the command prints is shown; its failure is remembered.
show() {
    local words=$1
    shift
    if "$@" >"$DIR/out" 2>&1; then
        quote <"$DIR/out"
        ok "$words"
    else
        quote <"$DIR/out"
        bad "$words"
        FAILED=yes
    fi
}

# ping, all of whose echoes come back, showing what matters of it.
ping_all() {
    local out
    out=$(in_ns hostA ping -n -c 5 -i 0.2 -W 2 "$@") || { echo "$out" && return 1; }
    grep -E 'bytes from' <<<"$out" | head -n 2
    grep -E 'packets transmitted' <<<"$out"
    grep -q ' 0% packet loss' <<<"$out"
}

trace() {
    local out hop
    out=$(in_ns hostA traceroute -n -q 1 -w 3 "$1") || { echo "$out" && return 1; }
    echo "$out"
    shift
    for hop in "$@"; do
        grep -qF " $hop " <<<"$out" || { echo "$hop does not show" && return 1; }
    done
}

# One TCP run through tunnel number $1; "back" has host B send. The client is always the receiver (--reverse): it counts
# every byte until the last, while a server stops counting when the client has sent its last.
transfer() {
    local n=$1 way=$2 side=B from=2 to=1 json
    [[ $way == back ]] && side=A from=1 to=2
    json=$DIR/gre$n.$way.json
    timeout 120 ip netns exec "$(ns "host$side")" iperf3 --client "10.$to.$n.2" --bind "10.$from.$n.2" --bytes "$BYTES" \
        --reverse --json >"$json" || true
    "$ROOT/scripts/demo_stats.py" tcp "$json" "$BYTES"
}

# An iperf3 server on host $1.
serve_tcp() {
    in_ns "$1" iperf3 --server >"$DIR/iperf3.$1.log" 2>&1 3>&- </dev/null &
    for _ in {1..50}; do
        [[ -n $(in_ns "$1" ss -Hltn 'sport = :5201') ]] && return
        sleep 0.1
    done
    die "iperf3 does not listen: $(tail -n 3 "$DIR/iperf3.$1.log")"
}

run_show() {
    local n entry way
    step "ping from host A to host B, through the plain tunnel"
    show "IPv4" ping_all 10.2.1.2
    show "IPv6" ping_all fd00:2:1::2
    show "through gre2 (key)" ping_all -I 10.1.2.2 10.2.2.2
    show "through gre3 (key csum seq)" ping_all -I 10.1.3.2 10.2.3.2
    step "a ping of 4000 bytes: fragments within the tunnel"
    show "4000 bytes" ping_all -M dont -s 4000 10.2.1.2
    step "traceroute: both routers answer, the underlay does not show"
    show "10.1.1.1, 172.16.1.2, 10.2.1.2" trace 10.2.1.2 10.1.1.1 172.16.1.2 10.2.1.2
    step "TCP with iperf3, $((BYTES / 1000000)) MB each way through each tunnel; the hosts' offloads stay as they are"
    serve_tcp hostA
    serve_tcp hostB
    for side in A B; do stats "$side" >"$DIR/$side.before.json"; done
    for entry in "${TUNNELS[@]}"; do
        n=${entry:3:1}
        for way in forth back; do
            show "gre$n (${entry#*=}), $([[ $way == forth ]] && echo "A to B" || echo "B to A")" transfer "$n" "$way"
        done
    done
    for side in A B; do stats "$side" >"$DIR/$side.after.json"; done
}

what_to_try() {
    cat <<END

Left running. Some things to try, as root:

    $GREYHOUND tunnel show --socket $(socket_of A)
    $GREYHOUND stats --socket $(socket_of A)
    ip -n $(ns routerA) -s link show gre1
    ip -n $(ns routerA) route
    ip netns exec $(ns hostA) ping 10.2.1.2
    ip netns exec $(ns underlay) tcpdump -ni toA ip proto 47

and to remove it all:

    sudo scripts/demo.sh --clean
END
}

is_root || die "network namespaces need root: sudo scripts/demo.sh"
if [[ -n $CLEAN ]]; then
    clean
    exit
fi
exec 3>&1
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

step "What it takes"
install_packages "${BUILD_PACKAGES[@]}" iproute2 iputils-ping traceroute iperf3 procps python3
find_rust "$YES"
ok "packages and Rust"

step "Building a release (a minute or so the first time)"
(cd "$ROOT" && as_builder cargo build --release --locked --target-dir target)
ok "${GREYHOUND#"$ROOT/"}"

step "host A -- router A -- underlay -- router B -- host B"
if [[ -n $KEEP ]]; then
    DIR=$KEPT/$NAME
    mkdir -p "$DIR"
else
    DIR=$(mktemp -d "/tmp/$NAME.XXXXXX")
fi
build_network
configure A 1 192.0.2.1 2 198.51.100.1
configure B 2 198.51.100.1 1 192.0.2.1
ok "five namespaces, called $NAME-…"
start_router A
start_router B

run_show

step "The sum of it"
"$ROOT/scripts/demo_stats.py" table "$DIR" "${TUNNELS[@]}" || {
    bad "the fast path carried less than 99 % of the TCP packets"
    FAILED=yes
}
[[ -z $FAILED ]] || die "not everything went through"
ok "everything went through, at least 99 % of the TCP packets on the fast path"
[[ -z $KEEP ]] || what_to_try
