"""Tensors that fit are handed on as they are, others are copied with the same values; numbers of a launch."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

import medmo_kernels
from medmo_kernels import fit, runtime, verify
from medmo_kernels.grids import cdiv, next_power_of_2
from medmo_kernels.spec import OpSpec

SPECS: list[OpSpec] = [
    spec for path in sorted(Path(medmo_kernels.__path__[0]).glob("*/launch.py"))
    for spec in importlib.import_module(f"medmo_kernels.{path.parent.name}.cases").SPECS
]  # fmt: skip


def numbers_of(spec: OpSpec, size: str) -> dict[str, Tensor]:
    """Return the lengths, offsets, places and the like of a call."""
    arguments = verify.arguments_of(spec, spec.kernel_sizes[size], torch.float32)
    return {name: x for name, x in arguments.items()
            if isinstance(x, Tensor) and x.ndim == 1 and x.numel() > 1 and not x.is_floating_point()}  # fmt: skip


TELLING = {spec.name: max(spec.kernel_sizes, key=lambda size, spec=spec: len(numbers_of(spec, size)))
           for spec in SPECS if spec.kernel_sizes}  # fmt: skip
NUMBERED = [spec for spec in SPECS if spec.name in TELLING and numbers_of(spec, TELLING[spec.name])]


@pytest.mark.parametrize("spec", NUMBERED, ids=lambda spec: spec.name)
def test_numbers_that_lie_apart_are_those_numbers(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of a table of places will do: the kernels never read what lies between."""
    pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, "triton")
    arguments = verify.arguments_of(spec, spec.kernel_sizes[TELLING[spec.name]], torch.float32)
    apart = {
        name: torch.stack([x, torch.full_like(x, 999)], dim=1)[:, 0]
        for name, x in numbers_of(spec, TELLING[spec.name]).items()
    }
    found, expected = (verify.run(spec, spec.function, given) for given in ({**arguments, **apart}, arguments))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


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
