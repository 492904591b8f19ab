"""Faults planted in the rooms' own kernels: the values of most are right in the interpreter, and every one is reported.

A planted fault names the passage that it changes, and fails where that passage is gone.
"""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from medmo_kernels import box_match, runtime, verify
from medmo_kernels.spec import OpSpec

pytest.importorskip("ml_dtypes")
pytest.importorskip("triton")
from .checked_launches import checked_interpreter  # noqa: E402
from .findings import Findings, Kind  # noqa: E402
from .mutants import planted, replaced  # noqa: E402

pytestmark = pytest.mark.skipif(not runtime.interpreter_is_set(), reason="kernels run on the chip")
BARRIER = "tl.debug_barrier()"
LOAD_BOXES = """\
    x1 = tl.load(corner, mask=mask, other=0.0).to(tl.float32)
    y1 = tl.load(corner + 1, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(corner + 2, mask=mask, other=0.0).to(tl.float32)
    y2 = tl.load(corner + 3, mask=mask, other=0.0).to(tl.float32)
"""


@pytest.fixture(autouse=True)
def triton_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op runs its Triton kernels."""
    monkeypatch.setenv(runtime.SWITCH, "triton")


def kernels_of(module: str) -> ModuleType:
    return importlib.import_module(f"medmo_kernels.{module}")


def spec_of(op: str, room: str) -> OpSpec:
    return next(spec for spec in kernels_of(f"{room}.cases").SPECS if spec.name == op)


def compared(op: str, room: str, size: str, dtype: torch.dtype) -> tuple[Findings, list[verify.Comparison]]:
    """Run an op with all checks, and compare it with its reference as the walker does."""
    spec = spec_of(op, room)
    with checked_interpreter() as found, verify.poisoned():
        comparisons = verify.compare(spec, verify.arguments_of(spec, spec.kernel_sizes[size], dtype))
    return found, comparisons


def crowded(few_are_pred: bool) -> Findings:
    """Match two equal boxes with more than registers hold: the second is scanned twice, and takes what it can get."""
    few = torch.tensor([[0.2, 0.2, 0.5, 0.6]]).repeat(2, 1)
    many = torch.rand(65, 4, generator=torch.Generator().manual_seed(0)).cumsum(1)
    pred, truth = (few, many) if few_are_pred else (many, few)
    with checked_interpreter() as found:
        box_match(pred, truth, torch.tensor([0, len(pred)]), torch.tensor([0, len(truth)]), cost="giou")
    return found


SEARCH = "box_match.triton_kernel_search"
BARRIERS = inspect.getsource(kernels_of(SEARCH)).count(BARRIER)


@pytest.mark.parametrize("few_are_pred", [True, False])
def test_a_crowded_search_is_clean(few_are_pred: bool) -> None:
    assert not crowded(few_are_pred).faults


@pytest.mark.parametrize("number", range(BARRIERS))
def test_every_barrier_of_the_search_is_needed(number: int, tmp_path: Path) -> None:
    module = kernels_of(SEARCH)
    source = inspect.getsource(module)
    match = list(re.finditer(re.escape(BARRIER), source))[number]
    with planted(module, source[: match.start()] + "pass" + source[match.end() :], tmp_path):
        found = crowded(True)
    assert found.kinds & {Kind.READS_LANE, Kind.WRITES_LANE}


@pytest.mark.parametrize("size", ["overlap", "past registers"])
def test_the_barrier_before_pairs_are_paid_is_needed(size: str, tmp_path: Path) -> None:
    module = kernels_of("box_reward.triton_kernel")
    with planted(module, replaced(module, f"    {BARRIER}  # lanes read pairs that others wrote\n", ""), tmp_path):
        found, comparisons = compared("box_reward", "box_reward", size, torch.float32)
    assert Kind.READS_LANE in found.kinds and "match_ptr" in str(found)
    assert all(comparison.ok for comparison in comparisons), "values do not show it"


# Module, passage, what takes its place; op, room and size that show it; what is reported of which parameters.
ORDERS_AND_BOUNDS = {
    "a pair too many": (
        *("giou.triton_kernel", '"""Score BLOCK pairs."""\n', "giou", "giou", "odd"),
        ("mask = pairs < num_pairs\n", "mask = pairs < num_pairs + 1\n"),
        {(Kind.OUTSIDE, "pred_ptr"), (Kind.OUTSIDE, "target_ptr"), (Kind.OUTSIDE, "out_ptr")},
    ),
    "programs that overlap by a pair": (
        *("giou.triton_kernel", '"""Score BLOCK pairs."""\n', "giou", "giou", "odd"),
        ("* BLOCK + tl", "* (BLOCK - 1) + tl"),
        {(Kind.TWO_PROGRAMS, "out_ptr")},
    ),
    "keys that the softmax hides, read past the cache": (
        *("decode_attention.triton_kernel", "k = tl.load(key + far * key_stride", "decode_attention"),
        *("decode_attention", "prompts shuffled, head_dim 72"),
        ("mask=mask,", "mask=(dims < HEAD_DIM)[None, :] & (far >= 0),"),
        {(Kind.OUTSIDE, "prompt_key"), (Kind.OUTSIDE, "key")},
    ),
}


@pytest.mark.parametrize("fault", ORDERS_AND_BOUNDS)
def test_what_values_do_not_show_is_reported(fault: str, tmp_path: Path) -> None:
    name, after, op, room, size, (old, new), expected = ORDERS_AND_BOUNDS[fault]
    module = kernels_of(name)
    with planted(module, replaced(module, *passage(module, after, old, new)), tmp_path):
        found, comparisons = compared(op, room, size, torch.float32)
    assert {(fault.kind, fault.parameter) for fault in found.faults} == expected
    assert all(comparison.ok for comparison in comparisons)


def passage(module: ModuleType, after: str, old: str, new: str) -> tuple[str, str]:
    """Return a passage that begins with `after` and ends with `old`, and the same one with `new` at its end."""
    source = inspect.getsource(module)
    assert source.count(after) == 1, f"{module.__name__} has changed: {after!r}"
    text = source[source.index(after) : source.index(old, source.index(after)) + len(old)]
    return text, text[: -len(old)] + new


# Module, passage, what takes its place; op, room and size that show it.
CASTS = {
    "boxes not widened": (
        *("giou.triton_kernel", LOAD_BOXES, LOAD_BOXES.replace(".to(tl.float32)", "")),
        *("box_reward", "box_reward", "overlap"),
    ),
    "a gradient summed from bf16": (
        *("giou.triton_kernel", "tl.sum(gx1, 1)", "tl.sum(gx1.to(grad_own_ptr.dtype.element_ty), 1)"),
        *("pairwise_giou", "giou", "wide"),
    ),
}


@pytest.mark.parametrize("fault", CASTS)
def test_a_cast_too_few_or_too_many_shows_in_bf16_alone(fault: str, tmp_path: Path) -> None:
    name, old, new, op, room, size = CASTS[fault]
    module = kernels_of(name)
    with planted(module, replaced(module, old, new), tmp_path):
        assert all(comparison.ok for comparison in compared(op, room, size, torch.float32)[1])
        assert not all(comparison.ok for comparison in compared(op, room, size, torch.bfloat16)[1])


def test_a_fault_for_a_passage_that_is_gone_is_an_error() -> None:
    module = kernels_of("giou.triton_kernel")
    for text, times in (("no such passage", 0), ("mask = pairs < num_pairs", 2)):
        with pytest.raises(AssertionError, match=f"holds {times} times, expected once"):
            replaced(module, text, "")


def test_kernels_are_their_own_again_afterwards(tmp_path: Path) -> None:
    module = kernels_of("giou.triton_kernel")
    before = dict(vars(module)), dict(vars(kernels_of("box_reward.triton_kernel")))
    with planted(module, inspect.getsource(module), tmp_path):
        assert vars(module)["overlap_terms"] is not before[0]["overlap_terms"]
        assert kernels_of("box_reward.triton_kernel").overlap_terms is module.overlap_terms
    assert before == (dict(vars(module)), dict(vars(kernels_of("box_reward.triton_kernel"))))
