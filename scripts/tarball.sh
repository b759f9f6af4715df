#!/usr/bin/env bash
# Builds target/greyhound-VERSION-ARCH.tar.xz: one program that needs no library of the host's, its pages and its unit.
set -euo pipefail
# shellcheck source=scripts/package.sh
source "$(dirname "${BASH_SOURCE[0]}")/package.sh"

case ${1:-} in
    '') ;;
    -h | --help) echo "usage: scripts/tarball.sh" && exit ;;
    *) echo "usage: scripts/tarball.sh" >&2 && exit 2 ;;
esac

cd "$ROOT"
install_packages "${BUILD_PACKAGES[@]}" xz-utils
find_rust ''
step "Program and pages"
# A directory of archives alone: the crates ask for libelf and libz by name, and a linker takes the first that it finds.
STATIC=$ROOT/target/static
as_builder mkdir -p "$STATIC"
for archive in libelf.a libz.a libzstd.a; do
    path=$(gcc -print-file-name="$archive")
    [[ $path != /* ]] || as_builder ln -sf "$path" "$STATIC/"
done
build_program target/release/greyhound cargo rustc --release --locked --target-dir target --bin greyhound -- \
    -C target-feature=+crt-static -L "native=$STATIC"
! readelf --program-headers "$PROGRAM" | grep -q INTERP || die "$PROGRAM still asks for a dynamic linker"
build_pages

step "Tarball"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
NAME=greyhound-$VERSION-$(uname -m)
TREE=$WORK/$NAME
install -D "$PROGRAM" "$TREE/sbin/greyhound"
strip "$TREE/sbin/greyhound"
install -D -m 644 "$PAGES/greyhound.8" "$TREE/share/man/man8/greyhound.8"
install -D -m 644 "$PAGES/greyhound.toml.5" "$TREE/share/man/man5/greyhound.toml.5"
install -D -m 644 "$PAGES/greyhound.bash" "$TREE/share/bash-completion/completions/greyhound"
install -D -m 644 "$PAGES/_greyhound" "$TREE/share/zsh/site-functions/_greyhound"
install -D -m 644 "$PAGES/greyhound.fish" "$TREE/share/fish/vendor_completions.d/greyhound.fish"
install -D -m 644 packaging/greyhound.toml "$TREE/share/greyhound/greyhound.toml"
mkdir -p "$TREE/lib/systemd/system" "$TREE/share/doc/greyhound"
sed 's|/usr/sbin/|/usr/local/sbin/|' packaging/greyhound.service >"$TREE/lib/systemd/system/greyhound.service"
install -m 644 README.md docs/*.md LICENSE-* bpf/LICENSE.* "$TREE/share/doc/greyhound/"
tar -C "$WORK" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX -cJf "target/$NAME.tar.xz" "$NAME"
ok "target/$NAME.tar.xz: unpack it into /usr/local with --strip-components 1"
