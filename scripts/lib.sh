# shellcheck shell=bash
# What demo.sh and test.sh share: messages, packages, and the caller's Rust. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# What it takes to build: the compilers, and what libbpf and libxdp are built from.
# shellcheck disable=SC2034 # used by the scripts that source this file
BUILD_PACKAGES=(gcc libc6-dev make m4 pkg-config clang llvm libelf-dev zlib1g-dev libpcap-dev)
RUSTUP="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' GREEN='' RED='' PLAIN=''
fi

step() { printf '\n%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
ok() { printf '    %sok%s    %s\n' "$GREEN" "$PLAIN" "$*"; }
bad() { printf '    %sFAIL%s  %s\n' "$RED" "$PLAIN" "$*"; }
die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}
# Everything on stdin, indented and dimmed: somebody else's words.
quote() { while IFS= read -r line; do printf '    %s%s%s\n' "$DIM" "$line" "$PLAIN"; done; }

is_root() { [[ $EUID -eq 0 ]]; }

apt_updated=''
apt_update() {
    [[ -n $apt_updated ]] && return
    note "refreshing the package lists"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    apt_updated=yes
}

# The packages among "$@" that are not installed.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf '%s\n' "$package"
    done
}

# Installs what is missing of "$@"; fails when it cannot.
install_packages() {
    local missing
    command -v dpkg-query >/dev/null || {
        note "not a Debian or Ubuntu: expecting to find ${*}"
        return
    }
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -eq 0 ]] && return
    is_root || die "missing packages; install them with: sudo apt-get install ${missing[*]}"
    apt_update
    note "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null 2>&1 | quote
}

# --- Whoever called sudo builds, so that neither target/ nor their cargo cache ends up owned by root.

BUILDER=''
choose_builder() {
    BUILDER=$(id -un)
    [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]] && is_root || return 0
    local dir=$ROOT
    [[ -e $ROOT/target ]] && dir=$ROOT/target
    if runuser -u "$SUDO_USER" -- test -w "$dir"; then
        BUILDER=$SUDO_USER
    fi
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# Runs a command as the builder, with the Rust that was found first in PATH.
as_builder() {
    local path=${RUST_BIN:+$RUST_BIN:}$PATH
    if [[ $BUILDER == "$(id -un)" ]]; then
        PATH=$path "$@"
    else
        runuser -u "$BUILDER" -- env HOME="$(home_of "$BUILDER")" USER="$BUILDER" LOGNAME="$BUILDER" PATH="$path" "$@"
    fi
}

# --- Rust: the caller's own, the distribution's, or rustup's.

RUST_BIN=''
rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }
new_enough() { [[ $(printf '%s\n' "$(rust_wanted)" "$1" | sort -V | head -n 1) == "$(rust_wanted)" ]]; }

rust_places() {
    local user home
    # sudo replaces PATH, and keeps the caller's home out of sight.
    command -v cargo >/dev/null && dirname "$(command -v cargo)"
    for user in "$BUILDER" "${SUDO_USER:-$BUILDER}" "$(id -un)"; do
        home=$(home_of "$user")
        printf '%s\n' "$home/.cargo/bin" "$home"/.rustup/toolchains/{stable-,[0-9],}*/bin
    done
    printf '%s\n' /usr/local/cargo/bin /usr/local/bin /usr/bin /usr/lib/rust-*/bin
}

# Sets RUST_BIN to the first directory whose cargo and rustc run and are new enough.
look_for_rust() {
    local place version
    while IFS= read -r place; do
        [[ -x $place/cargo && -x $place/rustc ]] || continue
        version=$(RUST_BIN=$place as_builder "$place/rustc" --version 2>/dev/null | cut -d' ' -f2) || continue
        if [[ -n $version ]] && new_enough "$version"; then
            RUST_BIN=$place
            note "Rust $version in $place"
            return
        fi
    done < <(rust_places)
    return 1
}

# The distribution's packages that bring a Rust new enough, if it has any (Ubuntu carries versioned ones besides).
distribution_rust() {
    local version name
    version=$(apt-cache policy rustc 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    if [[ -n $version ]] && new_enough "$version"; then
        echo rustc cargo
        return
    fi
    name=$(apt-cache search --names-only '^cargo-1\.[0-9]+$' 2>/dev/null | cut -d' ' -f1 | sort -V | tail -n 1)
    [[ -n $name ]] && new_enough "${name#cargo-}.0" && echo "rustc-${name#cargo-} $name"
}

# Finds Rust or gets it; with "yes" also from rustup, as the builder.
find_rust() {
    local packages
    choose_builder
    look_for_rust && return
    if is_root && command -v apt-cache >/dev/null; then
        apt_update
        read -ra packages < <(distribution_rust) || true
        if [[ ${#packages[@]} -gt 0 ]]; then
            install_packages "${packages[@]}"
            look_for_rust && return
        fi
    fi
    if [[ ${1:-} != yes ]]; then
        die "no Rust $(rust_wanted) or newer here. This command installs it for $BUILDER (or run me again with --yes):
    $RUSTUP"
    fi
    is_root && install_packages curl ca-certificates
    note "installing Rust for $BUILDER: $RUSTUP"
    as_builder bash -o pipefail -c "$RUSTUP" 2>&1 | quote || die "rustup was not installed"
    look_for_rust || die "rustup has run, and still no Rust $(rust_wanted) or newer is found"
}
