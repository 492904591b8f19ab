"""The benchmark of rollouts: what it compares gives the same answers, and it would notice if it did not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bench_rollout as b
from benchmarks import bench_shared_prefix
from medmo_core.data.packing import pack


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_shared_prefix, "SIDE", 4)
    monkeypatch.setattr(b, "TEXT", {"num_hidden_layers": 2})
    monkeypatch.setattr(b, "ANSWERS", 2)
    monkeypatch.setattr(b, "LENGTH", 3)
    monkeypatch.setattr(b, "PROMPTS", 6)
    monkeypatch.setattr(b, "STOP_SHARE", 4)
    monkeypatch.setattr(b, "UNEVEN", replace(b.UNEVEN, num_generations=2, max_new_tokens=9, rows_per_pass=4))
    monkeypatch.setattr(b, "header", lambda device: {"device": "a test", "date": "", "commit": "", "versions": {}})


def test_it_says_what_was_timed_and_writes_it_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = b.main(["--out", str(tmp_path), "--repeats", "3", "--budget-s", "0"])
    result = json.loads((tmp_path / "rollout.json").read_text())
    assert (tmp_path / "rollout.md").read_text() == capsys.readouterr().out[:-1]
    prefill, refill = result["prefill"], result["refill"]
    assert prefill["what"] == "2 answers of 3 tokens to one prompt of 26 tokens"
    assert list(prefill["ways"]) == ["prompt once", "prompt in each row", "prompt in each row, image encoded once"]
    assert prefill["difference"] < b.TOLERANCE and refill["same"] == 1.0
    assert refill["ways"]["rows refilled"]["steps"] < refill["ways"]["fixed batches"]["steps"]
    assert status == (0 if prefill["ways"]["prompt in each row"]["ratio"] >= b.REQUIRED else 1)


def test_ways_that_differ_are_noticed() -> None:
    model = b.make_model(torch.float64)
    item = b.image_prompt(model)
    ways = b.prefill_ways(model, item, 0.0)
    assert b.largest_difference(ways) < b.TOLERANCE
    dark = replace(item, patches={name: 0 * rows for name, rows in item.patches.items()})
    other = model.generate(pack([dark]), max_new_tokens=b.LENGTH, num_generations=b.ANSWERS, stop_token_ids=())
    assert b.largest_difference({**ways, "other": lambda: other}) > 1e-6
