# Everything here is one call of a tool; .venv holds the tools, pinned in pyproject.toml.

# The pinned tools need Python 3.11 with its venv module. The artifact itself runs on 3.6.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$name && break; done)
RUN = .venv/bin/python
CLANG ?= clang
ARTIFACT = dist/poncho_package_run.pyz
# The native library, for each processor: committed, so that only who changes it needs a compiler.
PROCESSORS = x86_64 aarch64
SOURCES = build.py pyproject.toml $(shell find src -name '*.py') src/header.sh \
	$(wildcard src/native/*.so) src/compiled.zip

.PHONY: all demo test check bench sweep storm fuzz endings native native-check fuzz-native clean

all: $(ARTIFACT)

$(ARTIFACT): $(SOURCES) | .venv/dev
	$(RUN) build.py

# build.py makes it; this is for when it is missing.
src/compiled.zip: ;

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

native: .venv/native
	$(foreach processor,$(PROCESSORS),$(call compile,$(processor),src/native) &&) true

native-check: .venv/native
	directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	$(foreach processor,$(PROCESSORS),$(call compile,$(processor),$$directory) && \
	cmp "$$directory/$(processor).so" src/native/$(processor).so &&) true

fuzz-native: build/fuzz-native
	build/fuzz-native $(ARGS)

# WORTH_ASKING: short inputs take the other way to their CRC, too.
build/fuzz-native: tests/native/fuzz.c src/native/inflate.c src/native/crc32.c src/native/native.h
	mkdir -p build
	$(CLANG) -std=gnu2x -O2 -g -Wall -Wextra -Werror -fsanitize=address,undefined \
	-fno-sanitize-recover=all -DWORTH_ASKING=64 -o $@ $(filter %.c,$^) -lz

# Freestanding: no C library, nothing that is not in these files; and the same bytes wherever and
# whenever it is compiled.
define compile
$(RUN) -m ziglang cc -target $(1)-linux-none -std=gnu2x -O3 -ffreestanding -nostdlib -shared -fPIC \
-fno-stack-protector -fvisibility=hidden -Wall -Wextra -Werror -s -Wl,--build-id=none \
-Wl,-z,max-page-size=65536 -o "$(2)/$(1).so" $(sort $(wildcard src/native/*.c))
endef

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
