"""The benchmark of shared prompts: what it compares is the same work, and it would notice if it were not."""

from dataclasses import replace

import pytest
import torch

from benchmarks import bench_shared_prefix as b
from medmo_core.models import MedMO


@pytest.fixture(autouse=True)
def small_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "SIDE", 4)


def test_a_case_prints_tokens_seconds_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    b.compare(2, 3, repeats=3, budget_s=0.0)
    first, *rows, verdict = capsys.readouterr().out.splitlines()
    assert first == "2 answers of 3 tokens to one image of 4 tokens"
    assert [row.split("  ")[1] for row in rows] == ["shared prompt", "separate rows",
                                                    "separate rows with the image encoded once"]  # fmt: skip
    assert ["32 tokens" in rows[0], "58 tokens" in rows[1], "58 tokens" in rows[2]] == [True] * 3
    assert "agree to" in verdict and verdict.endswith("FAILED")  # 1.8 times fewer tokens are too few


def test_ways_that_differ_are_noticed() -> None:
    model = MedMO.from_config("tiny", vision=b.VISION)
    batches = b.packings(b.make_items(model, 2, 3))
    assert batches["shared prompt"].prompt_of is not None
    assert len(batches["separate rows"].image_grid_thw["qwen3_vl"]) == 2
    assert b.largest_difference(batches) < b.TOLERANCE
    rows = batches["separate rows"]
    other = replace(rows, patches={"qwen3_vl": torch.zeros_like(rows.patches["qwen3_vl"])})
    assert b.largest_difference({**batches, "separate rows": other}) > 1e-6
