"""The comparison of checkpoints: what was saved comes back, or there is no figure; nothing is left on the disk."""

import gc
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed import ProcessGroup

from benchmarks.recipes import checkpoint as b
from benchmarks.suite.comparison import measure
from benchmarks.suite.schema import Row
from medmo_recipes.training.checkpoints import checkpoints as ours

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def rows() -> dict[tuple[str, str], Row]:
    """Measure the short comparison; (way, direction) -> row."""
    (comparison,) = b.comparisons(CPU, short=True)
    return {(row.way, row.direction): row for row in measure(replace(comparison, seconds=0.0, repeats=3), CPU)}


def test_both_bring_everything_back_and_leave_nothing(folder: Path) -> None:
    found = rows()
    peer, behind = "torch.save, torch.load", "ours, written behind"
    whole = {(way, direction) for way in ("ours", peer) for direction in b.DIRECTIONS}
    assert found.keys() == whole | {(behind, "stall")}
    assert all(row.status == "timed" and row.checked is not None for row in found.values())
    gc.collect()
    assert list(folder.iterdir()) == []


def test_ours_is_wrong_where_something_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget_one(path: Path, tensors: dict[str, torch.Tensor], group: ProcessGroup | None) -> None:
        name = next(name for name in tensors if name.startswith("exp_avg:"))
        honest(path, {n: tensor for n, tensor in tensors.items() if n != name}, group)

    honest = ours.read_tensors
    monkeypatch.setattr(ours, "read_tensors", forget_one)
    found = rows()
    assert {row.status for (way, _), row in found.items() if way.startswith("ours")} == {"wrong"}
    assert {row.status for (way, _), row in found.items() if way.startswith("torch")} == {"timed"}


def test_the_peer_is_wrong_where_something_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **named: dict(list(honest(*given, **named).items())[1:]))
    found = rows()
    assert "from the state saved" in found["torch.save, torch.load", "resume"].reason
    assert found["ours", "resume"].status == "timed"


def test_listing_makes_no_state_and_says_its_true_size(monkeypatch: pytest.MonkeyPatch) -> None:
    state = b.State(0, CPU)
    size = sum(tensor.nbytes for tensor in state.tensors.values())
    monkeypatch.setattr(b, "State", pytest.fail)
    (short,), (whole,) = (b.comparisons(CPU, short=short) for short in (True, False))
    assert short.work["save"].items == pytest.approx(size / 1e9, rel=1e-3)
    assert 0.15 < whole.work["save"].items < 0.35 and whole.name != short.name
