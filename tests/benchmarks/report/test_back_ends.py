"""Tables are made from results: a peer must win clearly and everywhere, and nothing else is touched."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import back_ends as tables
from benchmarks.suite import comparison as suite
from benchmarks.suite import schema
from benchmarks.suite.comparison import Ready, Way
from benchmarks.suite.schema import Check, Machine, Result, Row
from medmo_kernels import back_ends
from medmo_kernels.spec import OpSpec
from medmo_kernels.tables import TABLE

MACHINE = Machine("Test 200", "cuda", 90, "1", "13", 1, 1, 1, {}, "abc1234", False, "2026-01-02T03:04:05+00:00")


def spec_of(room: str, op: str) -> OpSpec:
    return next(s for s in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS if s.name == op)


def row(op: str, case: str, backend: str, median_us: float, spread: float = 0.01, **other: Any) -> Row:
    direction = "forward and backward" if spec_of(ROOM[op], op).differentiable else "forward"
    timed = {"median_us": median_us, "p20_us": median_us * (1 - spread), "p80_us": median_us * (1 + spread)}
    fields = {"way": tables.BY + backend, "role": "ours", "status": "timed", "direction": direction, **timed, **other}
    return Row("kernels", op, case, "bfloat16", checked=Check("truth", 0.0, 1.0), samples_us=(median_us,), **fields)


ROOM = {"patch_embed": "patch_embed", "giou": "giou", "attention": "attention"}
CASES = {op: list(spec_of(room, op).bench.sizes) for op, room in ROOM.items()}


def cases_of(op: str, shape: str) -> list[str]:
    return [case for case in CASES[op] if tables.class_of(spec_of(ROOM[op], op), case) == shape]


def made(rows: list[Row], **machine: Any) -> Result:
    return Result(Machine(**{**vars(MACHINE), **machine}), False, {}, tuple(rows))


def chosen(table: Mapping[str, Any], op: str, shape: str, capability: int = 90) -> list[Mapping[str, Any]]:
    place = {"op": op, "shape": shape, "capability": capability}
    return [row for row in table["rows"] if place.items() <= row.items()]


def shipped(room: str) -> dict[str, Any]:
    return json.loads((tables.ROOMS / room / TABLE).read_text(encoding="utf-8"))


MANY = "more than 8192 patches"


@pytest.mark.parametrize(
    ("peers_us", "spread", "backend"),
    [(90.0, 0.01, "linear"), (98.0, 0.001, "triton"), (110.0, 0.01, "triton"), (90.0, 0.1, "triton")],
    ids=["faster", "within the margin", "slower", "within the spread"],
)
def test_a_peer_must_win_clearly(peers_us: float, spread: float, backend: str) -> None:
    cases = cases_of("patch_embed", MANY)
    assert len(cases) > 1
    rows = [row("patch_embed", case, "triton", 100.0, spread) for case in cases]
    rows += [row("patch_embed", case, "linear", peers_us, spread) for case in cases]
    table = tables.updated(shipped("patch_embed"), spec_of("patch_embed", "patch_embed"), made(rows))
    (found,) = chosen(table, "patch_embed", MANY)
    best, other = (peers_us, 100.0) if backend == "linear" else (100.0, peers_us)
    assert found["backend"] == backend
    assert found["measured"] == {
        "device": "Test 200", "date": "2026-01-02", "commit": "abc1234", "ratio": round(other / best, 3),
        "over": "triton" if backend == "linear" else "linear",
    }  # fmt: skip
    untouched = [old for old in table["rows"] if old is not found]
    assert untouched == shipped("patch_embed")["rows"]


def test_a_peer_must_win_every_case_of_a_class() -> None:
    first, *others = cases_of("patch_embed", MANY)
    rows = [row("patch_embed", case, "triton", 100.0) for case in (first, *others)]
    rows += [row("patch_embed", first, "linear", 101.0), *(row("patch_embed", c, "linear", 50.0) for c in others)]
    table = tables.updated(shipped("patch_embed"), spec_of("patch_embed", "patch_embed"), made(rows))
    (found,) = chosen(table, "patch_embed", MANY)
    assert found["backend"] == "triton" and found["measured"]["ratio"] == 0.5  # the loss elsewhere is told


def test_the_fastest_of_several_peers_serves() -> None:
    shape = "causal, head_dim 128"
    times = {"triton": 100.0, "varlen": 90.0, "xformers": 80.0, "sdpa": 120.0}
    rows = [row("attention", case, name, us) for case in cases_of("attention", shape) for name, us in times.items()]
    table = tables.updated(shipped("attention"), spec_of("attention", "attention"), made(rows))
    (found,) = chosen(table, "attention", shape)
    assert found["backend"] == "xformers" and found["measured"]["over"] == "varlen"
    assert len(chosen(table, "attention", shape, 80)) == 1


def test_one_back_end_alone_is_no_measurement() -> None:
    rows = [row("giou", case, "triton", 100.0) for case in CASES["giou"]]
    rows += [row("giou", case, "reference", 50.0, direction="forward") for case in CASES["giou"]]
    assert tables.updated(shipped("giou"), spec_of("giou", "giou"), made(rows)) == shipped("giou")


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the tool read and write tables elsewhere."""
    for path in tables.ROOMS.glob(f"*/{TABLE}"):
        (tmp_path / path.parent.name).mkdir()
        (tmp_path / path.parent.name / TABLE).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(tables, "ROOMS", tmp_path)
    return tmp_path


def read_all(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text(encoding="utf-8") for path in folder.glob(f"*/{TABLE}")}


def test_results_from_elsewhere_leave_the_tables_as_they_are(copies: Path, tmp_path: Path) -> None:
    before = read_all(copies)
    rows = [row("giou", case, name, us) for case in CASES["giou"] for name, us in (("triton", 9.0), ("reference", 1.0))]
    for name, result in {
        "cpu.json": made(rows, kind="cpu", capability=0),
        "short.json": Result(MACHINE, True, {}, tuple(rows)),
    }.items():
        schema.write(result, tmp_path / name)
    files = [str(tmp_path / "cpu.json"), str(tmp_path / "short.json")]
    assert tables.main([]) == 0 and tables.main(files) == 0 and tables.main([*files, "--write"]) == 0
    assert read_all(copies) == before


def test_the_newest_run_decides_and_is_written_once(copies: Path, tmp_path: Path) -> None:
    for date, peers_us in (("2026-02-02", 200.0), ("2026-01-01", 50.0)):
        times = (("triton", 100.0), ("reference", peers_us))
        rows = [row("giou", case, name, us) for case in CASES["giou"] for name, us in times]
        schema.write(made(rows, date=date), tmp_path / f"{date}.json")
    files = [str(path) for path in sorted(tmp_path.glob("*.json"))]
    before = read_all(copies)
    assert tables.main(files) == 1 and read_all(copies) == before
    assert tables.main([*files, "--write"]) == 0 and tables.main(files) == 0
    after = read_all(copies)
    assert [room for room in after if after[room] != before[room]] == ["giou"]
    (found,) = chosen(json.loads(after["giou"]), "giou", "fp32, fp16, bf16")
    assert found["backend"] == "triton" and found["measured"]["date"] == "2026-02-02"


def test_each_back_end_serves_alone_while_it_is_timed() -> None:
    seen: list[str | None] = []

    def look() -> None:
        seen.append(back_ends.forced_backend("giou"))

    def build() -> Ready:
        look()
        return Ready({"forward": look}, Check("truth", 0.0, 1.0))

    ours = Way(suite.OURS, build, "ours")
    assert tables.back_end_ways(spec_of("giou", "giou"), ours, torch.device("cpu")) == []
    ways = tables.back_end_ways(spec_of("giou", "giou"), ours, torch.device("cuda"))
    assert [way.name for way in ways] == ["ours, by triton", "ours, by reference"]
    ready = ways[1].build()
    look()
    ready.calls["forward"]()
    assert seen == ["reference", None, "reference"]
