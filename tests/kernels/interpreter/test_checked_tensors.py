"""Every access outside the tensor that it began at is reported and not executed; sound ones pass, whatever the view."""

from typing import Any

import pytest
import torch

from medmo_kernels import runtime

pytest.importorskip("ml_dtypes")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from triton.language.semantic import TritonSemantic  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from .checked_launches import checked_interpreter  # noqa: E402
from .findings import Findings, Kind  # noqa: E402

pytestmark = pytest.mark.skipif(not runtime.interpreter_is_set(), reason="kernels run on the chip")


@triton.jit
def copy_kernel(x_ptr, out_ptr, first, last, shift, N: tl.constexpr):
    lanes = tl.arange(0, N)
    mask = (lanes >= first) & (lanes < last)
    tl.store(out_ptr + lanes, tl.load(x_ptr + lanes + shift, mask=mask, other=7.0), mask=mask)


@triton.jit
def rows_kernel(x_ptr, out_ptr, row_stride, column_stride, num_columns, N: tl.constexpr):
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    mask = (rows >= 0) & (columns < num_columns)
    x = tl.load(x_ptr + rows * row_stride + columns * column_stride, mask=mask, other=0.0)
    tl.store(out_ptr + rows * N + columns, x)


@triton.jit
def words_kernel(x_ptr, out_ptr, byte):
    word = (x_ptr.to(tl.pointer_type(tl.int8)) + byte).to(tl.pointer_type(tl.int32))
    tl.store(out_ptr, tl.load(word))


@triton.jit
def number_kernel(out_ptr, address):
    tl.store(address.to(tl.pointer_type(tl.float32)), tl.load(out_ptr))


@triton.jit
def either_kernel(pair, out_ptr, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out_ptr + lanes, tl.load(tl.where(lanes % 2 == 0, pair[0] + lanes, pair[1] + lanes)))


@triton.jit
def described_kernel(x_ptr, out_ptr, num_rows, N: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [num_rows, N], [N, 1], [N, N]).load([0, 0])
    tl.store(out_ptr + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :], x)


@triton.jit
def atomic_kernel(x_ptr):
    tl.atomic_add(x_ptr, 1.0)


@triton.jit
def rest_kernel(x_ptr, out_ptr, last, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out_ptr + lanes, tl.load(x_ptr + lanes, mask=lanes < last))


@triton.jit
def number_of_kernel(x_ptr, out_ptr, place, OTHER: tl.constexpr):
    if OTHER is None:
        tl.store(out_ptr, tl.load(x_ptr + place, mask=place < 0))
    else:
        tl.store(out_ptr, tl.load(x_ptr + place, mask=place < 0, other=OTHER))


def copied(x: torch.Tensor, out: torch.Tensor, first: int, last: int, shift: int = 0) -> Findings:
    with checked_interpreter() as found:
        copy_kernel[(1,)](x, out, first, last, shift, N=16)
    return found


def test_all_of_a_tensor_is_sound() -> None:
    x, out = torch.randn(16), torch.zeros(16)
    found = copied(x, out, 0, 16)
    assert torch.equal(x, out) and not found.faults and str(found) == "no faults"
    assert (found.launches, found.loads, found.stores) == (1, 1, 1)


def test_what_is_masked_off_is_not_touched() -> None:
    """Wherever its addresses lie, and though the tensors hold nothing."""
    found = copied(torch.empty(0), torch.empty(0), 5, 5, shift=1 << 30)
    assert not found.faults and (found.launches, found.loads, found.stores) == (1, 0, 0)
    assert copied(torch.empty(0), torch.zeros(16), 5, 6).kinds == {Kind.OUTSIDE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_what_a_mask_leaves_undefined_shows(dtype: torch.dtype) -> None:
    x, out = torch.zeros(16, dtype=dtype), torch.zeros(16, dtype=dtype)
    with checked_interpreter() as found:
        rest_kernel[(1,)](x, out, 12, N=16)
    assert not found.faults and not out[:12].any()
    if dtype.is_floating_point:
        assert out[12:].isnan().all()
    else:
        assert (out[12:] == (True if dtype == torch.bool else torch.iinfo(dtype).max)).all()


@pytest.mark.parametrize("other", [0, 1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_a_single_number_masked_off_is_what_the_kernel_says(dtype: torch.dtype, other: int | None) -> None:
    """Though 0 counts as nothing said in the stock interpreter."""
    out = torch.full((1,), 7, dtype=dtype)
    with checked_interpreter() as found:
        number_of_kernel[(1,)](torch.full((4,), 5, dtype=dtype), out, 2, OTHER=other)
    shown = float("nan") if dtype == torch.float32 else torch.iinfo(dtype).max
    expected = torch.tensor([shown if other is None else other], dtype=dtype)
    assert not found.faults and torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize(
    ("last", "shift", "said"),
    [
        (9, 0, "1 of 9 elements, the first 4 bytes past its end"),
        (8, 3, "3 of 8 elements, the first 4 bytes past its end"),
        (8, -2, "2 of 8 elements, the first 8 bytes before its start"),
    ],
)
def test_a_load_outside_is_reported_and_gives_what_a_mask_gives(last: int, shift: int, said: str) -> None:
    around = torch.zeros(32)
    around[8:16], out = torch.arange(11.0, 19.0), torch.zeros(16)
    found = copied(around[8:16], out, 0, last, shift)
    (fault,) = found.faults
    assert fault.kind == Kind.OUTSIDE and said in str(fault) and "x_ptr, float32 [8]" in str(fault)
    assert "interpreter/test_checked_tensors.py" in str(fault)
    assert (out == 7.0).sum() == int(said.split()[0])


def test_a_store_outside_is_reported_and_not_executed() -> None:
    around = torch.zeros(32)
    found = copied(torch.ones(16), around[8:16], 0, 9)
    assert found.kinds == {Kind.OUTSIDE} and "out_ptr" in str(found)
    assert around.sum() == 8 and around[16] == 0


def test_the_next_tensor_is_outside_too() -> None:
    """One that was handed over as well, behind the first in one storage."""
    both = torch.zeros(32)
    assert copied(both[:8], both[8:], 0, 9).kinds == {Kind.OUTSIDE}


@pytest.mark.parametrize(
    ("view", "columns", "clean"),
    [
        (lambda x: x[:, :6], 6, True),
        (lambda x: x[:, :6], 7, False),  # in memory, of the same storage, and no number of the view
        (lambda x: x[:, ::2], 5, True),
        (lambda x: x[:8, :8].T, 8, True),
        (lambda x: x[:, 4:5].expand(8, 8), 8, True),
        (lambda x: x[:, 4:5].expand(8, 8)[:7], 8, False),
    ],
)
def test_strides_count(view: Any, columns: int, clean: bool) -> None:
    x = view(torch.randn(8, 10))
    out = torch.zeros(8, 8)
    with checked_interpreter() as found:
        rows_kernel[(1,)](x, out, *x.stride(), columns, N=8)
    assert found.kinds == (set() if clean else {Kind.OUTSIDE})
    assert not clean or torch.equal(out[:, :columns], x)


@pytest.mark.parametrize(
    ("byte", "kinds"),
    [(0, set()), (4, set()), (2, {Kind.MISALIGNED}), (14, {Kind.OUTSIDE, Kind.MISALIGNED}), (16, {Kind.OUTSIDE})],
)
def test_wider_accesses(byte: int, kinds: set[Kind]) -> None:
    x, out = torch.arange(8, dtype=torch.int16), torch.zeros(1, dtype=torch.int32)
    with checked_interpreter() as found:
        words_kernel[(1,)](x, out, byte)
    assert found.kinds == kinds
    assert kinds or out.view(torch.int16).tolist() == [byte // 2, byte // 2 + 1]


def test_a_wide_access_needs_each_of_its_elements() -> None:
    with checked_interpreter() as found:
        words_kernel[(1,)](torch.arange(8, dtype=torch.int16)[::2], torch.zeros(1, dtype=torch.int32), 4)
    assert found.kinds == {Kind.OUTSIDE} and "between its rows" in str(found)


def test_an_address_that_comes_from_no_tensor() -> None:
    out = torch.zeros(1)
    with checked_interpreter() as found:
        number_kernel[(1,)](out, out.data_ptr())
    assert found.kinds == {Kind.STRANGER}


@pytest.mark.parametrize(("last", "kinds"), [(16, set()), (15, {Kind.OUTSIDE})])
def test_a_block_may_touch_two_tensors(last: int, kinds: set[Kind]) -> None:
    x, y, out = torch.randn(16), torch.randn(16), torch.zeros(16)
    with checked_interpreter() as found:
        either_kernel[(1,)]((x, y[:last]), out, N=16)
    assert found.kinds == kinds and torch.equal(out[::2], x[::2]) and torch.equal(out[1:last:2], y[1:last:2])


@pytest.mark.parametrize(("num_rows", "kinds"), [(5, set()), (6, {Kind.OUTSIDE})])
def test_what_a_descriptor_says_of_a_tensor_is_checked(num_rows: int, kinds: set[Kind]) -> None:
    x, out = torch.randn(5, 16), torch.ones(16, 16)
    with checked_interpreter() as found:
        described_kernel[(1,)](x, out, num_rows, N=16)
    assert found.kinds == kinds and torch.equal(out[:5], x) and not out[5:].any()


def test_what_goes_unchecked_is_an_error() -> None:
    x = torch.zeros(1)
    with checked_interpreter(), pytest.raises(interpreter.InterpreterError, match="atomic_rmw would go unchecked"):
        atomic_kernel[(1,)](x)
    atomic_kernel[(1,)](x)
    assert x == 1, "the stock interpreter is back"


def test_the_interpreter_is_as_before_afterwards() -> None:
    def state() -> list[Any]:
        builder = interpreter.InterpreterBuilder
        parts = (interpreter._interpreter, interpreter._implicit_cvt, interpreter._get_np_dtype)
        return [*parts, *vars(builder).values(), interpreter.GridExecutor.__call__, TritonSemantic.load]

    before = state()
    with pytest.raises(KeyError), checked_interpreter():
        assert state() != before
        with pytest.raises(RuntimeError, match="checked already"), checked_interpreter():
            pass
        raise KeyError
    assert state() == before
