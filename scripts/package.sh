# shellcheck shell=bash
# What deb.sh and tarball.sh share: the version, its date, the program and its pages. Sourced, never run.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# shellcheck disable=SC2034 # used by the scripts that source this file
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
# The same sources make the same package: its files have the commit's time, or that of the sources' list of crates.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$ROOT" log -1 --format=%ct 2>/dev/null || stat -c %Y "$ROOT/Cargo.lock")}
export SOURCE_DATE_EPOCH
PROGRAM=''
# shellcheck disable=SC2034 # used by the scripts that source this file
PAGES=$ROOT/target/pages

# The program's path below target/, and the command that builds it.
build_program() {
    PROGRAM=$ROOT/$1
    as_builder "${@:2}" 2>&1 | quote
    [[ -x $PROGRAM ]] || die "no $PROGRAM"
    ok "$("$PROGRAM" --version)"
}

# Manual pages and completions, by a debug build, which the tests use too.
build_pages() {
    as_builder cargo run --quiet --locked --target-dir target --example pages -- \
        "$PAGES" "$(date -u -d "@$SOURCE_DATE_EPOCH" +%F)" 2>&1 | quote
    ok "manual pages and completions"
}
