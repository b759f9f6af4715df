#!/usr/bin/env bash
# Greyhound against the Linux kernel: every kind of tunnel, both directions, and a table of what came of it.
#
#   inner host ─ Greyhound ─ underlay router ─ the kernel's tunnel ─ its inner host
#
# The kernel is this host's own where it has the tunnel modules, otherwise Debian's, in a virtual machine.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/interop/guest.sh
source "$ROOT/scripts/interop/guest.sh"

usage() {
    cat <<'END_OF_USAGE'
usage: sudo scripts/interop.sh [--peer auto|host|guest] [--xdp auto|off|both] [--only TEXT] [--fetch]

  --peer   the kernel at the far end: this host's, or a virtual machine's (default: this host's where it can)
  --xdp    Greyhound's fast path on, off, or first one and then the other (default both)
  --only   only the tunnels whose line contains TEXT, as "gre key"
  --fetch  fetch what the virtual machine takes, and stop

GREYHOUND names another binary than target/release/greyhound, INTEROP_CACHE another place for what is fetched,
INTEROP_KERNEL another kernel package than linux-image-cloud-amd64.
Ends with "N passed, N failed, N skipped". Exit status: 0 nothing failed, 1 something did, 77 nothing could be tried here.
END_OF_USAGE
}

PEER=auto XDP=both ONLY='' FETCH=''
while [[ $# -gt 0 ]]; do
    case $1 in
        --peer) PEER=${2:?--peer needs a word} && shift ;;
        --xdp) XDP=${2:?--xdp needs a word} && shift ;;
        --only) ONLY=${2:?--only needs a text} && shift ;;
        --fetch) FETCH=yes ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done
[[ $PEER =~ ^(auto|host|guest)$ && $XDP =~ ^(auto|off|both)$ ]] || { usage >&2 && exit 2; }

GREYHOUND=${GREYHOUND:-$ROOT/target/release/greyhound}
INTEROP_CACHE=${INTEROP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/greyhound-interop}
# Seconds for all of it, what has to be fetched included: what is not done by then is skipped.
LIMIT=${INTEROP_LIMIT:-560}
NAME=greyhound-interop-$$
DIR=''

# Removes whatever runs in our namespaces (their names are ours alone), the namespaces, and the files.
# shellcheck disable=SC2317,SC2329 # called by the trap
finish() {
    local status=$? role signal pids
    trap '' INT TERM HUP
    trap - EXIT
    for signal in TERM KILL; do
        for _ in {1..50}; do
            pids=()
            for role in host router underlay peer far; do
                [[ -e /run/netns/$NAME-$role ]] || continue
                mapfile -t -O "${#pids[@]}" pids < <(ip netns pids "$NAME-$role")
            done
            [[ ${#pids[@]} -eq 0 ]] && break
            kill "-$signal" "${pids[@]}" 2>/dev/null || true
            sleep 0.1
        done
    done
    for role in host router underlay peer far; do
        [[ ! -e /run/netns/$NAME-$role ]] || ip netns del "$NAME-$role" || true
    done
    [[ -z $DIR ]] || rm -rf "$DIR"
    exit "$status"
}

# Ends it: each tunnel is skipped, by name.
cannot() {
    local row count=0
    while IFS= read -r row; do
        note "skipped: $row: $1"
        count=$((count + 1))
    done < <(/usr/bin/python3 "$ROOT/scripts/interop/table.py" "$XDP" "$ONLY")
    printf '0 passed, 0 failed, %d skipped\n' "$count"
    exit 77
}

# Whether this host's kernel has tunnels of its own: tried in a namespace that goes with the command.
host_has_tunnels() {
    local kind
    # With an address: without one it would be the fallback device's equal, which exists from the start.
    for kind in "gre remote 192.0.2.1" "ipip remote 192.0.2.1" "sit remote 192.0.2.1" "ip6gre remote 2001:db8::1"; do
        # shellcheck disable=SC2086 # words
        unshare --net ip link add interop type $kind 2>/dev/null || return 1
    done
}

# A veth pair between the namespaces of two roles. One queue each way: native XDP wants a device to have as many
# receive queues as its peer has transmit queues.
link() {
    local one=(numtxqueues 1 numrxqueues 1)
    ip -n "$NAME-$1" link add "$2" "${one[@]}" type veth peer name "$4" "${one[@]}" netns "$NAME-$3"
    ip -n "$NAME-$1" link set "$2" up
    ip -n "$NAME-$3" link set "$4" up
}

build_network() {
    local role roles=(host router underlay)
    [[ $PEER == guest ]] || roles+=(peer far)
    for role in "${roles[@]}"; do
        ip netns add "$NAME-$role"
        ip -n "$NAME-$role" link set lo up
    done
    link host eth0 router lan
    link router wan underlay toA
    if [[ $PEER == guest ]]; then
        ip -n "$NAME-underlay" tuntap add dev toB mode tap
        ip -n "$NAME-underlay" link set toB up
    else
        link underlay toB peer eth0
        # On a veth the kernel leaves checksums unfinished, GRE's among them. On a wire they are whole.
        ip netns exec "$NAME-peer" ethtool -K eth0 tx off >/dev/null
    fi
}

is_root || cannot "network namespaces need root"
if [[ $PEER == auto ]]; then
    PEER=guest
    ! host_has_tunnels || PEER=host
fi
[[ -n $FETCH || -x $GREYHOUND ]] || die "no $GREYHOUND: cargo build --release"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
DIR=$(mktemp -d)
(install_packages iproute2 iputils-ping ethtool python3-scapy) || cannot "packages that are missing cannot be installed"
mkdir -p "$INTEROP_CACHE"
# Two at once would unpack over each other.
exec 9>"$INTEROP_CACHE/lock"
flock 9
fetch_busybox
if [[ $PEER == guest || -n $FETCH ]]; then
    fetch_guest
    [[ -z $FETCH ]] || exit 0
fi
exec 9>&-
[[ $PEER != guest ]] || build_initramfs "$DIR/initramfs"
build_network
# From within the underlay: probes are sent and seen there, and the virtual machine's card is there.
PYTHONDONTWRITEBYTECODE=1 PATH=$DIR:$PATH NO_COLOR=${NO_COLOR:-} ip netns exec "$NAME-underlay" \
    /usr/bin/python3 "$ROOT/scripts/interop/run.py" --name "$NAME" --dir "$DIR" --greyhound "$GREYHOUND" \
    --cache "$INTEROP_CACHE" --peer "$PEER" --xdp "$XDP" --only "$ONLY" \
    --limit $((LIMIT - SECONDS)) &
# In the background, so that a signal is heard at once.
wait "$!"
