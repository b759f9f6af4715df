#!/usr/bin/env bash
# How fast is it? Greyhound beside a bare AF_XDP forwarder (the ceiling for any AF_XDP program), Open vSwitch, the kernel,
# and XDP within the kernel: the same packets through the same two devices, in turns. No arguments are needed.
#
# The source (CPU 0) sends more than anybody can take; who is measured (CPU 1) receives from one veth pair and sends out of
# another; the sink counts and drops what arrives at the far end. On veth the kernel's copy-mode transmit, which all AF_XDP
# programs pay, is most of the cost: the ratios say more than the rates.
#
#   sudo scripts/bench.sh                                   everything, about half an hour
#   sudo scripts/bench.sh --quick                           a few minutes
#   sudo scripts/bench.sh --source eth2 --in eth3 --out eth4 --sink eth5      over cables: eth2 to eth3, eth4 to eth5
#
# With GREYHOUND=PATH in the environment, that executable is measured. scripts/bench.sh --help lists all options.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Help, and mistakes in the options, before anything is installed or built.
for argument in "$@"; do
    case $argument in
        -h | --help) exec python3 "$ROOT/scripts/bench/bench.py" --help ;;
    esac
done
python3 "$ROOT/scripts/bench/bench.py" --dry "$@"
is_root || die "network namespaces need root: sudo scripts/bench.sh"
[[ $(nproc) -ge 2 ]] || die "two CPUs are needed: one for the source, one for who is measured"
step "What it takes"
install_packages "${BUILD_PACKAGES[@]}" iproute2 ethtool procps python3
if [[ -z ${GREYHOUND:-} || ! -x $ROOT/target/release/examples/blast ]]; then
    find_rust ""
    (cd "$ROOT" && as_builder cargo build --release --locked --examples --bins --target-dir target)
    ok "a release build, with its examples"
fi
step "source (CPU 0) -- in, who is measured (CPU 1), out -- sink"
note "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
exec python3 "$ROOT/scripts/bench/bench.py" "$@"
