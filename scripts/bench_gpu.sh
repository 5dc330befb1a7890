#!/bin/sh
# On a machine with a GPU: are all kernels right, how near to the device's limits are they, and how does PyTorch do the
# same? `--quick` takes small sizes, so that the way itself can be tried on a CPU. The adapter is that of DANLU_ADAPTER,
# else the automatic one.
set -eu
quick="${1:-}"
case "$quick" in "" | --quick) ;; *) echo "usage: $0 [--quick]" >&2; exit 2 ;; esac
cd "$(dirname "$0")/.."
danlu() { cargo run --quiet --release --locked --bin danlu -- "$@"; }
adapter="${DANLU_ADAPTER:+--adapter=$DANLU_ADAPTER}"

sh scripts/adapter.sh
echo "== every kernel against its f64 reference"
danlu doctor $adapter
if [ -z "$quick" ]; then
    cargo test --release --locked --test ops
fi
echo "== kernels and whole steps against the roofline"
rm -rf target/bench-gpu
danlu bench $quick $adapter --kept target/bench-gpu --keep --svg target/bench-gpu.svg
echo "== beside PyTorch"
if python3 -c "import torch" 2>/dev/null; then
    python3 scripts/bench_peers.py $quick target/bench-gpu/*.json
else
    echo "skipped: python3 has no torch here (pip install torch transformers)"
fi
