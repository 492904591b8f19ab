"""Choose the back ends of the shipped tables from results: which one serves an op, by class of shapes and capability.

    python -m benchmarks.report.back_ends benchmarks/results/cuda-*/*.json          # exit status 1: a table is stale
    python -m benchmarks.report.back_ends benchmarks/results/cuda-*/*.json --write  # rewrites table.json of the rooms

Read are runs on a GPU, and in them the rows of `back_end_ways`: an op timed while one back end alone served it. Of
several runs on one capability the newest decides. Rows of classes that nobody measured stay as they are.
"""

import argparse
import importlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import medmo_kernels
from medmo_core.durable import write_text
from medmo_kernels import back_ends
from medmo_kernels.spec import OpSpec, ShapesAlone
from medmo_kernels.tables import TABLE

from ..suite import schema
from ..suite.comparison import Ready, Way
from ..suite.schema import Result, Row

ROOMS = Path(medmo_kernels.__path__[0])
BY = "ours, by "
"""What the names of `back_end_ways` begin with."""
OWN = "triton"
MARGIN = 1.03
"""A peer must be faster by more than this in every case of a class, and beyond the spread of both: else ours stays."""
Table = dict[str, Any]


def back_end_ways(spec: OpSpec, ours: Way, device: torch.device) -> list[Way]:
    """Return our way once for each back end that an op's table may name, which alone serves it there.

    Args:
        spec: spec of the op.
        ours: the way that follows the table.
        device: device of the ways; only on CUDA is there a choice.
    """
    return [_served_by(ours, spec.name, backend) for backend in spec.back_ends if device.type == "cuda"]


def _served_by(ours: Way, op: str, backend: str) -> Way:
    def build() -> Ready:
        with back_ends.served_by(op, backend):
            made = ours.build()
        return Ready({direction: within(call) for direction, call in made.calls.items()}, made.checked)

    def within(call: Callable[[], object]) -> Callable[[], object]:
        def served() -> object:
            with back_ends.served_by(op, backend):  # around backward too: it chooses anew
                return call()

        return served

    return Way(BY + backend, build, "ours")


def specs() -> Iterator[tuple[str, OpSpec]]:
    """Yield room and spec of every op whose table names back ends."""
    for path in sorted(ROOMS.glob(f"*/{TABLE}")):
        for spec in importlib.import_module(f"medmo_kernels.{path.parent.name}.cases").SPECS:
            if spec.shape_class is not None:
                yield path.parent.name, spec


def class_of(spec: OpSpec, case: str) -> str | None:
    """Return the class of shapes of a benchmark case, or None for one that the op's cases do not know."""
    if spec.shape_class is None or case not in spec.bench.sizes:
        return None
    with ShapesAlone():
        arguments = spec.make(spec.bench.sizes[case], torch.Generator(), torch.bfloat16)
    return spec.shape_class(arguments)


def measured_cases(spec: OpSpec, result: Result) -> dict[str, list[dict[str, Row]]]:
    """Return, by class of shapes, what a result holds of each case: back end -> row, in the direction that decides."""
    direction = "forward and backward" if spec.differentiable else "forward"
    cases: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in result.rows:
        if (row.subject, row.direction, row.status) == (spec.name, direction, "timed") and row.way.startswith(BY):
            cases[row.case][row.way.removeprefix(BY)] = row
    found: dict[str, list[dict[str, Row]]] = defaultdict(list)
    for case, rows in cases.items():
        shape = class_of(spec, case)
        if shape is not None and OWN in rows and len(rows) > 1:
            found[shape].append(rows)
    return found


def beats(peer: Row, ours: Row) -> bool:
    """Say whether a peer is faster by more than the margin and beyond what both vary."""
    return peer.median_us * MARGIN < ours.median_us and peer.p80_us < ours.p20_us


def fastest(cases: Sequence[Mapping[str, Row]]) -> tuple[str, float, str]:
    """Choose the back end for a class of shapes.

    Args:
        cases: what was measured of each case: back end -> row; ours among them, and a peer at least.

    Returns:
        The back end; in the worst of the cases, the time of the best other one over its own; that other one.
    """
    peers = set.intersection(*(set(rows) for rows in cases)) - {OWN}
    winners = [peer for peer in peers if all(beats(rows[peer], rows[OWN]) for rows in cases)]
    chosen = min(winners, key=lambda peer: math.prod(rows[peer].median_us for rows in cases), default=OWN)
    ratios = [(row.median_us / rows[chosen].median_us, name)
              for rows in cases for name, row in rows.items() if name != chosen]  # fmt: skip
    ratio, over = min(ratios)
    return chosen, ratio, over


def updated(table: Table, spec: OpSpec, result: Result) -> Table:
    """Return a room's table with what a result says of one op; every other row stays."""
    machine, rows = result.machine, list(table["rows"])
    for shape, cases in measured_cases(spec, result).items():
        chosen, ratio, over = fastest(cases)
        commit = machine.commit + ", changed" * machine.changed
        measured = {"device": machine.device, "date": machine.date[:10], "commit": commit, "ratio": round(ratio, 3),
                    "over": over}  # fmt: skip
        place = {"capability": machine.capability, "op": spec.name, "shape": shape}
        new = {**place, "backend": chosen, "measured": measured}
        old = [row for row in rows if place.items() <= row.items()]
        if old:
            rows[rows.index(old[0])] = new
        else:
            rows.insert(_end_of_choices(rows), new)
    return {**table, "rows": rows}


def _end_of_choices(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return where the rows that name back ends end; they stand before the launch configurations."""
    return max((index + 1 for index, row in enumerate(rows) if "shape" in row), default=0)


def text_of(table: Table) -> str:
    """Return a table as its file has it: a row a line."""
    head = "".join(f'  {json.dumps(key)}: {json.dumps(value)},\n' for key, value in table.items() if key != "rows")
    rows = ",\n".join(f"    {json.dumps(row)}" for row in table["rows"])
    return f'{{\n{head}  "rows": [\n{rows}\n  ]\n}}\n'


def usable(results: Sequence[Result]) -> list[Result]:
    """Return the full runs on GPUs, the newest last."""
    found = [result for result in results if result.machine.kind == "cuda" and not result.short]
    return sorted(found, key=lambda result: result.machine.date)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the tables with results, or rewrite them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    results = usable([schema.read(path) for path in options.results])
    print(f"{len(results)} of {len(options.results)} results are full runs on a GPU")
    texts = {room: (ROOMS / room / TABLE).read_text(encoding="utf-8") for room, _ in specs()}
    tables = {room: json.loads(text) for room, text in texts.items()}
    for result in results:
        for room, spec in specs():
            tables[room] = updated(tables[room], spec, result)
    stale = [room for room, table in tables.items() if text_of(table) != texts[room]]
    for room in stale:
        if options.write:
            write_text(ROOMS / room / TABLE, text_of(tables[room]))
        print(f"{room}/{TABLE}: {'written' if options.write else 'the results say something else'}")
    return 1 if stale and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
