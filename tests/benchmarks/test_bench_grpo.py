"""The benchmarks of GRPO compare the same work, and would notice if they did not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench_grpo, bench_grpo_step, bench_shared_prefix
from medmo_core.models import MedMO


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_grpo, bench_shared_prefix):
        monkeypatch.setattr(module, "SIDE", 4)
    size = bench_grpo_step.Size("debug", 1, 2, 3, 4, 12, torch.float32, "adamw")
    monkeypatch.setitem(bench_grpo_step.SIZES, "cpu", size)
    about = {"device": "a test", "date": "", "commit": "", "versions": {}}
    for module in (bench_grpo, bench_grpo_step):
        monkeypatch.setattr(module, "header", lambda device: about)


def test_the_update_is_compared_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_grpo, "GROUP", 2)
    monkeypatch.setattr(bench_grpo, "LENGTH", 3)
    status = bench_grpo.main(["--out", str(tmp_path), "--budget-s", "0"])
    result = json.loads((tmp_path / "grpo.json").read_text())["update"]
    assert status == (0 if result["passed"] else 1)
    assert result["difference"] < 1e-9 and result["image_tokens"] == 4
    assert [row["tokens"] for row in result["ways"]] == [32, 58, 58]
    assert "rows that repeat the prompt" in capsys.readouterr().out


def test_updates_that_differ_are_noticed() -> None:
    model = MedMO.from_config("tiny", vision=bench_grpo.VISION)
    batches = bench_grpo.layouts(model, 2, 3)
    assert batches[bench_grpo.SHARED].batch.prompt_of is not None
    assert bench_grpo.largest_difference(batches) < bench_grpo.TOLERANCE
    rows = batches[bench_grpo.APART]
    other = replace(rows, advantages=rows.advantages.flip(0))
    assert bench_grpo.largest_difference({**batches, bench_grpo.APART: other}) > 1e-6


@pytest.mark.parametrize("wrong", [False, True])
def test_a_whole_step_is_timed_beside_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    pytest.importorskip("transformers")
    if wrong:  # the peer is handed other completions
        honest = bench_grpo_step.their_side

        def other(model: MedMO, size: Any, attention: str) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(bench_grpo_step, "make_completions", lambda *_: [[[5, 6, 7], [8, 9, 1]]])
                return honest(model, size, attention)

        monkeypatch.setattr(bench_grpo_step, "their_side", other)
    side = bench_grpo_step.SIZES["cpu"]
    found = bench_grpo_step.run(side, torch.device("cpu"), budget_s=0.0)
    ours, theirs, again = found
    assert all(ours[f"{phase}_s"] > 0 for phase in ("rollout", "reward", "update")) and ours["ratio"] == 1.0
    assert again["grad_norm"] == ours["grad_norm"]
    if wrong:
        assert "is off by" in theirs["wrong"] and "step_s" not in theirs
        return
    assert theirs["mean_logp"] == pytest.approx(ours["mean_logp"], rel=1e-4)
    assert theirs["step_s"] > theirs["rollout_s"] + theirs["update_s"] > 0
    page = bench_grpo_step.markdown({**bench_grpo_step.header(torch.device("cpu")), "what": "", "steps": found})
    assert "| ours |" in page and "research use only" in page
