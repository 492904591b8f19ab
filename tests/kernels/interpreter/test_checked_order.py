"""What two programs, or two lanes between barriers, do to one address is reported; what one lane does is not."""

import pytest
import torch

from medmo_kernels import runtime

pytest.importorskip("ml_dtypes")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from .checked_launches import checked_interpreter  # noqa: E402
from .findings import Findings, Kind  # noqa: E402

pytestmark = pytest.mark.skipif(not runtime.interpreter_is_set(), reason="kernels run on the chip")
LANES = 128
"""Lanes of the four warps that a launch has by itself."""


@triton.jit
def programs_kernel(x_ptr, y_ptr, read_step, write_step, N: tl.constexpr):
    """Read a block, then write another; steps are counted in elements from one program to the next."""
    lanes, program = tl.arange(0, N), tl.program_id(0)
    x = tl.load(x_ptr + program * read_step + lanes)
    tl.store(y_ptr + program * write_step + lanes, x + 1)


@triton.jit
def exchange_kernel(x_ptr, BARRIER: tl.constexpr, N: tl.constexpr, WRITE_FIRST: tl.constexpr, OTHER: tl.constexpr):
    """Let each lane write its element, and read it or (OTHER) that of its opposite."""
    lanes = tl.arange(0, N)
    other = N - 1 - lanes if OTHER else lanes
    if WRITE_FIRST:
        tl.store(x_ptr + lanes, lanes.to(tl.float32))
    else:
        tl.load(x_ptr + other)
    if BARRIER:
        tl.debug_barrier()
    if WRITE_FIRST:
        tl.load(x_ptr + other)
    else:
        tl.store(x_ptr + lanes, lanes.to(tl.float32))


@triton.jit
def readers_kernel(x_ptr, ONE_LOAD: tl.constexpr, BARRIER: tl.constexpr, N: tl.constexpr):
    """Let each lane of the upper half overwrite what it and, before it, one of the lower half have read."""
    lanes = tl.arange(0, N)
    upper = lanes >= N // 2
    if ONE_LOAD:
        tl.load(x_ptr + tl.where(upper, lanes, N - 1 - lanes))
    else:
        tl.load(x_ptr + N - 1 - lanes)
        tl.load(x_ptr + lanes)
    if BARRIER:
        tl.debug_barrier()
    tl.store(x_ptr + lanes, 1.0, mask=upper)


@triton.jit
def scalar_kernel(x_ptr, BARRIER: tl.constexpr, WRITE_FIRST: tl.constexpr):
    """Let one lane write what all read."""
    if WRITE_FIRST:
        tl.store(x_ptr, 1.0)
    else:
        tl.load(x_ptr)
    if BARRIER:
        tl.debug_barrier()
    if WRITE_FIRST:
        tl.load(x_ptr)
    else:
        tl.store(x_ptr, 1.0)


@triton.jit
def shapes_kernel(x_ptr, out_ptr, BARRIER: tl.constexpr, N: tl.constexpr):
    """Write a line and read it as a square."""
    lanes = tl.arange(0, N * N)
    tl.store(x_ptr + lanes, lanes.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    square = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + square, tl.load(x_ptr + square))


@triton.jit
def collide_kernel(x_ptr, modulus, STORES: tl.constexpr, BARRIER: tl.constexpr, N: tl.constexpr):
    """Write modulus elements with all lanes, then (STORES = 2) once more, turned around."""
    lanes = tl.arange(0, N)
    tl.store(x_ptr + lanes % modulus, lanes)
    if BARRIER:
        tl.debug_barrier()
    if STORES == 2:
        tl.store(x_ptr + (N - 1 - lanes) % modulus, lanes)


@triton.jit
def aliases_kernel(x_ptr, y_ptr, X: tl.constexpr, Y: tl.constexpr):
    if tl.program_id(0) == 0:
        tl.store(x_ptr + tl.arange(0, X), tl.arange(0, X))
    else:
        tl.load(y_ptr + tl.arange(0, Y))


def launched(kernel: object, grid: int, *args: object, **options: object) -> Findings:
    with checked_interpreter() as found:
        kernel[(grid,)](*args, **options)  # pyright: ignore[reportIndexIssue]
    return found


@pytest.mark.parametrize(
    ("same", "read_step", "write_step", "kinds"),
    [
        (False, 8, 8, set()),
        (False, 0, 8, set()),  # all read one block
        (False, 8, 7, {Kind.TWO_PROGRAMS}),
        (False, 8, 0, {Kind.TWO_PROGRAMS}),
        (True, 8, 8, set()),  # in place
        (True, 4, 8, {Kind.READS_PROGRAM, Kind.WRITES_LANE}),
        (True, 16, 8, {Kind.WRITES_PROGRAM}),
    ],
)
def test_programs_share_nothing_that_one_writes(same: bool, read_step: int, write_step: int, kinds: set[Kind]) -> None:
    x = torch.zeros(64)
    y = x if same else torch.zeros(64)
    found = launched(programs_kernel, 3, x, y, read_step, write_step, N=8, num_warps=1)
    assert found.kinds == kinds


def test_launches_come_one_after_the_other() -> None:
    x = torch.zeros(64)
    with checked_interpreter() as found:
        programs_kernel[(3,)](x, x, 8, 8, N=8)
        programs_kernel[(1,)](x, x, 0, 16, N=8)
    assert not found.faults and found.launches == 2


@pytest.mark.parametrize("write_first", [True, False])
def test_lanes_are_in_step_at_barriers_only(write_first: bool) -> None:
    def kinds(**options: object) -> set[Kind]:
        x = torch.zeros(LANES)
        return launched(exchange_kernel, 2, x, WRITE_FIRST=write_first, **{"N": LANES, **options}).kinds

    race = Kind.READS_LANE if write_first else Kind.WRITES_LANE
    assert race in kinds(OTHER=True, BARRIER=False)
    assert race not in kinds(OTHER=True, BARRIER=True)
    assert race not in kinds(OTHER=False, BARRIER=False)
    # Half as many elements as lanes: others load what one lane writes. That they load it too early harms nobody.
    assert (race in kinds(OTHER=False, BARRIER=False, N=LANES // 2)) == write_first
    assert race not in kinds(OTHER=False, BARRIER=False, N=LANES // 2, num_warps=2)
    assert race not in kinds(OTHER=False, BARRIER=True, N=LANES // 2)


@pytest.mark.parametrize("one_load", [True, False])
@pytest.mark.parametrize("barrier", [True, False])
def test_all_readers_count_and_not_the_last(one_load: bool, barrier: bool) -> None:
    found = launched(readers_kernel, 1, torch.zeros(LANES), ONE_LOAD=one_load, BARRIER=barrier, N=LANES)
    assert found.kinds == (set() if barrier else {Kind.WRITES_LANE})
    assert barrier or "64 of 64 elements" in str(found)


@pytest.mark.parametrize("write_first", [True, False])
@pytest.mark.parametrize("barrier", [True, False])
def test_a_scalar_is_every_lanes_to_read_and_one_lanes_to_write(write_first: bool, barrier: bool) -> None:
    found = launched(scalar_kernel, 1, torch.zeros(1), BARRIER=barrier, WRITE_FIRST=write_first, num_warps=1)
    race = Kind.READS_LANE if write_first else Kind.WRITES_LANE
    assert found.kinds == (set() if barrier else {race})


@pytest.mark.parametrize("barrier", [True, False])
def test_another_shape_lies_otherwise_over_the_lanes(barrier: bool) -> None:
    found = launched(shapes_kernel, 1, torch.zeros(256), torch.zeros(256), BARRIER=barrier, N=16)
    assert found.kinds == (set() if barrier else {Kind.READS_LANE})
    assert barrier or "256 of 256 elements, at interpreter/test_checked_order.py" in str(found)


@pytest.mark.parametrize(
    ("modulus", "stores", "barrier", "clean"),
    [(LANES, 1, False, True), (8, 1, False, False), (LANES, 2, False, False), (LANES, 2, True, True)],
)
def test_two_lanes_write_one_address(modulus: int, stores: int, barrier: bool, clean: bool) -> None:
    x = torch.zeros(LANES, dtype=torch.int32)
    found = launched(collide_kernel, 1, x, modulus, STORES=stores, BARRIER=barrier, N=LANES)
    assert found.kinds == (set() if clean else {Kind.TWO_LANES})


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.int64])
@pytest.mark.parametrize(("first", "shared"), [(0, True), (8, True), (16, False)])
def test_bytes_count_and_not_tensors(dtype: torch.dtype, first: int, shared: bool) -> None:
    """Two views of one storage, of dtypes of different sizes."""
    memory = torch.zeros(512, dtype=torch.int32)
    x, y = memory[:16], memory[first : first + 16].view(dtype)
    found = launched(aliases_kernel, 2, x, y, X=16, Y=len(y))
    assert found.kinds == ({Kind.READS_PROGRAM} if shared else set())
