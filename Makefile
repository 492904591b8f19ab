# Two commands start from a machine that has only Python 3.11+ and make:
#   make quickstart    three stages, evaluation and a report on embedded real images
#   make test          the whole test suite
# Speed:
#   make bench         time all that this machine can run beside its peers, then write benchmarks/RESULTS.md; minutes
# For those who change kernels (no GPU needed):
#   make kernels         compile every shipped kernel for sm_80, sm_90 and sm_100, rewrite the tables in kernels/README.md
#   make kernels-oldest  the same compilation under the oldest supported Triton
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LINK   := build/import_names/medmo_recipes

.PHONY: install quickstart test bench native kernels kernels-oldest lint types clean

install: $(STAMP) $(LINK)

# Re-installs when the requirements change. The native part is built by `make native`.
$(STAMP): setup.py constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel "torch>=2.11" numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[demo,medical,test]"
	# Read as files by tests: Qwen's vocabulary, its published chat template and TRL's reward calls, and a collection of
	# chest reports. Their dependencies are not wanted.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps dashscope trl torchxrayvision
	@touch $@

quickstart: $(STAMP)
	$(BIN)/medmo quickstart

# Two workers of one thread each: two threads in each would wait for one another.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Wants a quiet machine. A way that is wrong, a peer's too, fails the first command; what was measured is stored.
# The page is written where a way was wrong too: it says so.
bench: $(STAMP)
	$(BIN)/python -m benchmarks; status=$$?; $(BIN)/python -m benchmarks.report && exit $$status

native: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cmake ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation --no-deps --force-reinstall -e .
	$(BIN)/python -c 'from medmo_kernels import runtime; print("native part:", runtime.native_status())'

kernels: $(STAMP)
	mkdir -p build
	$(BIN)/python -m tools.compile_kernels --json build/compiled.json
	$(BIN)/python -m benchmarks.report.kernel_pages build/compiled.json --write

OLDEST_TRITON := build/triton-3.6
kernels-oldest: $(STAMP)
	test -d $(OLDEST_TRITON) || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OLDEST_TRITON) triton==3.6.0
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m tools.compile_kernels

lint: $(STAMP) types
	$(BIN)/ruff check .

types: $(STAMP) $(LINK)
	$(BIN)/pyright

# pyright reads folders and no import hooks: here it finds `recipes/` by the name that it is installed by.
$(LINK):
	mkdir -p $(@D)
	ln -s ../../recipes $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
