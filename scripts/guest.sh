#!/usr/bin/env bash
# Runs a Python test of tests/guest inside a virtual machine, whose kernel has what this host's may lack. In there are this
# tree's tests, the greyhound binary, iproute2 and Python's standard library; each test makes namespaces of its own.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/interop/guest.sh
source "$ROOT/scripts/interop/guest.sh"

usage() {
    cat <<'END_OF_USAGE'
usage: scripts/guest.sh [--limit SECONDS] TEST [WORD…]      TEST: a file of tests/guest, as vlan.py

GREYHOUND names another binary than target/release/greyhound, INTEROP_CACHE another place for what is fetched,
INTEROP_KERNEL another kernel package than the newest of linux-image-6.12-cloud-amd64 and linux-image-cloud-amd64.
Ends with "N passed, N failed, N skipped". Exit status: 0 nothing failed, 1 something did, 77 nothing could be tried here.
END_OF_USAGE
}

# Seconds for what happens inside, once the machine is up.
LIMIT=${GUEST_LIMIT:-120}
if [[ ${1:-} == --limit ]]; then
    LIMIT=${2:?--limit needs seconds}
    shift 2
fi
[[ $# -gt 0 && $1 != -* ]] || { usage >&2 && exit 2; }
TEST=$1
shift
[[ -f $ROOT/tests/guest/$TEST ]] || die "no tests/guest/$TEST"

GREYHOUND=${GREYHOUND:-$ROOT/target/release/greyhound}
INTEROP_CACHE=${INTEROP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/greyhound-interop}
PYTHON=$(readlink -f /usr/bin/python3)
# Of Python's library, what no test imports.
UNUSED=(test idlelib tkinter lib2to3 ensurepip distutils pydoc_data turtledemo dist-packages site-packages config-* asyncio
    multiprocessing xml wsgiref unittest dbm curses sqlite3)
DIR=''
# shellcheck disable=SC2034 # used by build_initramfs
GUEST_MODULES+=(tun 8021q vrf dummy bonding sch_ingress cls_bpf act_mirred)
# shellcheck disable=SC2034 # used by build_initramfs
GUEST_PROGRAMS+=(tc)

cannot() {
    note "skipped: $TEST: $1"
    printf '0 passed, 0 failed, 1 skipped\n'
    exit 77
}

# What Debian's 12 release has beside its own kernel is newer: that one tells XDP programs VLAN tags (Linux 6.8).
newest_kernel() {
    local meta
    for meta in linux-image-6.12-cloud-amd64 linux-image-cloud-amd64; do
        [[ -z $(kernel_image "$meta") ]] || { echo "$meta" && return; }
    done
}

# The files "$@", and below directory $1 the libraries that they need.
libraries() {
    local into=$1 library
    shift
    ldd "$@" 2>/dev/null | grep -o '/[^ :]*' | grep '\.so' | sort -u | while read -r library; do
        [[ -e $into$library ]] || install -D "$library" "$into$library"
    done
}

# Into directory $1: the tests, the binary and Python, where each expects the others.
fill() {
    local into=$1 library=/usr/lib/${PYTHON##*/} name unused=()
    for name in "${UNUSED[@]}"; do unused+=("--exclude=./$name"); done
    mkdir -p "$into/usr/bin" "$into$library" "$into/greyhound/tests" "$into/greyhound/target/release"
    cp "$PYTHON" "$into/usr/bin/python3"
    tar -C "$library" "${unused[@]}" -cf - . | tar -C "$into$library" -xf -
    libraries "$into" "$PYTHON" "$library"/lib-dynload/*.so "$GREYHOUND"
    cp -r "$ROOT/tests/netns" "$ROOT/tests/guest" "$into/greyhound/tests/"
    cp "$GREYHOUND" "$into/greyhound/target/release/greyhound"
    # Debugging information is most of a debug build.
    strip -g "$into/greyhound/target/release/greyhound" 2>/dev/null || true
}

[[ -x $GREYHOUND ]] || die "no $GREYHOUND: cargo build --release"
trap 'rm -rf "$DIR"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
DIR=$(mktemp -d)
(install_packages iproute2 iputils-ping ethtool binutils) || cannot "packages that are missing cannot be installed"
mkdir -p "$INTEROP_CACHE"
exec 9>"$INTEROP_CACHE/lock"
flock 9
fetch_busybox
INTEROP_KERNEL=${INTEROP_KERNEL:-$(newest_kernel)}
fetch_guest
exec 9>&-
fill "$DIR/extra"
build_initramfs "$DIR/initramfs" "$DIR/extra"
PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "$ROOT/scripts/interop/inside.py" --dir "$DIR" --cache "$INTEROP_CACHE" \
    --limit "$LIMIT" "$TEST" "$@" &
wait "$!"
