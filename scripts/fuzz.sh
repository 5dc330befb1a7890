#!/bin/sh
# Runs every fuzz target for so many seconds (60 unless told); what one finds lies under fuzz/artifacts and fails the run.
# Needs: rustup toolchain install nightly; cargo install cargo-fuzz
set -eu
cd "$(dirname "$0")/.."
for target in $(cargo +nightly fuzz list); do
    cargo +nightly fuzz run "$target" -- -max_total_time="${1:-60}" -rss_limit_mb=2048 -timeout=20 -print_final_stats=1
done
