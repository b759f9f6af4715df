#!/usr/bin/env bash
# Fuzzes every target for a while: fuzz.sh [SECONDS [TARGET…]]     (600 seconds each, all of them)
#
# Needs cargo-fuzz (cargo install cargo-fuzz) and no nightly Rust: what is fuzzed is safe code, so the sanitizers have
# nothing to look for. What is found lies in fuzz/artifacts/TARGET; copied to fuzz/found/TARGET it is replayed by
# `cargo test --test fuzz_replay` from then on.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SECONDS_EACH=${1:-600}
[[ $SECONDS_EACH =~ ^[0-9]+$ ]] || die "usage: scripts/fuzz.sh [SECONDS [TARGET…]]"
TARGETS=("${@:2}")
[[ ${#TARGETS[@]} -gt 0 ]] || TARGETS=(encapsulate decapsulate forward worker config)
cargo fuzz --version >/dev/null 2>&1 || die "no cargo-fuzz here. This command installs it: cargo install cargo-fuzz"

cd "$ROOT"
step "Building"
# The project's versions; cargo adds what only the fuzzer needs.
cp Cargo.lock fuzz/Cargo.lock
cargo run --quiet --manifest-path fuzz/Cargo.toml --target-dir target --example seeds -- fuzz/corpus
cargo fuzz build --sanitizer none

# A finding stops its target alone. The corpus stays where it is, and the next run goes on from there.
failed=0
for target in "${TARGETS[@]}"; do
    step "$target, $SECONDS_EACH s"
    if cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" -- -max_total_time="$SECONDS_EACH" \
        -max_len=2048 -timeout=10 -print_final_stats=1 >"fuzz/$target.log" 2>&1 </dev/null; then
        grep -E '^#[0-9]+.*DONE|number_of_executed_units' "fuzz/$target.log" | quote
        ok "$target: nothing found"
    else
        grep -vE '^#[0-9]+' "fuzz/$target.log" | tail -n 40 | quote
        bad "$target: fuzz/artifacts/$target"
        failed=1
    fi
done
exit "$failed"
