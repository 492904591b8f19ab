"""Progress of a whole run: shares, pace, and stages that are followed through their files."""

import time
from pathlib import Path

import pytest

from medmo_recipes.commands import time_left
from medmo_recipes.commands.time_left import Whole, last_step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now[0])
    return now


def test_parts_are_named_with_their_share_and_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Whole({"first": 10, "second": 30})
    with whole.part("first"):
        clock[0] += 20
    with whole.part("second"):
        clock[0] += 30
        whole.reach(0.5)
        whole.reach(0.4)  # another count of the same part: it never goes back
        assert whole.line() == "62% done, about 30s left"
    assert whole.line() == "100% done, about 0s left"
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line] == [
        "[1 of 2] first: 25% of the whole; 0% done",
        "[2 of 2] second: 75% of the whole; 25% done, about 1m00s left",
        "quickstart: second; 62% done, about 30s left",
    ]


def test_a_part_that_fails_ends_the_run_and_not_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    whole = Whole({"only": 1})
    with pytest.raises(RuntimeError, match="no memory"), whole.part("only"):
        raise RuntimeError("no memory")


def test_a_stage_is_followed_through_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_left, "EVERY_S", 0.03)
    metrics, whole = tmp_path / "metrics.jsonl", Whole({"stage": 1.0, "rest": 1.0})
    with whole.part("stage"), whole.watching(metrics, 40):
        assert last_step(metrics) == 0
        metrics.write_text('{"step": 1}\n{"step": 20, "loss": 2.0}\n{"event": "saved"}\n{"st', encoding="utf-8")
        assert last_step(metrics) == 20
        for _ in range(500):
            if "25% done" in whole.line():
                break
            time.sleep(0.01)
        assert "25% done" in whole.line()
    assert "50% done" in whole.line()
