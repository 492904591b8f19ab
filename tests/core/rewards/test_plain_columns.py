"""Rewards read columns of plain values as they read our own types, and what cannot be read is an error."""

import importlib
import json
from typing import Any

import pytest
import torch

from medmo_core.boxes import Boxes, ImageBoxes
from medmo_core.profile import MEDMO_CANVAS768
from medmo_core.rewards import REWARDS, plain_row
from medmo_core.rewards.plain import _boxes, reads_plain

CASES = [
    pytest.param(name, example, id=f"{name}: {example.about}")
    for name in REWARDS
    for example in importlib.import_module(f"medmo_core.rewards.{name}").EXAMPLES
]


@pytest.mark.parametrize(("name", "example"), CASES)
def test_every_example_scores_the_same(name: str, example: Any) -> None:
    columns = {key: vars(v) if type(v).__name__ == "SimpleNamespace" else v for key, v in example.columns.items()}
    if "facts" in columns:
        columns["facts"] = [vars(fact) for fact in columns["facts"]]
    row = json.loads(json.dumps(plain_row(columns)))
    (value,) = REWARDS[name]([example.completion], **{key: [v] for key, v in row.items()})
    assert value == (None if example.score is None else pytest.approx(example.score, abs=1e-6))


def test_boxes_come_back() -> None:
    first = Boxes(torch.tensor([[1.5, 2.0, 30.0, 40.0]]), "pixel", (50, 60), ("liver",))
    for boxes in (first, Boxes.empty((7, 9)), ImageBoxes((Boxes.empty((7, 9)), first), default=1)):
        assert _boxes(json.loads(json.dumps(plain_row({"boxes": boxes})))["boxes"]) == boxes


def test_a_profile_comes_back_and_one_with_faults_does_not() -> None:
    seen: list[Any] = []
    reward = reads_plain(lambda completions, profile, **columns: seen.append(profile) or [0.0])
    reward(["a"], profile=[json.loads(json.dumps(plain_row({"profile": MEDMO_CANVAS768})))["profile"]])
    assert seen == [[MEDMO_CANVAS768]]
    with pytest.raises(ValueError, match="column profile: unknown field"):
        reward(["a"], profile=[{"grammer": "medmo_box"}])


def test_our_own_types_are_handed_on_as_they_are() -> None:
    seen: list[Any] = []
    reward = reads_plain(lambda completions, **columns: seen.append(columns) or [0.0])
    boxes = [Boxes.empty((7, 9)), None]
    reward(["a", "b"], boxes=boxes, image_size=[(7, 9), None], other=[{"a": 1}, 2])
    assert seen[0]["boxes"][0] is boxes[0] and seen[0]["boxes"][1] is None
    assert seen[0]["image_size"] == [(7, 9), None] and seen[0]["other"] == [{"a": 1}, 2]
