#!/usr/bin/env bash
# Builds the Debian package: target/deb/greyhound_VERSION-REVISION_ARCH.deb, and one with its debugging symbols.
set -euo pipefail
# shellcheck source=scripts/package.sh
source "$(dirname "${BASH_SOURCE[0]}")/package.sh"

REVISION=1
case ${1:-} in
    '') ;;
    --revision) REVISION=${2:?--revision needs a number} ;;
    -h | --help) echo "usage: scripts/deb.sh [--revision N]     N: for another package of the same version (1)" && exit ;;
    *) echo "usage: scripts/deb.sh [--revision N]" >&2 && exit 2 ;;
esac

cd "$ROOT"
install_packages "${BUILD_PACKAGES[@]}" debhelper dpkg-dev
find_rust ''
step "Program and pages"
build_program target/release/greyhound cargo build --release --locked --target-dir target
build_pages

step "Package"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
TREE=$WORK/greyhound-$VERSION
mkdir "$TREE"
cp -r packaging/debian "$TREE/debian"
cp packaging/greyhound.service "$TREE/debian/"
cp "$PROGRAM" packaging/greyhound.toml "$PAGES"/* README.md "$TREE/"
cp -r docs "$TREE/"
mkdir "$TREE/bash"
mv "$TREE/greyhound.bash" "$TREE/bash/greyhound" # the name that bash-completion looks for
printf 'greyhound (%s-%s) unstable; urgency=medium\n\n  * %s.\n\n -- The Greyhound authors <greyhound@packages.invalid>  %s\n' \
    "$VERSION" "$REVISION" "$("$PROGRAM" --version | sed 's/.*(\([^,]*\),.*/Built from \1/')" "$(date -uR -d "@$SOURCE_DATE_EPOCH")" >"$TREE/debian/changelog"
(cd "$TREE" && dpkg-buildpackage -b -us -uc -d) >"$WORK/log" 2>&1 || {
    quote <"$WORK/log"
    die "the package was not built"
}
mkdir -p target/deb
cp "$WORK"/*.deb target/deb/
for package in "$WORK"/*.deb; do ok "target/deb/$(basename "$package")"; done
