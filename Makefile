# Two commands do everything on a fresh machine: `make demo` and `make test`; `make test-large` adds the long stories.
VENV ?= .venv
PYTHON ?= python3.11
PIP_INSTALL = $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-large chaos chaos-study check docs load schemathesis format install install-dev browser clean

demo: $(VENV)/.installed
	$(VENV)/bin/graft demo $(DEMO_ARGS)

# Two tiers, each by two processes side by side, a file's tests in one of them; PYTEST_WORKERS=0 runs all in one.
# One thread each, and each program that they start: threads of two programs on two cores wait for each other.
PYTEST_WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed-dev browser
	$(PYTEST) -m "not large" $(PYTEST_ARGS)

# The long stories: processes killed, many examples, full-size models; then labs with other users of the machine, of
# which each needs all cores, one after another.
test-large: $(VENV)/.installed-dev browser
	$(PYTEST) -m large --ignore tests/end_to_end $(PYTEST_ARGS)
	$(VENV)/bin/python -m pytest -m large tests/end_to_end $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m service.db.migrate --check

# The pages, in ./site; their generated parts are written anew first.
docs: $(VENV)/.installed-dev
	$(VENV)/bin/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

# About six minutes; `make load LOAD_ARGS="--write --soak 1800"` watches the memory for half an hour as well.
LOAD_ARGS ?= --write
load: $(VENV)/.installed-dev
	$(VENV)/bin/python -m benchmarks.service $(LOAD_ARGS)

# Many generated requests a route, all checks, on both databases.
schemathesis: $(VENV)/.installed-dev
	rm -f docs/results/contract.md
	SCHEMATHESIS_EXAMPLES=200 SCHEMATHESIS_REPORT=docs/results/contract.md \
		$(VENV)/bin/python -m pytest --timeout 7200 -o faulthandler_timeout=0 tests/service/test_contract.py

# Ten minutes of faults at a lab of its own; CHAOS_ARGS="--minutes 2 --runs 10 --seed 1" for less.
chaos: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.chaos $(CHAOS_ARGS)

# A study whose processes are killed in every phase, against an undisturbed one; about ten minutes.
chaos-study: $(VENV)/.installed-dev
	$(VENV)/bin/python -m tests.chaos.studies

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

# torch first: the constraint pins a build without CUDA where one is at hand.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[lab]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	$(PIP_INSTALL) --no-deps torch-fidelity # it asks for torchvision, which its functions on features do not need
	touch $@

# The page tests drive a real browser; Debian's is installed where there is none.
browser:
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null)

clean:
	rm -rf $(VENV) site graftlab-demo graftlab-data .pytest_cache .mypy_cache .ruff_cache
