# The tasks that anybody runs. Before the first GPU work, scripts/adapter.sh makes sure that there is an adapter.
.PHONY: help train test bench lint docs
help:   ; @grep -E '^#:' Makefile | cut -c4-
#: make train   build and train the embedded default model, from a bare machine
train:  ; sh scripts/adapter.sh && cargo run --release --locked --bin danlu -- train
#: make test    every test, from a bare machine
test:   ; sh scripts/adapter.sh && cargo test --release --locked
#: make bench   the figures of docs/benchmarks.md
bench:  ; sh scripts/adapter.sh && cargo bench --locked --bench speed
#: make lint    formatting, clippy and missing documentation, all as errors
lint:   ; cargo fmt --check && cargo clippy --release --locked --all-targets -- -D warnings
#: make docs    the library's reference, under target/doc
docs:   ; RUSTDOCFLAGS="-D warnings -D missing_docs" cargo doc --release --locked --no-deps
