"""Invariant 28: rewards are pure, score each completion by itself, are timed, and total: every malformed input has a
stated value. Underneath: GIoU lies in [-1, 1], is symmetric and equals IoU where one box holds the other; assignments
are the best of all; a spurious box never raises the project's score; thousandths, pixels and resized images agree.
"""

import copy
import json
import math
import random
from collections.abc import Callable
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medmo_core.boxes import Boxes, print_boxes
from medmo_core.boxes import text as text_module
from medmo_core.data.records.sample import Answer, BoxAnnotation, Fact, ImageRef, Sample
from medmo_core.generation.decoding import Generation
from medmo_core.profile import QWEN3_VL, CheckpointProfile
from medmo_core.rewards import REWARDS, box_reward, medmo_box_reward
from medmo_kernels import assign, pairwise_giou
from medmo_kernels.giou import pairwise_giou_reference
from medmo_recipes.reinforcement.reward_calls.reward_set import RewardSet

Score = Callable[..., list[float | None]]

SIZE = (200, 100)
LIVER, SPLEEN = [100, 100, 300, 500], [600, 100, 800, 500]
"""The true boxes in thousandths; in pixels [20, 10, 60, 50] and [120, 10, 160, 50]."""
TWO = Boxes(torch.tensor([[20.0, 10, 60, 50], [120.0, 10, 160, 50]]), "pixel", SIZE, ("liver", "spleen"))
NONE = Boxes.empty(SIZE)
DIAGONAL = 2 * math.hypot(*SIZE)


def said(*boxes: tuple[str, list[Any]]) -> str:
    return json.dumps([{"bbox_2d": row, "label": label} for label, row in boxes])


def pay(l1: float, giou: float) -> float:
    """The published formula of one pair; l1 in pixels, all four corners."""
    return (5 * (1 - l1 / DIAGONAL) + giou + 1) / 7


GOOD = said(("liver", LIVER), ("spleen", SPLEEN))
ONE_HIT = (1 / 2 + 2 / 3) / 2
"""The default reward of one hit where two are true: overlap over max(1, 2), and F1."""

HALF = 2 / 3
"""The F1 of labels where one of two is named."""

# what -> completion, then the stated value of: box, medmo_box, presence, label, format
TWO_ARE_TRUE: dict[str, tuple[Any, float, float, float, float, float]] = {
    "the true boxes": (GOOD, 1, 1, 1, 1, 1),
    "no text": (None, 0, 0, 0, 0, 0),
    "a number": (7, 0, 0, 0, 0, 0),
    "a chat without content": ([{"role": "assistant"}], 0, 0, 0, 0, 0),
    "an empty text": ("", 0, 0, 0, 0, 0),
    "words": ("liver liver", 0, 0, 0, 0, 0),
    "an empty list": ("[]", 0, 0, 0, 0, 1),
    "a denial": ("No organ is seen.", 0, 0, 0, 0, 1),
    "JSON cut off after the first box": (said(("liver", LIVER))[:-1] + ', {"bbox_2d": [6',
                                         ONE_HIT, 0.5, 1, HALF, 0.5),
    "JSON cut off within the first box": (GOOD[:20], 0, 0, 0, 0, 0),
    "JSON without brackets": (GOOD.replace("[", "").replace("]", ""), 0, 0, 0, 0, 0),
    "another object": ('[{"colour": "red"}]', 0, 0, 0, 0, 0),
    "numbers that are text": (said(("liver", ["a", "b", "c", "d"])), 0, 0, 0, 0, 0),
    "three numbers": (said(("liver", LIVER[:3])), 0, 0, 0, 0, 0),
    "not a number": (said(("liver", [math.nan, 100, 300, 500])), 0, 0, 0, 0, 0),
    "infinity": (said(("liver", [100, 100, math.inf, 500])), 0, 0, 0, 0, 0),
    "a huge number": (said(("liver", [100, 100, 10**400, 500])), 0, 0, 0, 0, 0),
    "reversed corners": (said(("liver", [300, 500, 100, 100])), 0, 0, 0, 0, 0),
    "reversed corners beside a hit": (said(("liver", LIVER), ("spleen", SPLEEN[::-1])), ONE_HIT, 0.5, 1, HALF, 0.5),
    "no area": (said(("liver", [100, 100, 100, 500])), 0, pay(40, 0) / 2, 1, HALF, 1),
    "wholly outside": (said(("liver", [1100, 100, 1300, 500])), 0, 0, 0, 0, 0),
    "partly outside: clipped": (said(("liver", [-100, 100, 300, 500])),
                                0.5, pay(20, 2 / 3) / 2, 1, HALF, 0.5),
    "a duplicate": (said(("liver", LIVER), ("liver", LIVER)), 0.5, (1 + pay(200, -3 / 7)) / 2, 1, HALF, 0.5),
    "another label": (said(("kidney", LIVER)), 0, 0.5, 1, 0, 1),
    "labels exchanged": (said(("spleen", LIVER), ("liver", SPLEEN)), 0, 1, 1, 1, 1),
    "one of two": (said(("liver", LIVER)), ONE_HIT, 0.5, 1, HALF, 1),
    "three for two": (said(("liver", LIVER), ("spleen", SPLEEN), ("liver", [0, 800, 50, 900])),
                      (2 / 3 + 4 / 5) / 2, 1, 1, 1, 1),
    "pixels for thousandths": (said(("liver", [2000, 1000, 6000, 5000])), 0, 0, 0, 0, 0),
}  # fmt: skip
NOTHING_IS_TRUE: dict[str, tuple[Any, float, float, float, float, float]] = {
    "an empty list": ("[]", 1, 0, 1, 1, 1),
    "a denial": ("No liver is seen.", 1, 0, 1, 1, 1),
    "boxes": (GOOD, 0, 0, 0, 0, 1),
    "no text": (None, 0, 0, 0, 0, 0),
    "an empty text": ("", 0, 0, 0, 0, 0),
    "words": ("liver liver", 0, 0, 0, 0, 0),
    "JSON cut off": (GOOD[:20], 0, 0, 0, 0, 0),
    "reversed corners": (said(("liver", [300, 500, 100, 100])), 0, 0, 0, 0, 0),
    "wholly outside": (said(("liver", [1100, 100, 1300, 500])), 0, 0, 0, 0, 0),
}
# completion -> the stated value of: answer (yes is right), format of that answer
ANSWERS: dict[Any, tuple[float, float]] = {
    "Yes.": (1, 1), "No.": (0, 1), "yes no yes": (0, 1), "": (0, 0), " \n": (0, 0), "\x00": (0, 0), "[]": (0, 0),
    "<answer>": (0, 0), "<think>yes": (0, 0), "\ufffd": (0, 0), None: (0, 0), 7: (0, 0), (): (0, 0),
}  # fmt: skip
# completion -> the stated value of: factuality (the liver is present), format of that report
REPORTS: dict[Any, tuple[float, float]] = {
    "The liver is visible.": (1, 1), "The liver is visible": (1, 0.5), "The liver is absent.": (0, 1), "": (0, 0),
    " \n": (0, 0), "\x00": (0, 0), "[]": (0, 0), "7": (0, 0), "A picture.": (0, 1), None: (0, 0), 7: (0, 0), (): (0, 0),
}  # fmt: skip


def rows_of(name: str) -> list[tuple[str, Any, dict[str, Any], float | None]]:
    """Return what, completion, columns and stated value of every case of a reward; the last one does not apply."""
    box_rewards = ("box", "medmo_box", "presence", "label", "format")
    answer, report = SimpleNamespace(type="yesno", value="yes", choices=()), SimpleNamespace(type="report", value="")
    facts = (SimpleNamespace(finding="liver", status="present", side=None, site=None),)
    shared = {"answer": answer, "boxes": TWO, "facts": (), "image_size": SIZE, "profile": QWEN3_VL}
    found: list[tuple[str, Any, dict[str, Any], float | None]] = []
    if name in box_rewards:
        for truth, table in ((TWO, TWO_ARE_TRUE), (NONE, NOTHING_IS_TRUE)):
            columns = shared | {"task": "grounding", "boxes": truth}
            found += [(what, row[0], columns, row[1 + box_rewards.index(name)]) for what, row in table.items()]
    for kind, own, table, columns in (
        ("vqa", "answer", ANSWERS, shared | {"boxes": None}),
        ("report", "factuality", REPORTS, shared | {"boxes": None, "facts": facts, "answer": report}),
    ):
        if name in (own, "format"):
            values = ((text, row[int(name == "format")]) for text, row in table.items())
            found += [(f"{kind}: {text!r}", text, columns | {"task": kind}, value) for text, value in values]
    if name != "format":
        other = "report" if name != "factuality" else "vqa"
        found.append(("another task", "yes", shared | {"task": other, "answer": report, "facts": facts}, None))
    return found


def score(reward: Score, rows: list[tuple[str, Any, dict[str, Any], float | None]]) -> list[float | None]:
    columns = {key: [row[2][key] for row in rows] for key in rows[0][2]}
    return reward([row[1] for row in rows], **columns)


def check_total(rewards: dict[str, Score]) -> None:
    """Check every stated value, alone and in any company and order, and that nothing that is given is changed."""
    for name, reward in rewards.items():
        rows = rows_of(name)
        assert len(rows) > 5, f"reward {name} states no values: add them to this file"
        stated = [None if row[3] is None else pytest.approx(row[3], abs=1e-9) for row in rows]
        before = copy.deepcopy([row[2] for row in rows])
        alone = [score(reward, [row]) for row in rows]
        wrong = [(row[0], got) for row, got, value in zip(rows, alone, stated, strict=True) if got != [value]]
        assert wrong == [], name
        order = list(range(len(rows)))
        random.Random(0).shuffle(order)
        assert score(reward, [rows[i] for i in order]) == [stated[i] for i in order], name
        assert [row[2] for row in rows] == before, name


def test_every_malformed_input_has_its_stated_value() -> None:
    check_total(REWARDS)


def test_mended_corners_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that quietly turns reversed corners round."""

    def usable(found: Any, frame: str, size: tuple[int, int], original: Any = text_module.usable_boxes) -> Any:
        rows = [(label, (min(a, c), min(b, d), max(a, c), max(b, d))) for label, (a, b, c, d) in found.rows]
        return original(SimpleNamespace(rows=rows, errors=found.errors), frame, size)

    monkeypatch.setattr(text_module, "usable_boxes", usable)
    with pytest.raises(AssertionError, match="reversed corners"):
        check_total({"box": REWARDS["box"]})


def test_a_reward_that_looks_at_its_neighbours_is_noticed() -> None:
    def ranked(completions: Any, **columns: Any) -> list[float | None]:
        values = REWARDS["presence"](completions, **columns)
        return values if len(values) < 2 else [None if v is None else v / 2 for v in values]

    with pytest.raises(AssertionError):
        check_total({"presence": ranked})


def test_rewards_are_timed() -> None:
    """Each of all rewards, on malformed texts of samples of every task."""
    image = ImageRef("ct.png", width=SIZE[0], height=SIZE[1])
    samples = (
        Sample("a", "grounding", (image,), boxes=(BoxAnnotation("liver", (20.0, 10.0, 60.0, 50.0)),),
               answer=Answer("boxes")),
        Sample("b", "vqa", (image,), answer=Answer("yesno", "yes")),
        Sample("c", "report", facts=(Fact("liver"),), answer=Answer("report", "The liver is visible.")),
    )  # fmt: skip
    rewards = RewardSet(REWARDS)
    generations = [Generation([5], [-0.1, -0.2], finished=True, stop_token=9)] * 3
    found = rewards.score(
        samples, ['[{"bbox_2d": [1', "", "[]"], generations, prompts=["?"] * 3, profile=QWEN3_VL, step=0, max_steps=1
    )
    assert found.keys() == REWARDS.keys()
    assert all(value in (None, 0.0) for values in found.values() for value in values)
    assert rewards.seconds.keys() == REWARDS.keys()
    assert all(seconds > 0 for seconds in rewards.seconds.values())


def random_boxes(count: int, seed: int) -> Tensor:
    corners = torch.rand(count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return corners.sort(1).values.reshape(count, 4) * 100


def check_giou(giou: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = random_boxes(60, 0), random_boxes(50, 1)
    values = giou(a, b)
    assert values.min() < -0.5, "no pair is far apart: nothing is shown"
    assert values.min() >= -1 and values.max() <= 1
    assert torch.allclose(values, giou(b, a).T, rtol=0, atol=1e-12)
    assert torch.allclose(giou(a, a).diagonal(), torch.ones(60, dtype=torch.float64))
    inner = torch.cat([a[:, :2] * 0.75 + a[:, 2:] * 0.25, a[:, :2] * 0.25 + a[:, 2:] * 0.75], 1)
    assert torch.allclose(giou(a, inner).diagonal(), torch.full((60,), 0.25, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("giou", [pairwise_giou, pairwise_giou_reference])
def test_giou(giou: Callable[[Tensor, Tensor], Tensor]) -> None:
    check_giou(giou)


def test_a_giou_that_counts_the_last_pixel_is_noticed() -> None:
    """Boxes whose corners are taken for the last pixels inside, in one of the two."""
    with pytest.raises(AssertionError):
        check_giou(lambda a, b: pairwise_giou(a, b + torch.tensor([0.0, 0, 1, 1])))


def check_assignment(solve: Callable[[Tensor], Tensor]) -> None:
    """Check against every assignment of up to five rows and columns."""
    rng = np.random.default_rng(0)
    for rows in range(1, 6):
        for columns in range(1, 6):
            costs = rng.random((4, rows, columns))
            for cost, match in zip(costs, solve(torch.from_numpy(costs)).tolist(), strict=True):
                wide = cost if rows <= columns else cost.T
                orders = permutations(range(wide.shape[1]), len(wide))
                best = min(sum(wide[i, j] for i, j in enumerate(order)) for order in orders)
                pairs = [(i, j) for i, j in enumerate(match) if j >= 0]
                assert len(pairs) == len({j for _, j in pairs}) == min(rows, columns)
                assert sum(cost[i, j] for i, j in pairs) == pytest.approx(best, abs=1e-12)


def test_assignments_are_the_best_of_all() -> None:
    check_assignment(assign)


def test_a_greedy_assignment_is_noticed() -> None:
    def greedy(costs: Tensor) -> Tensor:
        match = torch.full(costs.shape[:2], -1)
        for b, cost in enumerate(costs.clone()):
            for _ in range(min(cost.shape)):
                i, j = divmod(int(cost.argmin()), cost.shape[1])
                match[b, i] = j
                cost[i], cost[:, j] = torch.inf, torch.inf
        return match

    with pytest.raises(AssertionError):
        check_assignment(greedy)


def check_spurious(reward: Score) -> None:
    """Add boxes that overlap nothing true, and copies, to every answer: no score may rise."""
    extra = [("liver", [0, 800, 50, 900]), ("spleen", [900, 0, 1000, 50]), ("kidney", [0, 0, 1000, 1000])]
    hits, weak = [("liver", LIVER), ("spleen", SPLEEN)], [("liver", [150, 100, 350, 500])]
    for truth in (TWO, NONE):
        for given in ([], hits[:1], hits, weak):
            columns = {"task": ["grounding"], "boxes": [truth], "image_size": [SIZE], "profile": QWEN3_VL}
            (before,) = reward([said(*given)], **columns)
            for more in (extra[:1], extra[1:2], extra[2:], extra, given[:1]):
                (after,) = reward([said(*given, *more)], **columns)
                assert after is not None and before is not None and after <= before, (given, more)


def test_a_spurious_box_never_raises_the_score() -> None:
    check_spurious(box_reward)


def test_a_reward_that_spam_can_raise_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check_spurious(medmo_box_reward)


def check_scales(parse: Callable[[str, CheckpointProfile, Boxes], Boxes], reward: Score = box_reward) -> None:
    """Say the same boxes in thousandths, in pixels and on resized images: they are read back, and scored, the same."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = tuple(int(side) for side in rng.integers(50, 3000, 2))
        resized = tuple(int(side) for side in rng.integers(50, 3000, 2))
        low = rng.integers(0, 500, (3, 2))
        thousandths = np.concatenate([low, low + rng.integers(50, 500, (3, 2))], 1).astype(np.float64)
        truth = Boxes(torch.from_numpy(thousandths), "norm1000", size, ("a", "b", "a")).pixel()
        moved = Boxes(torch.from_numpy((thousandths + rng.integers(-40, 40, (3, 4))).clip(0, 1000)), "norm1000", size)
        moved = moved.with_labels(truth.labels)
        scores = []
        for where in (truth, truth.resize(resized)):
            here = moved.resize(where.size)
            exact = said(*((label, row) for label, row in zip(here.labels, here.xyxy.tolist(), strict=True)))
            for profile, text in ((QWEN3_VL, print_boxes(here)), (CheckpointProfile(frame="pixel"), exact)):
                read = parse(text, profile, where)
                assert torch.allclose(read.pixel().xyxy, here.xyxy, rtol=0, atol=1e-6), profile.frame
                columns = {"task": ["grounding"], "boxes": [where], "image_size": [where.size], "profile": profile}
                scores += reward([text], **columns)
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-9)


def test_thousandths_pixels_and_resized_images_agree() -> None:
    check_scales(lambda text, profile, where: profile.parse_boxes(text, where).boxes)


def test_thousandths_taken_for_pixels_are_noticed() -> None:
    pixels = CheckpointProfile(frame="pixel")
    with pytest.raises(AssertionError):
        check_scales(lambda text, profile, where: pixels.parse_boxes(text, where).boxes)


def test_a_reward_that_measures_against_the_image_is_noticed() -> None:
    """A corner distance over the image's diagonal changes with the shape it is resized to; overlaps do not."""
    with pytest.raises(AssertionError):
        check_scales(lambda text, profile, where: profile.parse_boxes(text, where).boxes, medmo_box_reward)
