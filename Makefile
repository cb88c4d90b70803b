# Everything a newcomer types. `make run` and `make test` install what this machine lacks.

# Node from tests/setup.sh, where the system's is too old.
export PATH := $(CURDIR)/tests/.node/node_modules/node/bin:$(PATH)

export NEXTEST_TEST_THREADS ?= $(shell tests/threads.sh)

.PHONY: help run test explore lint bench fuzz mutants histcheck

help: ## tell what there is
	@sed -n 's/^\([a-z]*\): .*## /make \1|/p' Makefile | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

run: ## start Rowcast with a PostgreSQL of its own and a board to play with
	@tests/setup.sh run
	cargo run --release

test: ## run every test; ROWCAST_PG_BIN=/path/to/bin chooses the PostgreSQL
	@tests/setup.sh test
	@if cargo nextest --version >/dev/null 2>&1; then \
	  set -x && cargo nextest run && cargo test --doc; \
	else \
	  set -x && cargo test; \
	fi

SEEDS ?= 10
explore: ## run what tests choose at random under seeds of their own, SEEDS=10 times
	@tests/setup.sh test
	@for n in $$(seq $(SEEDS)); do \
	  ROWCAST_SEED=random cargo nextest run --release --test relay --no-fail-fast \
	    -E 'test(/^(canary|contamination|fuzz|history|shapes|sights)::/)' || exit 1; \
	done

lint: ## check format, lints, and what the dependencies bring along
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	@if ! cargo deny --version >/dev/null 2>&1; then \
	  echo "cargo-deny is not installed: dependencies were not checked"; \
	elif git ls-remote -q https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then \
	  set -x && cargo deny check; \
	else \
	  echo "the advisory database cannot be reached: advisories were not checked"; \
	  set -x && cargo deny check bans licenses sources; \
	fi

bench: ## measure; FIGURES="fan-1000 patch" measures some of it, FIGURES=list tells what there is
	@if [ -z "$(FIGURES)" ]; then set -x && cargo bench --bench rooms; fi
	@if [ "$(FIGURES)" != list ]; then \
	  set -x && cargo build --release --manifest-path benches/naive/Cargo.toml --target-dir target/naive; \
	fi
	cargo bench --bench side_by_side -- $(FIGURES)

mutants: ## switch on known defects, one at a time, and see that the tests find each
	tests/mutants.sh

histcheck: ## check histories under faults: 20 seeds of 5 minutes, with a report
	@tests/setup.sh test
	cargo test --release --test histcheck -- --seeds 20 --seconds 300 --report target/histcheck

TARGETS ?= token resume filter body jwt sse image http1 http2 config
SECONDS_EACH ?= 600
fuzz: ## look for inputs that break a promise, ten minutes a target; TARGETS="jwt sse" SECONDS_EACH=60 for less
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@for target in $(TARGETS); do \
	  echo "== $$target" && mkdir -p fuzz/found/$$target && \
	  cargo +nightly fuzz run $$target fuzz/found/$$target fuzz/corpus/$$target -- \
	    -max_total_time=$(SECONDS_EACH) -max_len=16384 -timeout=20 -rss_limit_mb=4096 || exit 1; \
	done
