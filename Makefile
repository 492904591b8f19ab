# Two commands start from a machine that has only Python 3.11+ and make:
#   make quickstart    three stages, evaluation and a report on embedded real images
#   make test          the whole test suite
# The suite draws the same examples every day. New ones, and the long searches that the suite leaves out:
#   make fuzz          property tests with other examples each time, and the tests marked `fuzz`
# Speed:
#   make bench         time all that this machine can run beside its peers, then write benchmarks/RESULTS.md; minutes
# For those who change kernels (no GPU needed):
#   make kernels         compile every shipped kernel for sm_80, sm_90 and sm_100, rewrite the tables in kernels/README.md
#   make kernels-check   compile them and compare with those tables, naming loops that cost more: a step of CI; the suite
#                        compiles what models at hand call, for sm_90 alone
#   make kernels-oldest  the same compilation under the oldest supported Triton
# For those who change the core:
#   make mutants         plant small faults in the modules of tools/mutants/areas.toml and see the tests notice; not in CI
#                        AREAS="boxes data" names some, SAMPLE=0 plants all (hours), SEED=1 draws others
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LINK   := build/import_names/medmo_recipes
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
TORCH  := $(shell grep '^torch==' constraints.txt)

.PHONY: install lock quickstart test fuzz bench native kernels kernels-check kernels-oldest mutants lint types clean

install: $(STAMP) $(LINK)

# Re-installs when the requirements change. The native part is built by `make native`.
# Every file is held to its hash but torch's: each of its builds (CPU, one per CUDA version) is another file, which the
# package index that pip is told of decides. On Linux, PyPI's is the CUDA build of several GB; the small one comes with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install
$(STAMP): setup.py constraints.txt requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps --require-hashes -r requirements.txt
	$(PIP) install $(TORCH)
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# Writes requirements.txt anew, for every system and Python version: after a change of setup.py or constraints.txt. Beside
# what setup.py names: what builds the package, and what tests read as files (Qwen's vocabulary, its published chat
# template and TRL's reward calls, and a collection of chest reports).
lock: $(STAMP)
	$(PIP) install -c constraints.txt uv
	printf '%s\n' setuptools wheel dashscope trl torchxrayvision | $(BIN)/uv pip compile setup.py - --extra demo --extra medical --extra test \
		-c constraints.txt --universal --python-version 3.11 --generate-hashes --no-emit-package torch --no-annotate --quiet \
		--custom-compile-command "make lock" --output-file requirements.txt

quickstart: $(STAMP)
	$(BIN)/medmo quickstart

# Two workers of one thread each: two threads in each would wait for one another.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# `hypothesis` is the mark that its plug-in puts on every property test. Prints what repeats a failure.
fuzz: $(STAMP)
	HYPOTHESIS_PROFILE=random OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "fuzz or hypothesis"

# Wants a quiet machine. A way that is wrong, a peer's too, fails the first command; what was measured is stored.
# The page is written where a way was wrong too: it says so.
bench: $(STAMP)
	$(BIN)/python -m benchmarks; status=$$?; $(BIN)/python -m benchmarks.report && exit $$status

native: $(STAMP)
	$(PIP) install --no-deps --no-build-isolation --force-reinstall -e .
	$(BIN)/python -c 'from medmo_kernels import runtime; print("native part:", runtime.native_status())'

kernels: $(STAMP)
	mkdir -p build
	$(BIN)/python -m tools.compile_kernels --json build/compiled.json
	$(BIN)/python -m benchmarks.report.kernel_pages build/compiled.json --write

kernels-check: $(STAMP)
	mkdir -p build
	$(BIN)/python -m tools.compile_kernels --json build/compiled.json
	$(BIN)/python -m benchmarks.report.kernel_pages build/compiled.json

OLDEST_TRITON := build/triton-3.6
kernels-oldest: $(STAMP)
	test -d $(OLDEST_TRITON) || $(PIP) install --no-deps --target $(OLDEST_TRITON) triton==3.6.0
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m tools.compile_kernels

# In a folder of its own, which only this command puts on the path.
MUTMUT := build/mutmut
AREAS  ?=
SAMPLE ?= 10
SEED   ?= 0
mutants: $(STAMP)
	test -d $(MUTMUT) || $(PIP) install --target $(MUTMUT) -c constraints.txt mutmut
	PYTHONPATH=$(CURDIR)/$(MUTMUT) OMP_NUM_THREADS=1 $(BIN)/python -m tools.mutants $(AREAS) --sample $(SAMPLE) --seed $(SEED)

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
