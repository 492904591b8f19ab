"""Packed attention against its dense definition, values and gradients, on lengths chosen to hurt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmo_kernels.attention import attention, attention_reference
from medmo_kernels.attention.sdpa_plan import MAX_PADDING_RATIO, plan_of

LENGTHS = {
    "one": [7],
    "equal": [5, 5, 5],
    "ragged": [1, 9, 8, 2, 9, 7],
    "single-tokens": [1, 1, 1],
    "empty-document": [4, 0, 3],
    "far-apart": [40, 1, 2, 39, 3],
}


def random_inputs(lengths: list[int], heads: int, kv_heads: int, width: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(sum(lengths), h, width) for h in (heads, kv_heads, kv_heads)]
    tensors = [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]
    return tensors, torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def check(lengths: list[int], causal: bool, heads: int = 4, kv_heads: int = 2, width: int = 8) -> None:
    tensors, bounds = random_inputs(lengths, heads, kv_heads, width)
    weight = torch.linspace(-1, 1, tensors[0].numel(), dtype=torch.float64).view_as(tensors[0])
    for scale in (None, 0.3):
        out = attention(*tensors, bounds, causal, scale)
        expected = attention_reference(*tensors, bounds, causal, scale)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(
            torch.autograd.grad((out * weight).sum(), tensors), torch.autograd.grad((expected * weight).sum(), tensors)
        )


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("name", LENGTHS)
def test_values_and_gradients_equal_the_reference(name: str, causal: bool) -> None:
    check(LENGTHS[name], causal)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(1, 1, 72), (6, 2, 32), (3, 3, 5)])
def test_head_shapes(heads: int, kv_heads: int, width: int) -> None:
    check([6, 5, 3], True, heads, kv_heads, width)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), causal=st.booleans())
def test_any_lengths(lengths: list[int], causal: bool) -> None:
    tensors, bounds = random_inputs(lengths, 2, 1, 4)
    torch.testing.assert_close(attention(*tensors, bounds, causal), attention_reference(*tensors, bounds, causal))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_padding_stays_within_its_share(lengths: list[int]) -> None:
    bounds = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    for group in plan_of(bounds, True, torch.device("cpu")).groups:
        if group.real is not None:
            assert isinstance(group.rows, torch.Tensor)
            assert group.real.numel() >= (1 - MAX_PADDING_RATIO) * group.rows.numel()


def test_wrong_inputs_are_refused() -> None:
    tensors, bounds = random_inputs([4], 4, 2, 8)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2"):
        attention(tensors[0][:, :3], *tensors[1:], bounds, True)
    with pytest.raises(ValueError, match="ends at 3, the batch has 4"):
        attention(*tensors, bounds - 1, True)
