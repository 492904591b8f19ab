"""Laws of the box kernels themselves, in Triton's interpreter or on the chip: few and small problems, every rule."""

import importlib.util
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmo_kernels import box_match, box_reward, giou, runtime
from medmo_kernels.box_match.cases import ragged_boxes
from medmo_kernels.box_match.reference import COSTS, box_match_reference, pair_costs
from medmo_kernels.box_reward import FORMULAS, box_reward_reference
from medmo_kernels.giou import box_terms, overlap_terms, pairwise_box_terms, pairwise_giou

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN = math.nan

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(autouse=True)
def triton_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op runs its Triton kernels."""
    monkeypatch.setenv(runtime.SWITCH, "triton")


def few(examples: int) -> settings:
    """The interpreter is slow: a handful of examples, the same ones every time."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


EDGES, SIDES = st.integers(0, 60), st.integers(1, 40)
BOX = st.tuples(EDGES, EDGES, SIDES, SIDES).map(lambda b: [float(b[0]), b[1], b[0] + b[2], b[1] + b[3]])
BOX_LISTS = st.lists(BOX, max_size=4)
LABELLED = st.lists(st.tuples(BOX, st.integers(0, 1)), max_size=4)


def boxes(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device=DEVICE).reshape(-1, 4)


def offsets(*counts: int) -> Tensor:
    return torch.tensor([0, *counts], device=DEVICE).cumsum(0)


@given(st.lists(st.tuples(BOX, BOX), min_size=1, max_size=8), st.sampled_from([0.125, 1.0, 64.0]), st.integers(-50, 50))
@few(8)
def test_giou_is_bounded_symmetric_and_blind_to_scale_and_shift(
    pairs: list[tuple[list[float], list[float]]], scale: float, shift: int
) -> None:
    one, other = boxes([a for a, _ in pairs]), boxes([b for _, b in pairs])
    value = giou(one, other)
    assert bool(((value >= -1) & (value <= 1)).all())
    assert torch.equal(value, giou(other, one)), "exchanging two boxes changes no bit"
    # Scales are powers of two, so that no corner is rounded.
    torch.testing.assert_close(giou(one * scale + shift, other * scale + shift), value, rtol=0, atol=1e-6)
    assert torch.equal(giou(one, one), torch.ones_like(value)), "a box equals itself exactly"


def test_terms_of_boxes_without_area_and_of_no_numbers() -> None:
    strange = boxes([[5, 5, 5, 5], [9, 9, 2, 2], [NAN, 0, 9, 9], [0, 0, 10, 10]])
    target = boxes([[5, 5, 5, 5], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    terms = box_terms(strange, target)
    assert terms[:2].tolist() == [[0, 0, 0], [0, 0, 9 + 9 + 8 + 8]]
    assert terms[2].isnan().all()
    assert terms[3].tolist() == pytest.approx([0, -700 / 900, 80])


def test_a_box_loss_on_every_term_pulls_the_box_to_its_target() -> None:
    """A few steps down the gradients of 1 - IoU, 1 - GIoU and the corner distance."""
    target = boxes([[30, 30, 60, 60]])
    for weights in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -0.01]):
        pred = boxes([[20, 25, 52, 58]]).requires_grad_()
        before = (pred.detach() - target).abs().sum()
        for _ in range(5):
            loss = -(pairwise_box_terms(pred, target, offsets(1), offsets(1), max_target=1) * pred.new_tensor(weights))
            (gradient,) = torch.autograd.grad(loss.sum(), pred)
            pred = (pred - gradient / gradient.norm()).detach().requires_grad_()
        assert (pred - target).abs().sum() < before - 2


@given(LABELLED, LABELLED, st.sampled_from(COSTS), st.booleans())
@few(10)
def test_no_assignment_beats_the_kernels(
    pred: list[tuple[list[float], int]], truth: list[tuple[list[float], int]], cost: str, labelled: bool
) -> None:
    """Against every partial assignment: most allowed pairs first, then least cost; no box twice."""
    p, t = boxes([box for box, _ in pred]), boxes([box for box, _ in truth])
    labels = [torch.tensor([label for _, label in side], dtype=torch.int64, device=DEVICE) for side in (pred, truth)]
    match = box_match(
        p, t, offsets(len(p)), offsets(len(t)), cost=cost,
        pred_labels=labels[0] if labelled else None, truth_labels=labels[1] if labelled else None,
        image_size=torch.tensor([[100, 100]], device=DEVICE),
    ).tolist()  # fmt: skip
    costs = pair_costs(p.double(), t.double(), cost, math.hypot(100, 100))
    if labelled:
        costs = costs.masked_fill(labels[0][:, None] != labels[1][None], math.inf)
    table = costs.tolist()
    best = (0, 0.0)
    for columns in itertools.product([-1, *range(len(t))], repeat=len(p)):
        used = [j for j in columns if j >= 0]
        paid = [table[i][j] for i, j in enumerate(columns) if j >= 0]
        if len(set(used)) == len(used) and all(map(math.isfinite, paid)):
            best = max(best, (len(used), -sum(paid)))
    used = [j for j in match if j >= 0]
    assert len(set(used)) == len(used) == best[0]
    assert sum(table[i][j] for i, j in enumerate(match) if j >= 0) == pytest.approx(-best[1], abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "cost"), [((1, 1), "iou"), ((20, 33), "giou"), ((34, 19), "medmo"), ((66, 9), "giou")]
)
def test_the_kernels_optimum_is_the_references(shape: tuple[int, int], cost: str) -> None:
    """Either side the larger, 32 and 64 lanes, and past the registers; these costs have one optimum."""
    arguments = ragged_boxes([shape], torch.Generator().manual_seed(shape[0]), torch.float32)
    arguments |= {"pred_labels": None, "truth_labels": None}
    arguments = {name: None if value is None else value.to(DEVICE) for name, value in arguments.items()}
    assert torch.equal(box_match(**arguments, cost=cost), box_match_reference(**arguments, cost=cost))


def test_boxes_that_are_not_numbers_match_nothing() -> None:
    good = [0.0, 0, 9, 9]
    pred = boxes([[NAN, 0, 9, 9], [0, 0, math.inf, 9], good, [0, -math.inf, 9, 9]])
    truth = boxes([good, [0, 0, 9, NAN]])
    for cost in COSTS:
        size = torch.tensor([[20.0, 20.0]], device=DEVICE)
        match = box_match(pred, truth, offsets(4), offsets(2), image_size=size, cost=cost)
        assert match.tolist() == [-1, -1, 0, -1], cost


def test_problems_of_views_and_of_two_precisions() -> None:
    """Boxes that are columns of a wider tensor, and a pair of dtypes."""
    wide = torch.zeros(3, 6, device=DEVICE)
    wide[:, 1:5] = boxes([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]])
    truth = boxes([[40, 0, 50, 9], [0, 0, 8, 9]]).to(torch.bfloat16)
    assert box_match(wide[:, 1:5], truth, offsets(3), offsets(2)).tolist() == [1, -1, 0]


def reward(pred: list[list[float]], truth: list[list[float]], formula: str, **options: float) -> float:
    size = torch.tensor([[100.0, 100.0]], device=DEVICE)
    return box_reward(
        boxes(pred), boxes(truth), offsets(len(pred)), offsets(len(truth)), formula=formula, image_size=size, **options
    ).score.item()  # type: ignore[arg-type]


@given(BOX_LISTS, BOX_LISTS, st.sampled_from(["overlap", "iou", "f1"]))
@few(4)
def test_spurious_and_duplicate_boxes_never_pay(
    pred: list[list[float]], truth: list[list[float]], formula: str
) -> None:
    value = reward(pred, truth, formula)
    assert 0 <= value <= 1 + 1e-6
    if truth:
        assert reward(truth, truth, formula) == pytest.approx(1)
        assert reward([*truth, truth[0]], truth, formula) < 1, "a duplicate"
    spare = [500.0, 500.0, 510.0, 510.0]
    assert reward([*pred, spare], truth, formula) <= value + 1e-6
    assert reward([*truth, spare], truth, formula) < 1


def test_the_empty_truth_rule_of_every_formula() -> None:
    one = [[0.0, 0, 9, 9]]
    for formula in FORMULAS:
        assert reward([], [], formula) == (0 if formula == "medmo" else 1)
        assert reward(one, [], formula) == 0
        assert reward([], one, formula) == 0


def test_the_published_formula_in_one_launch() -> None:
    """Hand-made: two of three true boxes found, one spurious, both penalties, each variant."""
    truth = [[0.0, 0, 10, 10], [20, 0, 30, 10], [80, 80, 90, 90]]
    pred = [[0.0, 0, 10, 10], [20, 0, 30, 10], [NAN, 0, 1, 1]]
    options = {"lambda_fn": 0.3, "lambda_fp": 0.6}
    assert reward(pred, truth, "medmo") == pytest.approx(2 / 3)
    assert reward(pred, truth, "medmo", **options) == pytest.approx(2 / 3 - 0.9 / 3)
    assert reward(pred, truth, "medmo", **options, squared=True) == pytest.approx((2 / 3 - 0.3) ** 2)
    assert reward(pred, truth, "medmo", lambda_fp=0.6, penalty_per_truth=False) == pytest.approx(2 / 3 - 0.6)


@pytest.mark.parametrize("formula", FORMULAS)
def test_one_batch_equals_its_problems_one_by_one(formula: str) -> None:
    counts = [(2, 3), (0, 2), (5, 1), (0, 0), (3, 3)]
    arguments = ragged_boxes(counts, torch.Generator().manual_seed(4), torch.float32)
    arguments = {name: value.to(DEVICE) for name, value in arguments.items()}
    together = box_reward(**arguments, formula=formula)
    truth = box_reward_reference(**arguments, formula=formula)
    torch.testing.assert_close(together.score, truth[0], rtol=0, atol=1e-6)
    assert torch.equal(together.match, truth[1])
    p0, t0, matched = 0, 0, []
    for b, (p, t) in enumerate(counts):
        alone = box_reward(
            arguments["pred"][p0 : p0 + p], arguments["truth"][t0 : t0 + t], offsets(p), offsets(t),
            pred_labels=arguments["pred_labels"][p0 : p0 + p], truth_labels=arguments["truth_labels"][t0 : t0 + t],
            image_size=arguments["image_size"][b : b + 1], formula=formula,
        )  # fmt: skip
        assert torch.equal(alone.score, together.score[b : b + 1])
        matched.append(torch.where(alone.match >= 0, alone.match + t0, -1))
        p0, t0 = p0 + p, t0 + t
    assert torch.equal(torch.cat(matched), together.match)


def test_f1_counts_pairs_at_the_threshold() -> None:
    """IoU 0.5 exactly, 0.9, and none."""
    truth = [[0.0, 0, 10, 10], [20, 0, 30, 10], [80, 80, 90, 90]]
    pred = [[0.0, 0, 10, 5], [20, 0, 30, 9]]
    assert reward(pred, truth, "f1") == pytest.approx(4 / 5)
    assert reward(pred, truth, "f1", iou_threshold=0.75) == pytest.approx(2 / 5)
    assert overlap_terms(boxes(pred), boxes(truth[:2]))[0].tolist() == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize("op", [giou, box_terms, pairwise_giou])
def test_boxes_on_two_devices_are_refused_before_anything_is_made(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="pred on cpu, target on meta: expected all on one device"):
        op(torch.zeros(2, 4), torch.zeros(2, 4, device="meta"))
