#!/bin/sh
# On a machine with a GPU: are all kernels right and what is made of them, how do PyTorch and meganeura do the same, and how near to the device's limits is every
# kernel? One table of what docs/benchmarks.md lists for GPUs, then the whole roofline. `--quick` takes small sizes, so that
# the way itself can be tried on a CPU. The adapter is that of DANLU_ADAPTER, else the automatic one.
#
# What fails is said and does not end the rest; then the exit code is 1, as where something is not reached that is to be.
# DANLU=FILE takes a program that is built already, and does not call cargo; PEERS=--eager leaves out what PyTorch compiles,
# which takes minutes; MEGANEURA=FILE is meganeura's example smollm2_train_bench, built by hand.
set -u
quick="${1:-}"
case "$quick" in "" | --quick) ;; *) echo "usage: $0 [--quick]" >&2; exit 2 ;; esac
cd "$(dirname "$0")/.." || exit 1
# A name may have spaces.
set -- ${DANLU_ADAPTER:+"--adapter=$DANLU_ADAPTER"}
folder=target/bench-gpu
failed=""

danlu="${DANLU:-}"
if [ -z "$danlu" ]; then
    sh scripts/adapter.sh && cargo build --quiet --release --locked --bin danlu || exit 1
    danlu="${CARGO_TARGET_DIR:-target}/release/danlu"
fi
rm -rf "$folder" && mkdir -p "$folder" || exit 1
# Minutes are saved where PyTorch would be measured on a device that Danlu does not see.
! command -v python3 >/dev/null 2>&1 || python3 scripts/bench_peers.py --check --danlu "$danlu" "$@" || exit 1

echo "== every kernel against its f64 reference"
every="--every"
[ -z "$quick" ] || every=""
"$danlu" doctor $every "$@" || failed="$failed; danlu doctor: some kernel is wrong, or there is no adapter"
if [ -z "$quick" ] && [ -z "${DANLU:-}" ]; then
    for test in ops hooks halves training optimizers copies steady tuner generation adapters; do
        cargo test --release --locked --test "$test" || failed="$failed; cargo test --release --test $test"
    done
fi

echo "== beside PyTorch, and meganeura"
# Each part is a process of its own: what loses the device costs one part.
n=0
for part in "cube:" "attention:" "attention mixed:" "train step" "decode story" "decode smollm2" "decode llama"; do
    # Not all sizes have all of them.
    case "$quick$part" in "--quickdecode smollm2" | "--quickdecode llama" | "decode story") continue ;; esac
    n=$((n + 1))
    "$danlu" bench $quick "$part" --json "$@" >"$folder/part-$n.json" ||
        failed="$failed; danlu bench \"$part\""
done
python3 scripts/bench_peers.py $quick ${PEERS:-} --danlu "$danlu" ${MEGANEURA:+--meganeura "$MEGANEURA"} "$@" "$folder"/part-*.json ||
    failed="$failed; scripts/bench_peers.py: figures are missing, or something is not reached"

if [ -z "$quick" ]; then
    echo "== kernels and whole steps against the roofline"
    "$danlu" bench "$@" --kept "$folder" --keep --svg "$folder/roofline.svg" || failed="$failed; danlu bench"
fi
[ -z "$failed" ] || { echo "failed: ${failed#; }" >&2; exit 1; }
