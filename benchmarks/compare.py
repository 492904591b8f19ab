"""Compare two results, or two commits: which of ours became faster, which slower, and which is within noise.

    python -m benchmarks.compare A.json B.json             # two result files
    python -m benchmarks.compare COMMIT_A COMMIT_B         # as stored under benchmarks/results for this device
    python -m benchmarks.compare A B --run -k giou         # measure both commits now, in turns, then compare
    python -m benchmarks.compare A B --all                 # peers too, whose code is the same: they show drift

The ratio is A's median over B's: above 1 B is faster, with a 95 % bootstrap interval. The exit status is 1 where one of
ours is slower in B beyond noise and by more than 3 %, or lost its figure; 2 where the two cannot be compared.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .report.page import RESULTS, stored_results
from .report.ratios import Ratio, ratio
from .report.tables import duration
from .suite.commits import measure_in_turns, short_name
from .suite.comparison import OURS
from .suite.machine import default_device, describe, folder_name
from .suite.schema import Result, ResultError, Row, read

NOISE = 0.03
"""A slowdown so small is not held against B."""

Key = tuple[str, ...]
Measure = Callable[[str, str, Sequence[str]], tuple[list[Result], list[Result]]]


def samples(results: Sequence[Result]) -> dict[Key, list[float]]:
    """Return the durations of every way that has a figure in all of these runs, by place and way."""
    found: dict[Key, list[float]] = {}
    for number, result in enumerate(results):
        timed = {(*row.place, row.way): list(row.samples_us) for row in result.rows if row.status == "timed"}
        found = {key: found.get(key, []) + timed[key] for key in timed if number == 0 or key in found}
    return found


def faults(results: Sequence[Result]) -> dict[Key, str]:
    """Return why ways of ours have no figure, by place and way."""
    rows: list[Row] = [row for result in results for row in result.rows]
    return {(*row.place, row.way): f"{row.status}: {row.reason}" for row in rows
            if row.way == OURS and row.status != "timed"}  # fmt: skip


def verdict(found: Ratio) -> str:
    """Say what a ratio of A over B means."""
    return {"faster": "faster", "slower": "SLOWER", "level": "within noise"}[found.standing]


def compare(a: Sequence[Result], b: Sequence[Result], *, everyone: bool) -> tuple[str, bool]:
    """Compare the runs of A with those of B.

    Args:
        a: runs of one commit on one machine.
        b: runs of another commit on the same machine.
        everyone: list peers too.

    Returns:
        The table as text, and whether B is as good as A.
    """
    before, after = samples(a), samples(b)
    shared = [key for key in before if key in after]
    ratios = {key: ratio(before[key], after[key]) for key in shared}
    ours = [key for key in shared if key[-1] == OURS]
    lines = _table({key: ratios[key] for key in (shared if everyone else ours)}, before, after)
    others = [ratios[key].value for key in shared if key[-1] != OURS]
    if others:
        lines.append(f"drift: {len(others)} ways whose code is not ours have a median ratio of "
                     f"{statistics.median(others):.3f}")  # fmt: skip
    lost = [(key, why) for key, why in faults(b).items() if key in before]
    lines += [f"LOST: {_named(key)} had a figure in A and has none in B: {why}" for key, why in lost]
    for name, one, two in (("A", before, after), ("B", after, before)):
        alone = [key for key in one if key not in two and key[-1] == OURS and key not in dict(lost)]
        if alone:
            lines.append(f"only in {name}: {'; '.join(map(_named, alone))}")
    slower = [key for key in ours if ratios[key].standing == "slower" and ratios[key].value < 1 / (1 + NOISE)]
    standings = [ratios[key].standing for key in ours]
    lines.append(f"ours: {standings.count('faster')} faster, {standings.count('level')} within noise, "
                 f"{standings.count('slower')} slower, {len(slower)} of them by more than {NOISE:.0%}")  # fmt: skip
    return "\n".join(lines), not slower and not lost


def _named(key: Key) -> str:
    level, subject, case, dtype, direction, way = key
    return f"{level} / {subject}, {case}, {dtype}, {direction}" + ("" if way == OURS else f" / {way}")


def _table(
    ratios: Mapping[Key, Ratio], before: Mapping[Key, Sequence[float]], after: Mapping[Key, Sequence[float]]
) -> list[str]:
    rows = [("what", "A", "B", "A over B", "")]
    for key, found in ratios.items():
        median_a, median_b = (duration(statistics.median(side[key])) for side in (before, after))
        rows.append((_named(key), median_a, median_b, str(found), verdict(found)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def stored(name: str, results: Path) -> Result:
    """Return a result file, or the newest stored result of a commit on this device.

    Raises:
        ResultError: there is none.
    """
    if Path(name).is_file():
        return read(Path(name))
    commit = short_name(name)
    device = folder_name(describe(default_device()))
    for candidate in stored_results(results):
        machine = candidate.result.machine
        if candidate.device == device and machine.commit == commit and not machine.changed:
            return candidate.result
    raise ResultError(f"commit {commit} has no result in {results / device}: measure it with --run")


def check_comparable(results: Sequence[Result]) -> None:
    """Raise ResultError where results are of different machines or forms."""
    for what in ("device", "threads", "cores"):
        values = {str(getattr(result.machine, what)) for result in results}
        if len(values) > 1:
            raise ResultError(f"they differ in {what}: {', '.join(sorted(values))}")
    if len({result.short for result in results}) > 1:
        raise ResultError("one of them is of the short form")


def main(argv: Sequence[str] | None = None, results: Path = RESULTS, measure: Measure = measure_in_turns) -> int:
    """Compare; see the module for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="result file or commit")
    parser.add_argument("b", metavar="B", help="result file or commit")
    parser.add_argument("--all", action="store_true", help="list peers too")
    parser.add_argument("--run", action="store_true", help="measure both commits now, A, B, A, B")
    parser.add_argument("-k", metavar="EXPR", help="with --run: only these, as in pytest")
    arguments = parser.parse_args(argv)
    if arguments.k and not arguments.run:
        parser.error("-k chooses what --run measures")
    try:
        if arguments.run:
            words = ["-k", arguments.k] if arguments.k else []
            a, b = measure(short_name(arguments.a), short_name(arguments.b), words)
        else:
            a, b = [stored(arguments.a, results)], [stored(arguments.b, results)]
        check_comparable([*a, *b])
    except (ResultError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    for name, runs in (("A", a), ("B", b)):
        machine = runs[0].machine
        copy = max(run.ceilings["copy_bytes_per_s"] for run in runs) / 1e9
        changed = " with uncommitted changes" if machine.changed else ""
        print(f"{name}: commit {machine.commit}{changed}, {machine.date}, {len(runs)} run(s), copy {copy:.3g} GB/s")
    text, good = compare(a, b, everyone=arguments.all)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
