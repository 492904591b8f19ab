"""The box reward page says what the rewards pay, and repeats the published formula's figures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medmo_core.boxes import Boxes
from medmo_core.profile import CheckpointProfile
from medmo_core.rewards import box_reward, medmo_box_reward
from tools import box_reward_page as page

PIXELS = CheckpointProfile(frame="pixel")


def test_the_page_is_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.main(["--check"]) == 0
    stale = tmp_path / "box_reward.md"
    stale.write_text(page.PAGE.read_text(encoding="utf-8").replace("0.896", "0.986"), encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", stale)
    assert page.main(["--check"]) == 1
    assert page.PLOT.stat().st_size > 10_000


def test_published_figures() -> None:
    """The table derived from the paper's formula, for squares of 200, 50 and 10 px in an image of 1024 px."""
    expected = {
        "IoU 0.5": (0.896, 0.920, 0.927),
        "edges touch": (0.758, 0.832, 0.852),
        "2 widths off": (0.612, 0.760, 0.800),
        "5 widths off": (0.269, 0.639, 0.737),
        "whole image": (0.456, 0.377, 0.357),
    }
    for name, row in expected.items():
        for side, value in zip(page.SIZES, row, strict=True):
            assert page.medmo(page.GEOMETRY[name](side)) == pytest.approx(value, abs=5e-4), (name, side)


START, MIDWAY, LATE = ({"trainer_state": SimpleNamespace(global_step=step, max_steps=1000)} for step in (0, 250, 900))
REWARDS: list[tuple[int, Any, dict[str, Any]]] = [
    (0, box_reward, START),
    (1, box_reward, MIDWAY),
    (2, box_reward, LATE),
    (2, box_reward, {}),
    (3, box_reward, {"formula": "overlap"}),
    (4, box_reward, {"formula": "iou"}),
    (5, box_reward, {"formula": "f1"}),
    (6, medmo_box_reward, {}),
    (7, medmo_box_reward, {"lambda_fn": 0.5, "lambda_fp": 0.5}),
    (8, medmo_box_reward, {"lambda_fn": 0.5, "lambda_fp": 0.5, "penalty_per_truth": False}),
    (9, medmo_box_reward, {"squared": True}),
    (10, medmo_box_reward, {"compare_labels": True, "empty_score": 1.0}),
]


@pytest.mark.parametrize(("row", "reward", "options"), REWARDS)
def test_rows_are_what_the_rewards_pay(row: int, reward: Any, options: dict[str, Any]) -> None:
    """For every case inside the image, from text to score."""
    size = (int(page.IMAGE), int(page.IMAGE))
    cases = [make(side) for side in page.SIZES for make in page.GEOMETRY.values()] + list(page.COUNTS.values())
    cases = [found for found in cases if all(corner <= page.IMAGE for box in found.pred for corner in box)]
    assert len(cases) == 3 * len(page.GEOMETRY) - 1 + len(page.COUNTS)

    def boxes(rows: Any, labels: Any) -> Boxes:
        return Boxes(torch.tensor(rows, dtype=torch.float64), "pixel", size, tuple(f"kind {n}" for n in labels))

    def said(found: Any) -> str:
        items = [f'{{"bbox_2d": {list(box)}, "label": "kind {n}"}}'
                 for box, n in zip(found.pred, found.pred_labels, strict=True)]  # fmt: skip
        return "[" + ", ".join(items) + "]"

    truth = [boxes(found.truth, found.truth_labels) for found in cases]
    paid = reward(
        [said(found) for found in cases], task=["grounding"] * len(cases), boxes=truth,
        image_size=[size] * len(cases), profile=PIXELS, **options,
    )  # fmt: skip
    assert paid == pytest.approx([list(page.VARIANTS.values())[row](found) for found in cases], abs=1e-9)


def test_every_row_of_ours_is_compared() -> None:
    others = [row for row, name in enumerate(page.VARIANTS) if "box" not in name]
    assert sorted({row for row, _, _ in REWARDS} | set(others)) == list(range(len(page.VARIANTS)))


def test_others_formulas_on_hand_computed_cases() -> None:
    two_on_one = page.case([(0, 0, 10, 10), (0, 0, 10, 5)], [(0, 0, 10, 10)])
    assert page.mean_iou(two_on_one) == pytest.approx(0.75)
    assert page.best_iou_f1(two_on_one) == pytest.approx(2 * 0.75 * 1 / 1.75)
    assert page.three_tests(two_on_one) == pytest.approx(1 / 2)
    near = page.case([(20, 0, 40, 20)], [(0, 0, 20, 20)])  # corners 10 px off in the mean: not below 10; centre 20 px
    assert page.three_tests(near) == pytest.approx(1 / 3)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
