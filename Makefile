.PHONY: setup run test lint bench soak lock clean
.DEFAULT_GOAL := run

setup: ## everything that running needs: host packages (as root), .venv, the C library, PostgreSQL
	@scripts/setup run

run: ## set up, then Torpor in the foreground
	@scripts/setup run
	@exec .venv/bin/torpor serve $(ARGS)

test: ## set up, then all tests; ARGS="-k door" picks some
	@scripts/setup test
	@.venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: ## format, rules, types, layers, sizes
	@scripts/setup test
	@scripts/lint

bench: ## every benchmark, one after the other, into bench/results.json
	@scripts/setup test
	@.venv/bin/python -m bench $(ARGS)

soak: ## hours of load, faults and sleep; MINUTES=60
	@scripts/setup test
	@.venv/bin/python -m bench.fuzz --minutes 5 && .venv/bin/python -m bench.escapes --minutes 15
	@.venv/bin/python -m bench.power_cut --minutes 10 && .venv/bin/python -m bench.branch_soak --count 1000 && .venv/bin/python -m bench.at_once
	@.venv/bin/python -m bench.soak --minutes $(or $(MINUTES),60) $(ARGS)

lock: ## remake the lock files; ARGS=--upgrade takes newer versions
	@scripts/setup run
	@scripts/lock $(ARGS)

clean: ## remove what set-up and tests made in this directory; databases stay
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis tests/node/node_modules src/torpor/native/libtorpor.so src/torpor/native/torpor-copier src/torpor/native/torpor-relay src/torpor/gateway/pool/compiled
