"""bf16 in the interpreter rounds as torch does, and its products are sums of exact products."""

import pytest
import torch

from medmo_kernels import runtime

pytest.importorskip("ml_dtypes")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from .checked_launches import checked_interpreter  # noqa: E402

pytestmark = pytest.mark.skipif(not runtime.interpreter_is_set(), reason="kernels run on the chip")


@triton.jit
def cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out_ptr + lanes, tl.load(x_ptr + lanes).to(out_ptr.dtype.element_ty))


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, sum_ptr, product_ptr, fma_ptr, largest_ptr, N: tl.constexpr):
    lanes = tl.arange(0, N)
    x, y = tl.load(x_ptr + lanes), tl.load(y_ptr + lanes)
    tl.store(sum_ptr + lanes, x + y)
    tl.store(product_ptr + lanes, x * y * 0.3)
    tl.store(fma_ptr + lanes, tl.fma(x, y, x))
    tl.store(largest_ptr, tl.max(tl.maximum(-x, tl.abs(y)), 0))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    rows, cols = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = rows * N + cols
    out = tl.dot(tl.load(a_ptr + at), tl.trans(tl.load(b_ptr + at)), tl.full([N, N], 1.0, tl.float32))
    tl.store(out_ptr + at, out)


def test_every_bf16_number_is_read_and_written_as_it_is() -> None:
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    wide, back = torch.empty(1 << 16), torch.empty(1 << 16, dtype=torch.bfloat16)
    with checked_interpreter() as found:
        cast_kernel[(1,)](numbers, wide, N=1 << 16)
        cast_kernel[(1,)](wide, back, N=1 << 16)
    torch.testing.assert_close(wide, numbers.float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, numbers, rtol=0, atol=0, equal_nan=True)
    assert not found.faults and (found.launches, found.loads, found.stores) == (2, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_casts_round_to_nearest_even(dtype: torch.dtype) -> None:
    bits = torch.randint(-(1 << 31), 1 << 31, (4096,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    bits[:1024] &= ~0xFFFF
    bits[:1024] |= 0x8000  # ties of fp32
    numbers = bits.view(dtype)[:4096] if dtype.is_floating_point else bits
    out = torch.empty(4096, dtype=torch.bfloat16)
    with checked_interpreter():
        cast_kernel[(1,)](numbers, out, N=4096)
    torch.testing.assert_close(out, numbers.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


def test_each_operation_rounds_once() -> None:
    x, y = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    outs = [torch.empty_like(x) for _ in range(3)]
    largest = torch.empty(1, dtype=torch.bfloat16)
    with checked_interpreter():
        arithmetic_kernel[(1,)](x, y, *outs, largest, N=256)
    fused = (x.double() * y.double() + x.double()).to(torch.bfloat16)
    third = torch.tensor(0.3, dtype=torch.bfloat16)
    for got, expected in zip(outs, (x + y, x * y * third, fused), strict=True):
        assert torch.equal(got, expected)
    assert largest == torch.maximum(-x, y.abs()).max()


def test_products_are_summed_in_fp32() -> None:
    """The stock interpreter multiplies bit patterns instead."""
    a, b = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    out = torch.empty(32, 32)
    with checked_interpreter():
        dot_kernel[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double().T + 1, rtol=1e-6, atol=2e-6)
