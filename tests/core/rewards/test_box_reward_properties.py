"""Laws of the box rewards, from text to score; where a law fails for the published formula, that it fails is tested.

Coordinates are drawn as real numbers: of matchings with exactly the same total IoU any may be taken, and their numbers
of hits may differ.
"""

import json
from itertools import permutations
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmo_core.boxes import Boxes
from medmo_core.profile import CheckpointProfile
from medmo_core.rewards import box_reward, medmo_box_reward
from medmo_core.rewards.box import threshold_at

PIXELS = CheckpointProfile(frame="pixel")
SIZE = (1000, 800)
SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = settings(max_examples=30, deadline=None)


def at(progress: float) -> dict[str, Any]:
    return {"trainer_state": SimpleNamespace(global_step=round(1000 * progress), max_steps=1000)}


OURS: dict[str, tuple[Any, dict[str, Any]]] = {
    "box at the start": (box_reward, at(0)),
    "box on its way": (box_reward, at(0.2)),
    "box": (box_reward, {}),
    "overlap": (box_reward, {"formula": "overlap"}),
    "iou": (box_reward, {"formula": "iou"}),
    "f1": (box_reward, {"formula": "f1"}),
}
PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "medmo_box": (medmo_box_reward, {}),
    "medmo_box with prices": (medmo_box_reward, {"lambda_fn": 0.3, "lambda_fp": 0.3}),
    "medmo_box, all options": (
        medmo_box_reward,
        {"lambda_fn": 0.3, "lambda_fp": 0.2, "penalty_per_truth": False, "squared": True, "compare_labels": True},
    ),
}
EVERY = OURS | PUBLISHED


class Case(NamedTuple):
    """What is said and what is true; rows of four corners in pixels, and labels."""

    pred: NDArray[np.float64]
    truth: NDArray[np.float64]
    pred_labels: list[str]
    truth_labels: list[str]
    size: tuple[int, int] = SIZE


def case(pred: Any, truth: Any, size: tuple[int, int] = SIZE) -> Case:
    """Return a case of one label."""
    sides = [np.asarray(side, dtype=np.float64).reshape(-1, 4) for side in (pred, truth)]
    return Case(sides[0], sides[1], ["cell"] * len(sides[0]), ["cell"] * len(sides[1]), size)


def said(found: Case) -> str:
    rows = zip(found.pred.tolist(), found.pred_labels, strict=True)
    return json.dumps([{"bbox_2d": row, "label": label} for row, label in rows])


def paid(name: str, *cases: Case) -> list[float]:
    """Score cases, each a text and its true boxes, in one call."""
    reward, options = EVERY[name]
    texts = [said(c) for c in cases]
    truth = [Boxes(torch.from_numpy(c.truth), "pixel", c.size, tuple(c.truth_labels)) for c in cases]
    columns = {"task": ["grounding"] * len(cases), "boxes": truth, "image_size": [c.size for c in cases]}
    scores = reward(texts, **columns, profile=PIXELS, **options)
    assert all(score is not None for score in scores)
    return scores


def any_case(seed: int, most: int = 5, kinds: int = 2) -> Case:
    """Return random boxes: some said ones near a true one, some anywhere."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> NDArray[np.float64]:
        corners = np.sort(rng.random((count, 2, 2)), axis=1)
        return (corners * (0.5 * np.array(SIZE)) + rng.random((count, 1, 2)) * (0.5 * np.array(SIZE))).reshape(-1, 4)

    truth, pred = boxes(rng.integers(0, most + 1)), boxes(rng.integers(0, most + 1))
    near = rng.permutation(min(len(truth), len(pred)))[: rng.integers(0, most + 1)]
    pred[near] = np.clip(truth[near] + rng.normal(0, 15, (len(near), 4)), 0, min(SIZE))
    pred = np.concatenate([np.minimum(pred[:, :2], pred[:, 2:]), np.maximum(pred[:, :2], pred[:, 2:]) + 0.5], axis=1)
    labels = [[f"kind {kind}" for kind in rng.integers(0, kinds, len(side))] for side in (pred, truth)]
    return Case(np.clip(pred, 0, [*SIZE, *SIZE]), truth, labels[0], labels[1])


def apart(seed: int, kinds: int = 3) -> Case:
    """Return true boxes in cells of their own, and for some a said box within the same cell, of the same label."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(12)[: rng.integers(1, 8)]
    corner = np.stack([cells % 4 * 250, cells // 4 * 250], axis=1).astype(np.float64)
    low, high = corner + rng.uniform(20, 60, corner.shape), corner + rng.uniform(120, 200, corner.shape)
    truth = np.concatenate([low, high], axis=1)
    seen = rng.random(len(cells)) < 0.7
    pred = truth[seen] + rng.uniform(-20, 20, (seen.sum(), 4))
    labels = [f"kind {kind}" for kind in rng.integers(0, kinds, len(cells))]
    return Case(pred, truth, [label for label, kept in zip(labels, seen, strict=True) if kept], labels)


def ious(pred: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return IoU and GIoU of all pairs."""
    sides = np.minimum(pred[:, None, 2:], truth[None, :, 2:]) - np.maximum(pred[:, None, :2], truth[None, :, :2])
    inter = sides.clip(0).prod(-1)
    union = (pred[:, 2:] - pred[:, :2]).prod(-1)[:, None] + (truth[:, 2:] - truth[:, :2]).prod(-1) - inter
    sides = np.maximum(pred[:, None, 2:], truth[None, :, 2:]) - np.minimum(pred[:, None, :2], truth[None, :, :2])
    hull = sides.prod(-1)
    return inter / union, inter / union - (hull - union) / hull


@pytest.mark.parametrize("name", EVERY)
@given(seed=SEEDS)
@EXAMPLES
def test_scores_lie_between_0_and_1(name: str, seed: int) -> None:
    (score,) = paid(name, any_case(seed))
    assert 0 <= score <= 1


@pytest.mark.parametrize("name", EVERY)
@given(seed=SEEDS)
@EXAMPLES
def test_the_true_boxes_score_1_and_nothing_else_does(name: str, seed: int) -> None:
    found = apart(seed)
    perfect = found._replace(pred=found.truth, pred_labels=found.truth_labels)
    assert paid(name, perfect) == [pytest.approx(1)]
    if len(found.pred) < len(found.truth):
        assert paid(name, found)[0] < 1


@pytest.mark.parametrize("name", EVERY)
@given(seed=SEEDS)
@EXAMPLES
def test_the_order_of_boxes_does_not_matter(name: str, seed: int) -> None:
    found, rng = any_case(seed), np.random.default_rng(seed + 1)
    p, t = rng.permutation(len(found.pred)), rng.permutation(len(found.truth))
    other = Case(found.pred[p], found.truth[t], [found.pred_labels[i] for i in p], [found.truth_labels[i] for i in t])
    first, second = paid(name, found, other)
    assert first == pytest.approx(second, abs=1e-9)


BOX = [[100, 100, 200, 200]]


def test_empty_sets() -> None:
    cases = (case([], []), case(BOX, []), case([], BOX))
    for name in OURS:
        assert paid(name, *cases) == [1, 0, 0], name
    for name in PUBLISHED:
        assert paid(name, *cases) == [0, 0, 0], name
    columns = {"task": ["grounding"], "boxes": [Boxes.empty(SIZE)], "image_size": [SIZE], "profile": PIXELS}
    assert medmo_box_reward(["[]"], **columns, empty_score=1.0) == [1]


def on_the_way(seed: int, *, same_size: bool) -> list[Case]:
    """Return one true box and one said box on a straight line to it, step by step."""
    rng = np.random.default_rng(seed)
    start, target = (np.sort(rng.random((2, 2)), axis=0).reshape(-1) * [*SIZE, *SIZE] for _ in range(2))
    if same_size:
        far = rng.uniform(-300, 300, 2)
        target = np.array([350, 350, 350, 350]) + rng.uniform(0, 50, 4) * [-1, -1, 1, 1]
        start = target + [*far, *far]
    return [case([start + (target - start) * share], [target]) for share in np.linspace(0, 1, 26)]


@pytest.mark.parametrize("name", OURS)
@given(seed=SEEDS)
@EXAMPLES
def test_a_box_that_comes_nearer_never_loses(name: str, seed: int) -> None:
    """All four corners move straight to their targets, from any box; IoU grows on the way."""
    steps = on_the_way(seed, same_size=False)
    scores = paid(name, *steps)
    overlaps = [ious(step.pred, step.truth)[0].item() for step in steps]
    assert all(a <= b + 1e-12 for a, b in zip(overlaps, overlaps[1:], strict=False))
    assert all(a <= b + 1e-12 for a, b in zip(scores, scores[1:], strict=False))
    assert scores[-1] == pytest.approx(1)


@pytest.mark.parametrize("name", EVERY)
@given(seed=SEEDS)
@EXAMPLES
def test_a_box_that_is_shifted_nearer_never_loses(name: str, seed: int) -> None:
    scores = paid(name, *on_the_way(seed, same_size=True))
    assert all(a <= b + 1e-12 for a, b in zip(scores, scores[1:], strict=False))


def with_one_more(found: Case, box: NDArray[np.float64], label: str) -> Case:
    return found._replace(pred=np.concatenate([found.pred, box[None]]), pred_labels=[*found.pred_labels, label])


@pytest.mark.parametrize("name", OURS)
@given(seed=SEEDS)
@EXAMPLES
def test_a_box_too_many_never_pays(name: str, seed: int) -> None:
    """One that overlaps no true box, or a copy of one that is there already; it costs wherever there is F1 to lose."""
    found, rng = apart(seed), np.random.default_rng(seed)
    gap = np.array([990, 10, 999, 790]) - rng.uniform(0, 4, 4) * [1, -1, 0, 1]  # right of all cells
    more = [with_one_more(found, gap, str(rng.choice(found.truth_labels)))]
    if len(found.pred):
        copied = int(rng.integers(0, len(found.pred)))
        more.append(with_one_more(found, found.pred[copied], found.pred_labels[copied]))
    before, *after = paid(name, found, *more)
    assert all(score <= before + 1e-12 for score in after)
    all_are_found = len(found.pred) == len(found.truth)
    if all_are_found or (name in ("box", "f1") and paid("f1", found)[0] > 0):
        assert all(score < before for score in after)


def test_the_published_formula_pays_for_spam() -> None:
    """At prices 0 boxes too many are free; and a box anywhere is taken for the one that was missed, even at a price."""
    hit, missed, anywhere = [100, 100, 150, 150], [700, 100, 750, 150], [400, 700, 450, 750]
    one, two, eleven = (case([hit, *[anywhere] * n], [hit, missed]) for n in (0, 1, 10))
    free = paid("medmo_box", one, two, eleven)
    assert free[0] == pytest.approx(0.5)
    assert min(free[1:]) > 0.6
    priced = paid("medmo_box with prices", one, two)
    assert priced[1] > priced[0] + 0.2
    for name in OURS:
        scores = paid(name, one, two, eleven)
        assert scores[0] >= scores[1] > scores[2], name


@pytest.mark.parametrize("name", EVERY)
@given(seed=SEEDS, factor=st.sampled_from([0.5, 2, 3, 10]))
@EXAMPLES
def test_image_and_boxes_scaled_together_score_the_same(name: str, seed: int, factor: float) -> None:
    found = any_case(seed)
    size = (round(SIZE[0] * factor), round(SIZE[1] * factor))
    first, second = paid(name, found, found._replace(pred=found.pred * factor, truth=found.truth * factor, size=size))
    assert first == pytest.approx(second, abs=1e-9)


@pytest.mark.parametrize("name", EVERY)
@given(seed=SEEDS)
@EXAMPLES
def test_boxes_moved_together_score_the_same(name: str, seed: int) -> None:
    found = any_case(seed)
    shift = np.array([*np.random.default_rng(seed).uniform(0, 500, 2)] * 2)
    wide = found._replace(size=(2000, 2000))
    first, second = paid(name, wide, wide._replace(pred=found.pred + shift, truth=found.truth + shift))
    assert first == pytest.approx(second, abs=1e-9)


@given(seed=SEEDS, factor=st.sampled_from([0.05, 0.2, 2]))
@EXAMPLES
def test_the_size_of_the_boxes_does_not_matter(seed: int, factor: float) -> None:
    """In one image: small boxes that miss by a share of their size score as large ones."""
    found = any_case(seed)
    other = found._replace(pred=found.pred * factor, truth=found.truth * factor, size=(2000, 2000))
    for name in OURS:
        first, second = paid(name, found._replace(size=(2000, 2000)), other)
        assert first == pytest.approx(second, abs=1e-9), name


def test_a_cell_that_is_missed_by_five_widths() -> None:
    """It earns nothing from us, and more than a large box that misses alike from the published formula."""
    cell, large = (case([[5 * s, 0, 6 * s, s]], [[0, 0, s, s]], (1024, 1024)) for s in (10, 160))
    for name in OURS:
        assert paid(name, cell, large) == [0, 0], name
    small, big = paid("medmo_box", cell, large)
    assert small > 0.7
    assert big < small - 0.3


@pytest.mark.parametrize("name", OURS)
@given(seed=SEEDS)
@EXAMPLES
def test_another_label_never_pays(name: str, seed: int) -> None:
    """Right labels exchanged for others, known or unknown, never raise the score, and always cost a hit its pay."""
    found, rng = apart(seed), np.random.default_rng(seed)
    wrong = [str(rng.choice([f"kind {(int(label[-1]) + 1) % 3}", "unknown"])) for label in found.pred_labels]
    part = [w if rng.random() < 0.5 else r for w, r in zip(wrong, found.pred_labels, strict=True)]
    right, some, none = paid(name, found, found._replace(pred_labels=part), found._replace(pred_labels=wrong))
    assert right >= some >= none == 0


def test_labels_count_for_the_published_formula_only_where_asked() -> None:
    found = case(BOX, BOX)._replace(pred_labels=["vessel"])
    assert paid("medmo_box", found) == [1]
    assert paid("medmo_box, all options", found) == [0]


def all_matchings(num_pred: int, num_truth: int) -> list[list[tuple[int, int]]]:
    """Every way to give as many boxes as possible a partner each."""
    if num_pred <= num_truth:
        return [list(zip(range(num_pred), order, strict=True)) for order in permutations(range(num_truth), num_pred)]
    return [[(i, j) for j, i in pairs] for pairs in all_matchings(num_truth, num_pred)]


def brute_force(name: str, found: Case) -> float:
    """Score a case by trying every matching."""
    p, t = len(found.pred), len(found.truth)
    if not p or not t:
        return float(p == t) if name in OURS else 0.0
    iou, giou = ious(found.pred, found.truth)
    l1 = np.abs(found.pred[:, None] - found.truth[None]).sum(-1) / (2 * np.hypot(*found.size))
    matchings = all_matchings(p, t)

    def best(worth: NDArray[np.float64]) -> list[tuple[int, int]]:
        return max(matchings, key=lambda pairs: sum(worth[i, j] for i, j in pairs))

    def total(worth: NDArray[np.float64], pairs: list[tuple[int, int]]) -> float:
        return sum(float(worth[i, j]) for i, j in pairs)

    if name == "medmo_box":
        pairs = best(-(5 * l1 + 2 * (1 - giou)))
        return min(1.0, total((5 * (1 - l1.clip(0, 1)) + giou + 1) / 7, pairs) / t)
    same = np.array(found.pred_labels)[:, None] == np.array(found.truth_labels)
    iou, overlap = iou * same, (iou + giou.clip(0)) / 2 * same
    parts = {"overlap": total(overlap, best(overlap)) / max(p, t), "iou": total(iou, best(iou)) / max(p, t)}
    parts["f1"] = 2 * total((iou >= 0.5) * 1.0, best(iou)) / (p + t)
    return (parts["overlap"] + parts["f1"]) / 2 if name == "box" else parts[name]


@pytest.mark.parametrize("name", ["box", "overlap", "iou", "f1", "medmo_box"])
@given(seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_the_assignment_is_the_best_of_all(name: str, seed: int) -> None:
    """Of up to five said and five true boxes, against every matching there is."""
    found = any_case(seed)
    assert paid(name, found) == [pytest.approx(brute_force(name, found), abs=1e-9)]


def test_the_nearest_box_first_is_not_good_enough() -> None:
    """Greedy gives the middle box to the best said one and leaves the other without; the best matching has both."""
    found = case([[4, 0, 14, 10], [10, 0, 20, 10]], [[6, 0, 16, 10], [0, 0, 10, 10]])
    iou = ious(found.pred, found.truth)[0]
    assert iou.argmax() == 0  # greedy: the first with the first, and nothing is left for the second
    assert iou[1, 1] == 0
    greedy = iou[0, 0] / 2
    assert paid("iou", found)[0] == pytest.approx((iou[0, 1] + iou[1, 0]) / 2)
    assert paid("iou", found)[0] > greedy + 0.05


@given(seed=SEEDS)
@EXAMPLES
def test_a_later_step_never_pays_more(seed: int) -> None:
    found, columns = any_case(seed), {"task": ["grounding"], "image_size": [SIZE], "profile": PIXELS}
    truth = [Boxes(torch.from_numpy(found.truth), "pixel", SIZE, tuple(found.truth_labels))]
    scores = [box_reward([said(found)], boxes=truth, **columns, **at(step / 10))[0] for step in range(11)]
    assert all(a >= b - 1e-12 for a, b in zip(scores, scores[1:], strict=False))
    assert scores[-1] == box_reward([said(found)], boxes=truth, **columns)[0]


def test_the_threshold_rises_and_then_stays() -> None:
    found = [threshold_at(at(step / 20)["trainer_state"]) for step in range(21)]
    assert found == sorted(found)
    assert (found[0], found[5], found[10], found[20], threshold_at()) == pytest.approx((0.3, 0.4, 0.5, 0.5, 0.5))
    weak = case([[0, 0, 100, 35]], [[0, 0, 100, 100]])  # IoU 0.35
    assert paid("box at the start", weak)[0] > paid("box", weak)[0] + 0.4
