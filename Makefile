# The tasks that anybody runs. Before the first GPU work, scripts/adapter.sh makes sure that there is an adapter.
.PHONY: help train test bench bench-gpu lint docs
help:   ; @grep -E '^#:' Makefile | cut -c4-
#: make train   build and train the embedded default model, from a bare machine; ARGS="--out runs/second" beside another
train:  ; sh scripts/adapter.sh && cargo run --release --locked --bin danlu -- train $(ARGS)
#: make test    every test, from a bare machine; goes on after one that fails
test:   ; sh scripts/adapter.sh && cargo test --release --locked --no-fail-fast
#: make bench   kernels and steps against the roofline and against benches/kept; KEEP=--keep keeps the new figures
bench:  ; sh scripts/adapter.sh && cargo run --release --locked --bin danlu -- bench --kept benches/kept $(KEEP)
#: make bench-gpu   on a machine with a GPU: every kernel's correctness, then Danlu beside PyTorch; QUICK=--quick for a CPU
bench-gpu: ; sh scripts/bench_gpu.sh $(QUICK)
#: make lint    formatting, clippy and missing documentation, all as errors
lint:   ; cargo fmt --check && cargo clippy --release --locked --all-targets -- -D warnings
#: make docs    the library's reference, under target/doc
docs:   ; RUSTDOCFLAGS="-D warnings -D missing_docs" cargo doc --release --locked --no-deps
