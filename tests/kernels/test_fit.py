"""Tensors that fit are handed on as they are, others are copied with the same values; numbers of a launch."""

import pytest
import torch

from medmo_kernels import fit
from medmo_kernels.grids import cdiv, next_power_of_2


def heads(offset: int, width: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Return (5, 2, 64) heads, `width` elements apart, that begin `offset` elements into their memory."""
    return torch.arange(offset + 5 * 2 * width, dtype=dtype)[offset:].view(5, 2, width)[..., :64]


@pytest.mark.parametrize(("offset", "width", "fits"), [(0, 64, True), (0, 72, True), (8, 64, True), (4, 64, False),
                                                       (0, 68, False)])  # fmt: skip
def test_aligned(offset: int, width: int, fits: bool) -> None:
    x = heads(offset, width)
    found = fit.aligned(x)
    assert (found is x) == fits and torch.equal(found, x)
    assert found.data_ptr() % fit.POINTER == 0 and all(stride % fit.STRIDE == 0 for stride in found.stride()[:2])
    assert fit.strides_in_8(found) == [stride // 8 for stride in found.stride()[:2]]


def test_an_unfit_last_axis_is_copied() -> None:
    x = heads(0, 64).transpose(1, 2)
    assert fit.unit_stride(x).stride(-1) == fit.aligned(x).stride(-1) == 1
    assert fit.unit_stride(heads(3, 67)).stride() == heads(3, 67).stride()


def test_heads_that_lie_apart_are_copied() -> None:
    for x, fits in ((heads(3, 64), True), (heads(0, 64)[::2], True), (heads(0, 72), False), (heads(0, 64).mT, False)):
        found = fit.dense_heads(x)
        assert (found is x) == fits and torch.equal(found, x) and found.stride()[1:] == (x.shape[2], 1)


def test_words_hold_the_same_bytes() -> None:
    memory = torch.arange(25, dtype=torch.uint8)
    for offset in (0, 1, 4):
        pixels = memory[offset : offset + 16].view(2, 8)
        assert torch.equal(fit.words(pixels).view(torch.uint8), pixels)


def test_dense_lets_none_pass() -> None:
    assert fit.dense(None) is None and fit.dense_fp32(None) is None
    found = fit.dense_fp32(heads(0, 72))
    assert found is not None and found.dtype == torch.float32 and found.is_contiguous()


def test_whole_numbers() -> None:
    assert [cdiv(count, 4) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [next_power_of_2(count) for count in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
