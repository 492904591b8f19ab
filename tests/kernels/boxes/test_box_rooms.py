"""Laws of the box rooms: optimal assignments, scores that cannot be gamed, MedMO's published numbers."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from medmo_kernels import assign, box_match, box_reward, giou, pairwise_giou
from medmo_kernels.box_match.reference import solve
from medmo_kernels.giou import box_terms, overlap_terms, pairwise_box_terms

COSTS = st.integers(-9, 9) | st.floats(-5, 5, allow_nan=False, width=32)
MATRICES = st.integers(1, 5).flatmap(
    lambda rows: st.integers(1, 5).flatmap(
        lambda cols: st.lists(st.lists(COSTS, min_size=cols, max_size=cols), min_size=rows, max_size=rows)
    )
)


def total(cost: list[list[float]], match: list[int]) -> float:
    return sum(cost[i][j] for i, j in enumerate(match) if j >= 0)


@given(MATRICES)
@settings(max_examples=150, deadline=None)
def test_no_permutation_beats_the_assignment(cost: list[list[float]]) -> None:
    match = solve(cost)
    used = [j for j in match if j >= 0]
    assert len(set(used)) == len(used) == min(len(cost), len(cost[0]))
    wide = cost if len(cost) <= len(cost[0]) else [list(column) for column in zip(*cost, strict=True)]
    best = min(
        sum(wide[i][j] for i, j in enumerate(columns))
        for columns in itertools.permutations(range(len(wide[0])), len(wide))
    )
    assert total(cost, match) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (9, 3), (16, 16), (40, 31)])
def test_the_optimum_equals_scipys(shape: tuple[int, int]) -> None:
    cost = torch.randn(6, *shape, generator=torch.Generator().manual_seed(shape[0]), dtype=torch.float64)
    cost[0] = cost[0].round()  # ties
    cost[1] *= 1e6
    for matrix, match in zip(cost, assign(cost), strict=True):
        rows, cols = linear_sum_assignment(matrix.numpy())
        assert total(matrix.tolist(), match.tolist()) == pytest.approx(matrix.numpy()[rows, cols].sum(), rel=1e-12)


@given(MATRICES, st.data())
@settings(max_examples=80, deadline=None)
def test_forbidden_pairs_are_left_out_before_anything_else(cost: list[list[float]], data: st.DataObject) -> None:
    """Against a search of every partial assignment: most pairs first, then least cost."""
    wide = [row[:4] for row in cost[:4]]
    bad = st.sampled_from([None, math.inf, math.nan, -math.inf])
    holes = [[data.draw(bad) for _ in row] for row in wide]
    wide = [[c if h is None else h for c, h in zip(*rows, strict=True)] for rows in zip(wide, holes, strict=True)]
    match = solve(wide)
    best = (0, 0.0)
    for columns in itertools.product([-1, *range(len(wide[0]))], repeat=len(wide)):
        used = [j for j in columns if j >= 0]
        costs = [wide[i][j] for i, j in enumerate(columns) if j >= 0]
        if len(set(used)) == len(used) and all(map(math.isfinite, costs)):
            best = max(best, (len(used), -sum(costs)))
    assert sum(j >= 0 for j in match) == best[0]
    assert total(wide, match) == pytest.approx(-best[1], abs=1e-9)


EDGES = st.integers(0, 60)
SIDES = st.integers(1, 40)
BOX = st.tuples(EDGES, EDGES, SIDES, SIDES).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
BOX_LISTS = st.lists(BOX, max_size=5)


def boxes(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def drawn(box: list[int]) -> np.ndarray:
    grid = np.zeros((110, 110), dtype=bool)
    grid[box[1] : box[3], box[0] : box[2]] = True
    return grid


@given(BOX, BOX)
@settings(max_examples=60, deadline=None)
def test_giou_counts_pixels(a: list[int], b: list[int]) -> None:
    """Whole-pixel boxes against painted masks."""
    one, other = drawn(a), drawn(b)
    union = (one | other).sum()
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    expected = (one & other).sum() / union - (hull - union) / hull
    assert giou(boxes([a]), boxes([b])).item() == pytest.approx(expected, abs=1e-12)


@given(BOX, BOX, st.floats(0.01, 100), st.integers(-50, 50))
@settings(max_examples=60, deadline=None)
def test_giou_is_symmetric_and_blind_to_scale_and_shift(a: list[int], b: list[int], scale: float, shift: int) -> None:
    one, other = boxes([a]), boxes([b])
    value = giou(one, other)
    assert -1 <= value.item() <= 1
    assert torch.equal(value, giou(other, one))
    torch.testing.assert_close(giou(one * scale + shift, other * scale + shift), value, rtol=1e-9, atol=1e-9)
    assert giou(one, one).item() == 1.0


@given(st.lists(st.tuples(BOX, BOX), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_terms_agree_pair_by_pair_and_all_together(pairs: list[tuple[list[int], list[int]]]) -> None:
    """The diagonal of all pairs is the aligned form; the two other terms are known ones."""
    one, other = boxes([a for a, _ in pairs]), boxes([b for _, b in pairs])
    terms = box_terms(one, other)
    iou, score = overlap_terms(one, other)
    distance = (one - other).abs().sum(1)
    assert torch.equal(terms, torch.stack([iou, score, distance], dim=1))
    everything = torch.tensor([0, len(pairs)])
    table = pairwise_box_terms(one, other, everything, everything, max_target=len(pairs))
    assert torch.equal(table.diagonal().T, terms)
    alone = torch.arange(len(pairs) + 1)
    assert torch.equal(pairwise_box_terms(one, other, alone, alone, max_target=1)[:, 0], terms)


def test_boxes_without_area_score_and_learn_without_nan() -> None:
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    other = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    values = pairwise_giou(torch.cat([point, point + 1]), torch.cat([point, other]))
    values.sum().backward()
    assert values.isfinite().all()
    assert point.grad is not None
    assert point.grad.isfinite().all()


def reward(pred: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], **options: object) -> float:
    offsets = (torch.tensor([0, len(pred)]), torch.tensor([0, len(truth)]))
    return box_reward(boxes(pred), boxes(truth), *offsets, **options).score.item()  # type: ignore[arg-type]


@given(BOX_LISTS, BOX_LISTS, st.sampled_from(["overlap", "iou"]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_score_is_bounded_and_blind_to_order_scale_and_shift(
    pred: list[list[int]], truth: list[list[int]], formula: str, rng: object
) -> None:
    value = reward(pred, truth, formula=formula)
    assert 0 <= value <= 1 + 1e-12
    mixed = list(pred)
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    assert reward(mixed, truth[::-1], formula=formula) == pytest.approx(value, abs=1e-9)
    moved = [[[0.1 * v + 7 for v in box] for box in side] for side in (pred, truth)]
    assert reward(*moved, formula=formula) == pytest.approx(value, abs=1e-9)
    if truth:
        assert reward(truth, truth, formula=formula) == pytest.approx(1)


@given(BOX_LISTS, BOX_LISTS, st.integers(0, 4), st.sampled_from(["overlap", "iou", "f1"]))
@settings(max_examples=80, deadline=None)
def test_spurious_boxes_never_pay(pred: list[list[int]], truth: list[list[int]], which: int, formula: str) -> None:
    value = reward(pred, truth, formula=formula)
    far_away = [500, 500, 520, 520]
    assert reward([*pred, far_away], truth, formula=formula) <= value + 1e-12
    if truth and pred:
        perfect = reward(truth, truth, formula=formula)
        assert reward([*truth, truth[which % len(truth)]], truth, formula=formula) < perfect, "a duplicate"
    if not truth:
        assert value == (0 if pred else 1)


def test_a_wrong_label_earns_nothing() -> None:
    box, offsets = boxes([[0, 0, 10, 10]]), torch.tensor([0, 1])
    right, wrong = torch.tensor([3]), torch.tensor([4])
    for formula in ("overlap", "iou", "medmo"):
        for labels, expected in ((right, 1.0), (wrong, 0.0)):
            score, match = box_reward(
                box, box, offsets, offsets, pred_labels=labels, truth_labels=right, formula=formula,
                image_size=torch.tensor([[20.0, 20.0]]),
            )  # fmt: skip
            assert score.item() == pytest.approx(expected)
            assert match.item() == (0 if expected else -1)


def test_problems_do_not_see_each_other() -> None:
    pred, truth = boxes([[0, 0, 9, 9], [0, 0, 9, 9], [3, 3, 8, 9]]), boxes([[0, 0, 9, 9], [1, 0, 9, 9]])
    together = box_reward(pred, truth, torch.tensor([0, 1, 3]), torch.tensor([0, 0, 2])).score.tolist()
    assert together == pytest.approx([reward(pred[:1].tolist(), []), reward(pred[1:].tolist(), truth.tolist())])


def test_boxes_that_are_not_numbers_match_nothing() -> None:
    pred = boxes([[math.nan, 0, 9, 9], [0, 0, math.inf, 9], [9, 9, 0, 0], [0, 0, 9, 9]])
    truth = boxes([[0, 0, 9, 9]] * 4)
    offsets = torch.tensor([0, 4])
    assert box_match(pred, truth, offsets, offsets, cost="iou")[:2].tolist() == [-1, -1]
    score, match = box_reward(pred, truth, offsets, offsets)
    assert score.item() == pytest.approx(0.25)
    assert (match >= 0).tolist() == [False, False, False, True]


SIDE = torch.tensor([[1024.0, 1024.0]])


@pytest.mark.parametrize(
    ("size", "half", "touching", "two_off", "five_off", "whole"),
    [
        (200, 0.896, 0.758, 0.612, 0.269, 0.456),
        (50, 0.920, 0.832, 0.760, 0.639, 0.377),
        (10, 0.927, 0.852, 0.800, 0.737, 0.357),
    ],
)
def test_medmo_formula_gives_the_tabulated_values(
    size: int, half: float, touching: float, two_off: float, five_off: float, whole: float
) -> None:
    """Values derived by hand from the published formula: a square shifted sideways, and the whole image."""
    x, y = 0.0, 512.0 - size / 2
    truth = [[x, y, x + size, y + size]]

    def shifted(by: float) -> float:
        return reward([[x + by, y, x + by + size, y + size]], truth, formula="medmo", image_size=SIDE)

    got = [shifted(size / 3), shifted(size), shifted(2 * size), shifted(5 * size)]
    assert got == pytest.approx([half, touching, two_off, five_off], abs=6e-4)
    centred = [[512 - size / 2, y, 512 + size / 2, y + size]]
    assert reward([[0, 0, 1024, 1024]], centred, formula="medmo", image_size=SIDE) == pytest.approx(whole, abs=6e-4)


def test_medmo_formula_prices_and_variants() -> None:
    truth, spare = [[0.0, 0, 100, 100], [200, 0, 300, 100]], [600.0, 600, 700, 700]
    options = {"formula": "medmo", "image_size": SIDE}
    assert reward(truth, truth, **options) == pytest.approx(1)
    assert reward([*truth, spare], truth, **options) == pytest.approx(1), "spurious boxes are free unless priced"
    assert reward([*truth, spare], truth, lambda_fp=0.4, **options) == pytest.approx(1 - 0.4 / 2)
    assert reward([*truth, spare], truth, lambda_fp=0.4, penalty_per_truth=False, **options) == pytest.approx(0.6)
    assert reward(truth[:1], truth, **options) == pytest.approx(0.5)
    assert reward(truth[:1], truth, lambda_fn=0.4, **options) == pytest.approx(0.5 - 0.4 / 2)
    assert reward(truth[:1], truth, squared=True, **options) == pytest.approx(0.25)
    assert reward([], [], **options) == 0, "the published formula pays nothing for a right 'nothing'"
    assert reward(truth, [], lambda_fp=9.0, **options) == 0


def test_f1_is_that_of_the_matching_at_the_largest_total_iou() -> None:
    truth = [[0.0, 0, 10, 10], [20, 0, 30, 10], [80, 80, 90, 90]]
    pred = [[0.0, 0, 10, 5], [20, 0, 30, 9]]  # IoU 0.5, exactly on the threshold, and 0.9
    assert reward(pred, truth, formula="f1") == pytest.approx(2 * 2 / 5)
    assert reward(pred, truth, formula="f1", iou_threshold=0.75) == pytest.approx(2 * 1 / 5)
    assert reward(pred, truth, formula="f1", iou_threshold=0.0) == pytest.approx(2 * 2 / 5), "no overlap is no hit"
    assert reward([], [], formula="f1") == 1
    assert reward(pred, [], formula="f1") == reward([], truth, formula="f1") == 0


TWO, THREE = torch.zeros(2, 4), torch.zeros(3, 4)
ONE_PROBLEM = torch.tensor([0, 2])
FAULTY_SIZE = r"image_size \(2, 4\), expected \(1, 2\)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: giou(TWO, THREE), r"pred \(2, 4\) and target \(3, 4\)"),
        (lambda: pairwise_giou(TWO[None], THREE), r"pred \(1, 2, 4\) and target \(3, 4\)"),
        (lambda: box_terms(TWO, THREE), r"box_terms: pred \(2, 4\) and target \(3, 4\)"),
        (lambda: pairwise_box_terms(TWO, THREE, ONE_PROBLEM, ONE_PROBLEM, max_target=3), r"\[0, 2\].* to 3"),
        (lambda: pairwise_box_terms(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, max_target=1), "by at most 1"),
        (lambda: assign(TWO), r"cost \(2, 4\), expected \(B, R, C\)"),
        (lambda: assign(TWO[None], torch.tensor([3])), "3 x 4 pairs, the matrices hold 2 x 4"),
        (lambda: box_match(TWO[:, :3], TWO, ONE_PROBLEM, ONE_PROBLEM), r"pred \(2, 3\), truth \(2, 4\)"),
        (lambda: box_match(TWO, THREE, ONE_PROBLEM, ONE_PROBLEM), r"truth_offsets is \[0, 2\].* to 3"),
        (lambda: box_match(TWO, TWO, ONE_PROBLEM, torch.tensor([0, 1, 2])), r"\(2,\) and truth_offsets \(3,\)"),
        (lambda: box_match(TWO, TWO, ONE_PROBLEM.int(), ONE_PROBLEM), "torch.int32 and torch.int64"),
        (lambda: box_match(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, cost="l2"), "'l2'.*overlap, iou, giou, medmo"),
        (lambda: box_match(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, cost="medmo"), "give image_size"),
        (lambda: box_match(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, pred_labels=ONE_PROBLEM), "give both or neither"),
        (lambda: box_match(TWO, TWO.to("meta"), ONE_PROBLEM, ONE_PROBLEM), "pred is on cpu, other arguments on meta"),
        (lambda: box_reward(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, formula="giou"), "'giou'.*overlap, iou, medmo"),
        (lambda: box_reward(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, lambda_fp=-1.0), "lambda_fp is -1.0"),
        (lambda: box_reward(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, iou_threshold=1.5), "iou_threshold is 1.5"),
        (lambda: box_reward(TWO, TWO, ONE_PROBLEM, ONE_PROBLEM, image_size=TWO), FAULTY_SIZE),
    ],
)
def test_wrong_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
