#!/usr/bin/env bash
# Every check and every test there is. Ends with the line "N passed, N failed, N skipped".
#
# As root it runs everything; without root what needs namespaces is skipped, each test by name.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

YES=''
case ${1:-} in
    '') ;;
    --yes) YES=yes ;;
    -h | --help) echo "usage: [sudo] scripts/test.sh [--yes]     --yes: install Rust with rustup if it is missing" && exit ;;
    *) echo "usage: [sudo] scripts/test.sh [--yes]" >&2 && exit 2 ;;
esac

cd "$ROOT"
AGAIN=()
PASSED=0 FAILED=0 SKIPPED=0
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

count() {
    PASSED=$((PASSED + $1)) FAILED=$((FAILED + $2)) SKIPPED=$((SKIPPED + $3))
}

# A check that passes or fails as a whole: its name, then the command.
check() {
    local name=$1
    shift
    if "$@" >"$WORK/out" 2>&1 </dev/null; then
        ok "$name"
        count 1 0 0
    else
        quote <"$WORK/out"
        bad "$name"
        count 0 1 0
    fi
}

skip() {
    note "skipped: $1"
    count 0 0 1
}

install_tools() {
    local missing
    local tools=(python3-pytest python3-scapy shellcheck iproute2 iputils-ping traceroute ethtool procps tcpdump tshark bird2 python3-pyte
        groff man-db mandoc nftables zsh fish valgrind)
    if is_root; then
        install_packages "${BUILD_PACKAGES[@]}" "${tools[@]}"
    elif command -v dpkg-query >/dev/null; then
        mapfile -t missing < <(missing_packages "${BUILD_PACKAGES[@]}" "${tools[@]}")
        [[ ${#missing[@]} -eq 0 ]] || note "not root, and missing: ${missing[*]}"
    fi
    fetch_promtool
    find_rust "$YES"
    has_component fmt || add_component rustfmt rustfmt
    has_component clippy || add_component clippy rust-clippy
}

# Prometheus's judge of metrics, out of its package: installing that would start a server.
fetch_promtool() {
    local place=$ROOT/target/tools
    command -v promtool >/dev/null || [[ -x $place/promtool ]] && return
    command -v apt-get >/dev/null || return 0
    mkdir -p "$place" "$WORK/prometheus"
    if (cd "$WORK/prometheus" && { apt-get download -qq prometheus || { is_root && apt_update && apt-get download -qq prometheus; }; }) >/dev/null 2>&1; then
        dpkg-deb --fsys-tarfile "$WORK"/prometheus/*.deb | tar -xO ./usr/bin/promtool >"$place/promtool" && chmod 755 "$place/promtool"
    else
        note "promtool: no package to be had"
    fi
}

has_component() { as_builder cargo "$1" --version >/dev/null 2>&1; }

# A component of Rust, from wherever Rust came: rustup's name, then the distribution's.
add_component() {
    note "adding $1"
    if as_builder rustup --version >/dev/null 2>&1; then
        as_builder rustup component add "$1" 2>&1 | quote || true
    elif is_root; then
        install_packages "$2" || true
    fi
}

lint_rust() {
    if has_component fmt; then check "cargo fmt" as_builder cargo fmt --check; else skip "cargo fmt: no rustfmt"; fi
    if has_component clippy; then
        check "clippy" as_builder cargo clippy --locked --all-targets --target-dir target -- -D warnings
    else
        skip "clippy: none here"
    fi
}

lint_scripts() {
    if command -v shellcheck >/dev/null; then
        check "shellcheck" shellcheck -x scripts/*.sh .ci/run
    else
        skip "shellcheck: none here"
    fi
}

# Licences, duplicates, sources. Vulnerabilities are not looked for: their database would have to be fetched.
lint_crates() {
    if /usr/bin/python3 -c 'import tomllib' 2>/dev/null; then
        check "deny.toml" as_builder /usr/bin/python3 scripts/deny.py
    else
        skip "deny.toml: needs Python 3.11"
    fi
}

# Builds every test and prints, per executable, its name and path.
built_tests() {
    as_builder cargo test --locked --no-run --target-dir target --message-format json 2>"$WORK/build" </dev/null |
        /usr/bin/python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["target"]["name"], message["executable"])'
}

# Adds up the results that the Rust test harness printed, and shows what failed or was skipped.
count_rust() {
    local name=$1 status=$2 passed failed ignored
    read -r passed failed ignored < <(awk '/^test result:/ {n++; p += $4; f += $6; i += $8} END {if (n) print p, f, i}' \
        "$WORK/out") || true
    sed -n 's/^test \(.*\) \.\.\. ignored\(, \)\?\(.*\)/skipped: \1 (\3)/p' "$WORK/out" | quote
    if [[ -z $passed || ($status -ne 0 && $failed -eq 0) ]]; then
        tail -n 40 "$WORK/out" | quote
        bad "$name: ended with $status before its last test"
        count "${passed:-0}" 1 "${ignored:-0}"
    elif [[ $failed -ne 0 ]]; then
        sed -n '/^failures:/,$p' "$WORK/out" | quote
        bad "$name: $passed passed, $failed failed"
        count "$passed" "$failed" "$ignored"
    else
        ok "$name: $passed passed"
        count "$passed" "$failed" "$ignored"
    fi
}

# Whether an integration test says at its head that it needs root. (A Rust test cannot skip itself.)
needs_root() { [[ -f tests/$1.rs ]] && sed '/^$/q' "tests/$1.rs" | grep -q 'Needs root'; }

test_rust() {
    local name path status test
    if ! built_tests >"$WORK/tests"; then
        tail -n 40 "$WORK/build" | quote
        bad "cargo test does not build"
        count 0 1 0
        return
    fi
    while read -r name path; do
        if ! is_root && needs_root "$name"; then
            while read -r test; do skip "$name: ${test%: test} (needs root)"; done < <("$path" --list | grep ': test$')
            continue
        fi
        status=0
        timeout 900 "$path" >"$WORK/out" 2>&1 </dev/null || status=$?
        count_rust "$name" "$status"
    done <"$WORK/tests"
    status=0
    as_builder cargo test --locked --doc --target-dir target >"$WORK/out" 2>&1 </dev/null || status=$?
    count_rust "documentation" "$status"
}

# The namespace tests, against the release that demo.sh builds too.
test_namespaces() {
    local status=0
    if ! /usr/bin/python3 -c 'import pytest, scapy' 2>/dev/null; then
        skip "tests/netns: no pytest or no scapy"
        return
    fi
    GREYHOUND=$ROOT/target/release/greyhound PYTHONDONTWRITEBYTECODE=1 timeout 3000 /usr/bin/python3 -m pytest \
        -p no:cacheprovider -q --tb=short --color=no --junit-xml="$WORK/junit.xml" tests/netns </dev/null || status=$?
    if [[ $status -eq 1 ]]; then ask_again; fi
    count_pytest "$status"
}

# A machine whose CPUs somebody else uses for a second fails a test that waits for packets. Up to five tests that failed are
# tried once more, each alone, and are named when they pass then: they want looking at all the same.
ask_again() {
    local tests=() test
    mapfile -t tests < <(/usr/bin/python3 - "$WORK/junit.xml" <<'END'
import sys, xml.etree.ElementTree as tree
for case in tree.parse(sys.argv[1]).iter("testcase"):
    if case.find("failure") is not None or case.find("error") is not None:
        print(case.get("classname").replace(".", "/") + ".py::" + case.get("name"))
END
    )
    [[ ${#tests[@]} -le 5 ]] || return 0
    for test in "${tests[@]}"; do
        GREYHOUND=$ROOT/target/release/greyhound PYTHONDONTWRITEBYTECODE=1 timeout 300 /usr/bin/python3 -m pytest \
            -p no:cacheprovider -q --tb=short --color=no "$test" </dev/null || continue
        note "failed among the others, passed alone: $test"
        AGAIN+=("$test")
    done
}

count_pytest() {
    local passed failed skipped
    if [[ ! -s $WORK/junit.xml ]]; then
        bad "pytest ended with $1"
        count 0 1 0
        return
    fi
    /usr/bin/python3 - "$WORK/junit.xml" >"$WORK/out" <<'END'
import sys, xml.etree.ElementTree as tree
suites = list(tree.parse(sys.argv[1]).iter("testsuite"))
total, failures, errors, skipped = (sum(int(s.get(k)) for s in suites) for k in ("tests", "failures", "errors", "skipped"))
print(total - failures - errors - skipped, failures + errors, skipped)
for case in tree.parse(sys.argv[1]).iter("testcase"):
    for reason in case.iter("skipped"):
        print(f"skipped: {case.get('classname')}.{case.get('name')} ({reason.get('message')})")
END
    read -r passed failed skipped <"$WORK/out"
    tail -n +2 "$WORK/out" | quote
    [[ $1 -eq 0 || $failed -gt 0 ]] || failed=1
    failed=$((failed - ${#AGAIN[@]})) passed=$((passed + ${#AGAIN[@]}))
    if [[ $failed -eq 0 ]]; then ok "tests/netns: $passed passed"; else bad "tests/netns: $failed failed"; fi
    count "$passed" "$failed" "$skipped"
}

# The instructions of a packet, against those that are kept for this compiler.
test_instructions() {
    local status=0
    as_builder scripts/instructions.py >"$WORK/out" 2>&1 </dev/null || status=$?
    if [[ $status -eq 77 ]]; then
        skip "instructions of a packet: $(tail -n 1 "$WORK/out")"
    elif [[ $status -eq 0 ]]; then
        ok "instructions of a packet"
        count 1 0 0
    else
        quote <"$WORK/out"
        bad "instructions of a packet"
        count 0 1 0
    fi
}

# The Debian package's life in a clean root, and the tarball.
test_packages() {
    if ! is_root; then
        skip "packages: needs root"
    elif ! command -v dpkg-query >/dev/null; then
        skip "packages: not a Debian or Ubuntu"
    else
        check "Debian package and tarball" timeout -k 10 900 scripts/try_package.sh
    fi
}

# Against a real kernel's tunnels, in a virtual machine where this one has none. Each cell of the table is a test.
test_interop() {
    local status passed failed skipped
    timeout -k 30 640 scripts/interop.sh </dev/null 2>&1 | tee "$WORK/out" && status=0 || status=$?
    read -r passed failed skipped < <(
        sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$WORK/out" | tail -n 1) || true
    if [[ -z $passed || ($status -ne 0 && $status -ne 77 && $failed -eq 0) ]]; then
        bad "interop: ended with $status before its sum"
        count "${passed:-0}" 1 "${skipped:-0}"
        return
    fi
    if [[ $failed -ne 0 ]]; then
        bad "interop: $failed failed"
    elif [[ $passed -eq 0 ]]; then
        note "interop: skipped, nothing of it could be tried here"
    else
        ok "interop: $passed passed"
    fi
    count "$passed" "$failed" "$skipped"
}

# Tests that need another kernel, in a virtual machine: each is counted.
test_guest() {
    local name=$1 bound=$2 status passed failed skipped
    timeout -k 30 "$((bound + 60))" scripts/guest.sh --limit "$bound" "$name" </dev/null 2>&1 | tee "$WORK/out" && status=0 || status=$?
    read -r passed failed skipped < <(
        sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$WORK/out" | tail -n 1) || true
    if [[ -z $passed || ($status -ne 0 && $status -ne 77 && $failed -eq 0) ]]; then
        bad "tests/guest/$name: ended with $status before its sum"
        count "$(grep -c '^    ok ' "$WORK/out" || true)" 1 0
        return
    fi
    if [[ $failed -ne 0 ]]; then
        bad "tests/guest/$name: $failed failed"
    elif [[ $passed -eq 0 ]]; then
        note "tests/guest/$name: skipped, nothing of it could be tried here"
    else
        ok "tests/guest/$name: $passed passed"
    fi
    count "$passed" "$failed" "$skipped"
}

step "What it takes"
install_tools
step "Format and lints"
lint_rust
lint_scripts
lint_crates
step "Unit, property and integration tests"
note "building them"
test_rust
step "Namespace tests"
check "release build" as_builder cargo build --release --locked --bins --examples --target-dir target
test_namespaces
step "Instructions of a packet"
test_instructions
step "Packages"
test_packages
step "Against the Linux kernel"
test_interop
step "In a virtual machine"
test_guest vlan.py 600
test_guest accelerate.py 420

printf '\n%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"
[[ $FAILED -eq 0 ]]
