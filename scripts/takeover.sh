#!/usr/bin/env bash
# What does a restart lose? A numbered flow at a steady rate through a router in a network namespace, over planned restarts
# (`run --takeover`), crashes (`kill -9`, and a start) and reloads; and over nothing at all, which says what the machine loses.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: sudo scripts/takeover.sh [--rate N] [--times N] [--what LIST] [--yes]

  --rate N     packets per second (default 100000)
  --times N    restarts of each sort (default 3); 100 times as many reloads
  --what LIST  of nothing, takeover, crash, reload (default: all four)
  --yes        install Rust with rustup if it is missing

With GREYHOUND=PATH in the environment, that executable is measured.
END
}

YES='' ARGUMENTS=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --rate | --times | --what) ARGUMENTS+=("$1" "${2:?$1 needs a value}") && shift ;;
        --yes) YES=yes ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

is_root || die "network namespaces need root: sudo scripts/takeover.sh"
step "What it takes"
install_packages "${BUILD_PACKAGES[@]}" iproute2 iputils-ping python3 python3-scapy
find_rust "$YES"
(cd "$ROOT" && as_builder cargo build --release --locked --bins --example flow --target-dir target)
ok "a release build"
step "What it loses"
note "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
exec python3 "$ROOT/scripts/takeover.py" "${ARGUMENTS[@]}"
