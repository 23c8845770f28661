# Everything here is one call of a tool; .venv holds the tools, pinned in pyproject.toml.

# The pinned tools need Python 3.11 with its venv module. The artifact itself runs on 3.6.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$name && break; done)
RUN = .venv/bin/python
ARTIFACT = dist/poncho_package_run.pyz
SOURCES = build.py pyproject.toml $(shell find src -name '*.py') src/header.sh

.PHONY: all demo test check bench sweep storm fuzz endings clean

all: $(ARTIFACT)

$(ARTIFACT): $(SOURCES) | .venv/dev
	$(RUN) build.py

demo: $(ARTIFACT)
	$(RUN) tests/demo.py

test: check
	$(RUN) -m pytest -n 2 $(ARGS)

check: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(RUN) build.py --check

bench: $(ARTIFACT) .venv/bench
	$(RUN) -m tests.benchmarks $(ARGS)

sweep: $(ARTIFACT)
	$(RUN) tests/sweep.py $(ARGS)

storm: $(ARTIFACT)
	$(RUN) tests/storm.py $(ARGS)

fuzz: $(ARTIFACT)
	$(RUN) tests/fuzz.py $(ARGS)

endings: $(ARTIFACT)
	$(RUN) tests/endings.py --runs 3000 $(ARGS)

clean:
	rm -rf .venv build tests/.cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each group of pins.
.venv/%: pyproject.toml
	$(if $(PYTHON),,$(error there is no Python 3.11 or later with its venv module: \
	install python3-venv, or name one with make PYTHON=/path/to/python3))
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"]["$*"], sep="\n")' > $@.pins
	$(RUN) -m pip install --quiet --requirement $@.pins
	touch $@
