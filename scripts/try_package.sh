#!/usr/bin/env bash
# Installs, runs, upgrades, removes and purges the Debian package in a clean root, and runs the tarball's program in one that
# has nothing else. Needs root.
#
# The root is made once (mmdebstrap) and kept in $GREYHOUND_ROOT_TAR. It runs in namespaces of its own: no device, address or
# file of this host is touched.
set -euo pipefail
# shellcheck source=scripts/package.sh
source "$(dirname "${BASH_SOURCE[0]}")/package.sh"

is_root || die "needs root: sudo scripts/try_package.sh"
cd "$ROOT"
install_packages mmdebstrap lintian debhelper dpkg-dev
SUITE=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
ROOT_TAR=${GREYHOUND_ROOT_TAR:-/var/cache/greyhound/root-$SUITE.tar}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

step "Packages"
scripts/deb.sh
scripts/deb.sh --revision 2
scripts/tarball.sh
FIRST=(target/deb/greyhound_"$VERSION"-1_*.deb)
SECOND=(target/deb/greyhound_"$VERSION"-2_*.deb)
lintian --allow-root --fail-on warning "${FIRST[0]}"
ok "lintian"

step "Clean root"
if [[ -z $(find "$ROOT_TAR" -mtime -30 2>/dev/null) ]]; then
    note "making it, once"
    mkdir -p "$(dirname "$ROOT_TAR")"
    mmdebstrap --quiet --variant=minbase --include=libelf1,zlib1g,iproute2,iputils-ping "$SUITE" "$ROOT_TAR.new"
    mv "$ROOT_TAR.new" "$ROOT_TAR"
fi
mkdir "$WORK/root"
tar -C "$WORK/root" -xf "$ROOT_TAR" --exclude './dev/*'
cp "${FIRST[0]}" "$WORK/root/first.deb"
cp "${SECOND[0]}" "$WORK/root/second.deb"
mkdir "$WORK/root/tarball"
tar -C "$WORK/root/tarball" --strip-components 1 -xf target/greyhound-"$VERSION"-"$(uname -m)".tar.xz
cp scripts/try_package_inside.sh "$WORK/root/inside.sh"
ok "$ROOT_TAR"

step "In it"
# shellcheck disable=SC2016 # expanded inside
unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc="$WORK/root/proc" bash -euc '
    mount -t sysfs sysfs "$1/sys"
    mount -t bpf bpf "$1/sys/fs/bpf"
    mount -t tmpfs tmpfs "$1/run"
    mount -t tmpfs tmpfs "$1/dev"
    mkdir "$1/dev/net"
    for device in null zero random urandom net/tun; do
        touch "$1/dev/$device"
        mount --bind "/dev/$device" "$1/dev/$device"
    done
    exec chroot "$1" /bin/bash /inside.sh' inside "$WORK/root"
