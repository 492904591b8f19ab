"""Command `python -m tools.mutants [AREA ...]`, which `make mutants` calls; needs mutmut, see the Makefile."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AREAS = tomllib.loads((Path(__file__).parent / "areas.toml").read_text(encoding="utf-8"))


def main() -> int:
    """Run every area in a separate process, since each imports another mutated copy; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"one of {', '.join(AREAS)}; all when none is named")
    parser.add_argument("--sample", type=int, default=10, help="mutants a module, drawn by chance; 0 takes all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    options = parser.parse_args()
    unknown = sorted(set(options.areas) - set(AREAS))
    if unknown:
        parser.error(f"no area {', '.join(unknown)}; there are {', '.join(AREAS)}")
    command = [sys.executable, "-m", "tools.mutants.area", str(options.sample), str(options.seed)]
    statuses = [subprocess.run([*command, area], cwd=ROOT).returncode for area in options.areas or AREAS]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
