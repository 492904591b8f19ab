"""`medmo doctor`: what runs on this machine, op by op, and why; what is known to go wrong here; what is missing.

`--verify` holds every op to its definition on this machine. `--json FILE` writes all of it for programs, `--json` alone
prints it. `python -m medmo_core` is the same command; `medmo --help` names the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .durable import write_json
from .errors import InputError
from .nearest import nearest_name

PRINTED = Path("-")


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verify", action="store_true", help="hold every op to its definition on this machine")
    parser.add_argument("--rooms", nargs="*", default=(), metavar="ROOM", help="verify only these rooms, such as giou")
    parser.add_argument(
        "--json", type=Path, nargs="?", const=PRINTED, metavar="FILE",
        help="also write the diagnosis to this file; without a file, print it in place of the text",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis; return 1 if an op failed its verification.

    Raises:
        InputError: a room that there is not, or a file that has not the name of a JSON file.
    """
    options = build_parser().parse_args(argv)
    if options.json not in (None, PRINTED) and (options.json.suffix.lower() != ".json" or options.json.is_dir()):
        raise InputError(f"--json {options.json}: expected the name of a JSON file, such as doctor.json")
    from . import doctor  # late: help need not wait for PyTorch

    known = [name for name, _ in doctor.rooms()]
    for name in options.rooms:
        if name not in known:
            near = nearest_name(name, known)
            hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(known)}"
            raise InputError(f"--rooms {name}: no such room; {hint}")
    diagnosis = doctor.diagnose()

    def kept() -> Iterator[dict[str, Any]]:
        """Write after each verdict: a kernel that hangs must not take the others' with it."""
        for verdict in doctor.verdicts(options.rooms):
            diagnosis["verdicts"].append(verdict)
            _write(options.json, diagnosis)
            yield verdict

    _write(options.json, diagnosis)
    lines = doctor.report(diagnosis, kept() if options.verify else None)
    if options.json == PRINTED:
        for _ in lines:
            pass  # the verdicts are made as the lines are
        print(json.dumps(diagnosis, indent=2, ensure_ascii=False))
    else:
        for line in lines:
            print(line, flush=True)
    return 0 if all(verdict["passed"] for verdict in diagnosis["verdicts"]) else 1


def _write(path: Path | None, diagnosis: Mapping[str, Any]) -> None:
    if path is not None and path != PRINTED:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, diagnosis, indent=2)


if __name__ == "__main__":
    raise SystemExit(main())
