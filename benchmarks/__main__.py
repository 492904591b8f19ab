"""Run the suite: kernels, then modules, then recipes. `make bench` is this; all options of pytest work.

    python -m benchmarks                              # everything that this machine can run
    python -m benchmarks --short                      # does it run?
    python -m benchmarks bench_kernels.py -k giou     # a part
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEVELS = ("bench_kernels.py", "bench_modules.py", "bench_recipes.py")


def main(argv: Sequence[str]) -> int:
    """Hand over to pytest with the files of the suite."""
    named = [word for word in argv if word in LEVELS]
    others = [word for word in argv if word not in LEVELS]
    files = [str(HERE / name) for name in named or LEVELS if (HERE / name).exists()]
    return int(pytest.main([*files, "--benchmark-columns=median,min,max,rounds", "-s", *others]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
