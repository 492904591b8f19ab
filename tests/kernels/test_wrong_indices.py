"""Kernels that meet wrong numbers (prompts, lengths, boundaries, places) read and write nothing outside their tensors.

On a GPU nobody checks such numbers, because the host would have to wait. Tensors lie in the middle of larger ones here
that hold NaN, or numbers that would lead far away: what is read outside shows. In Triton's interpreter every address is
checked besides.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_kernels import back_ends, runtime
from medmo_kernels.attention import attention
from medmo_kernels.box_match import box_match
from medmo_kernels.box_reward import box_reward
from medmo_kernels.decode_attention import decode_attention
from medmo_kernels.giou import box_terms, giou, pairwise_box_terms, pairwise_giou
from medmo_kernels.giou.reference import Sets
from medmo_kernels.patch_embed import patch_embed

from .interpreter.checked import checked

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAR = 1 << 20


@pytest.fixture(autouse=True)
def addresses() -> Iterator[None]:
    """No load or store leaves its tensor, whether its value is used or not."""
    with checked():
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernels, and leave out what is checked on the CPU alone."""
    monkeypatch.setenv(runtime.SWITCH, "triton")
    for place in ("attention.op.check_segments", "decode_attention.op.check_owners"):
        module, _, name = place.rpartition(".")
        monkeypatch.setattr(importlib.import_module(f"medmo_kernels.{module}"), name, lambda *arguments: None)


def within(x: Tensor) -> Tensor:
    """Return the middle of a larger tensor: NaN, or numbers that lead far away, before and behind."""
    around = float("nan") if x.is_floating_point() else FAR
    room = torch.full((x.numel() + 256,), around, dtype=x.dtype, device=DEVICE)
    room[128:-128] = x.flatten()
    return room[128:-128].view(x.shape)


def numbers(*shape: int) -> Tensor:
    return within(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))


def whole(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return within(torch.tensor(values, dtype=dtype))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("stranger", [-1, -7, 2, FAR])
def test_a_row_of_no_prompt_has_none(stranger: int, with_lengths: bool) -> None:
    query, key, value = numbers(3, 2, 16), numbers(3, 1, 4, 16), numbers(3, 1, 4, 16)
    prompts = {"prompt_key": numbers(2, 1, 6, 16), "prompt_value": numbers(2, 1, 6, 16)}
    lengths = whole(6, 5) if with_lengths else None
    out = decode_attention(query, key, value, prompt_of=whole(1, stranger, 0), prompt_lengths=lengths, **prompts)
    right = decode_attention(query, key, value, prompt_of=whole(1, 0, 0), prompt_lengths=lengths, **prompts)
    torch.testing.assert_close(out[1], decode_attention(query, key, value)[1])
    torch.testing.assert_close(out[::2], right[::2])


@pytest.mark.usefixtures("unchecked")
def test_rows_have_no_prompt_where_there_is_none() -> None:
    query, key, value, nothing = numbers(3, 2, 16), numbers(3, 1, 4, 16), numbers(3, 1, 4, 16), numbers(0, 1, 6, 16)
    prompts = {"prompt_key": nothing, "prompt_value": nothing, "prompt_of": whole(0, 0, 1)}
    out = decode_attention(query, key, value, **prompts)
    torch.testing.assert_close(out, decode_attention(query, key, value))


@pytest.mark.usefixtures("unchecked")
def test_lengths_beyond_a_cache_end_with_it() -> None:
    query, key, value = numbers(3, 2, 16), numbers(3, 1, 4, 16), numbers(3, 1, 4, 16)
    prompts = {"prompt_key": numbers(2, 1, 6, 16), "prompt_value": numbers(2, 1, 6, 16), "prompt_of": whole(1, 1, 0)}
    wrong = {"lengths": whole(FAR, 4, 5), "left_pad": whole(0, -9, 0), "prompt_lengths": whole(7, FAR)}
    out = decode_attention(query, key, value, **wrong, **prompts)
    torch.testing.assert_close(out, decode_attention(query, key, value, **prompts))
    empty = decode_attention(query, key, value, **{**wrong, "prompt_lengths": whole(-3, -FAR)}, **prompts)
    torch.testing.assert_close(empty, decode_attention(query, key, value))


@pytest.mark.parametrize("stranger", [-1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cpu_refuses_a_row_of_no_prompt(stranger: int, dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 2, 8, dtype=dtype)
    prompts = {"prompt_key": x.expand(2, -1, -1, -1), "prompt_value": x.expand(2, -1, -1, -1)}
    prompt_of = torch.tensor([stranger], dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"prompt_of\[0\] is {stranger}, expected 0 to 1"):
        decode_attention(x[:, :, 0], x, x, prompt_of=prompt_of, **prompts)


INF = float("inf")
PLACES = [(-0.5, 0.25), (-3, 9), (3.75, -1), (2.99, 3.01), (1.5, FAR), (-INF, 0), (3, 3), (0, 0), (1.25, INF)]


@pytest.mark.parametrize("mode", ["auto", "triton"])
def test_places_beyond_the_position_table_are_on_its_edge(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, mode)
    pixels = torch.zeros(len(PLACES), 48, dtype=torch.uint8, device=DEVICE)
    weight, table = within(torch.zeros(5, 3, 1, 4, 4)), numbers(16, 5)
    places = torch.tensor(PLACES, device=DEVICE)
    gradients, outs = [], []
    for coordinates in (places, places.clamp(0, 3)):
        leaf = table.detach().requires_grad_()
        outs.append(patch_embed(pixels, weight, None, leaf, within(coordinates)))
        gradients += torch.autograd.grad(outs[-1].square().sum(), leaf)
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    # What is no place shows, and reads an entry all the same.
    lost = patch_embed(pixels[:2], weight, None, table, torch.tensor([[float("nan"), 1.0], [1.0, 1.0]], device=DEVICE))
    assert lost[0].isnan().all() and not lost[1].isnan().any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bounds", [(0, 20, 50), (0, 20, FAR), (-30, 20, 50), (25, 20, 50)])
@pytest.mark.parametrize("prompts", [None, (-1, 0), (-1, 7), (-5, FAR)])
def test_boundaries_beyond_the_tokens(bounds: tuple[int, ...], prompts: tuple[int, ...] | None) -> None:
    q, k, v = (numbers(40, 1, 64).requires_grad_() for _ in range(3))
    prompt_of = None if prompts is None else whole(*prompts)
    out = attention(q, k, v, whole(*bounds), True, prompt_of=prompt_of)
    out.sum().backward()
    assert q.grad is not None and k.grad is not None and v.grad is not None
    if bounds[0] == 0:
        right = None if prompts is None else whole(*(p if p in (-1, 0) else -1 for p in prompts))
        torch.testing.assert_close(out, attention(q, k, v, whole(0, 20, 40), True, prompt_of=right))
        assert not any(x.grad.isnan().any() for x in (q, k, v) if x.grad is not None)


WRONG_OFFSETS = [(0, 2, 9), (0, FAR, FAR), (-3, 2, 4), (3, 1, 4), (0, 1, 2)]
"""Each box is in a problem of the first three alone."""


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("wrong", WRONG_OFFSETS)
def test_offsets_beyond_the_boxes(wrong: tuple[int, ...], side: int) -> None:
    boxes = numbers(4, 4).abs()
    boxes[:, 2:] += boxes[:, :2]
    boxes = within(boxes)
    offsets = [whole(0, 2, 4, dtype=torch.int64), whole(0, 2, 4, dtype=torch.int64)]
    offsets[side] = whole(*wrong, dtype=torch.int64)
    match = box_match(boxes, boxes, *offsets)
    assert wrong not in WRONG_OFFSETS[:3] or ((match >= -1) & (match < 4)).all()
    assert not box_reward(boxes, boxes, *offsets).score.isnan().any()
    launch, sets = importlib.import_module("medmo_kernels.giou.launch"), Sets(boxes, boxes, *offsets)
    assert not launch.pairwise_forward(sets, 2, False).isnan().any()
    assert not any(grad.isnan().any() for grad in launch.pairwise_backward(sets, within(torch.ones(4, 2, 3)), False))


WHOLE = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 40], [5, 5, 9, 9]])
OFFSETS = torch.tensor([0, 3])
BOX_CALLS: dict[str, Callable[[Tensor], Any]] = {
    "giou": lambda boxes: giou(boxes, boxes.flip(0)),
    "box_terms": lambda boxes: box_terms(boxes, boxes.flip(0)),
    "pairwise_giou": lambda boxes: pairwise_giou(boxes, boxes),
    "pairwise_box_terms": lambda boxes: pairwise_box_terms(boxes, boxes, OFFSETS, OFFSETS, max_target=3),
    "box_match": lambda boxes: box_match(boxes, boxes.flip(0), OFFSETS, OFFSETS),
    "box_reward": lambda boxes: box_reward(boxes, boxes.flip(0), OFFSETS, OFFSETS).score,
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("name", BOX_CALLS)
def test_boxes_of_whole_numbers_run_the_kernels(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, "triton")
    chosen: list[str] = []
    choose = back_ends.choose

    def note(*arguments: Any) -> Any:
        choice = choose(*arguments)
        chosen.append(choice.backend)
        return choice

    monkeypatch.setattr(back_ends, "choose", note)
    torch.testing.assert_close(BOX_CALLS[name](WHOLE.to(dtype)), BOX_CALLS[name](WHOLE.float()))
    assert set(chosen) == {"triton"}


def test_whole_numbers_beside_floats_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, "triton")
    leaf = WHOLE.float().requires_grad_()
    for target in (WHOLE, WHOLE.float()):
        (pairwise_giou(leaf, target).sum() + giou(leaf, target.flip(0)).sum()).backward()
    assert leaf.grad is not None
    half, leaf.grad = leaf.grad / 2, None
    (pairwise_giou(leaf, WHOLE).sum() + giou(leaf, WHOLE.flip(0)).sum()).backward()
    torch.testing.assert_close(leaf.grad, half)
