#!/usr/bin/env bash
# What do many tunnels cost? Starts a router with 10,000 tunnels and 100,000 routes in a network namespace, and prints what
# each step takes: the time, and in brackets the processor time of the router and whoever asks it, which says more on a
# machine that others use too.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: sudo scripts/scale.sh [--tunnels N] [--routes N] [--ipv6 on|none|off] [--yes]

  --tunnels N  tunnels (default 10000)
  --routes N   routes through them (default 100000)
  --ipv6 HOW   the tunnels' devices have IPv6 and a link-local address (on), IPv6 alone (none:
               net.ipv6.conf.default.addr_gen_mode=1), or neither (off, the default: disable_ipv6=1).
               The kernel walks its IPv6 routes for every device that has some
  --yes        install Rust with rustup if it is missing

With GREYHOUND=PATH in the environment, that executable is measured.
END
}

YES='' ARGUMENTS=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --tunnels | --routes | --ipv6) ARGUMENTS+=("$1" "${2:?$1 needs a value}") && shift ;;
        --yes) YES=yes ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done

is_root || die "network namespaces need root: sudo scripts/scale.sh"
step "What it takes"
install_packages "${BUILD_PACKAGES[@]}" iproute2 python3
if [[ -z ${GREYHOUND:-} ]]; then
    find_rust "$YES"
    (cd "$ROOT" && as_builder cargo build --release --locked --bins --target-dir target)
    ok "a release build"
fi
step "What it costs"
note "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
exec python3 "$ROOT/scripts/scale.py" "${ARGUMENTS[@]}"
