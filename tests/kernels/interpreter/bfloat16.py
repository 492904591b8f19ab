"""bfloat16 in Triton's interpreter, which else keeps raw bits and multiplies those.

The numbers become those of `ml_dtypes`, which NumPy adds, compares and rounds (to nearest, ties to even) as a GPU does.
Matrix products widen their operands first: products of two bf16 numbers are exact in fp32, where a GPU sums them too.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_bits(numbers: np.ndarray) -> np.ndarray:
    """Return bf16 numbers as the 16-bit integers that they are in memory, any others as they are."""
    return numbers.view(np.uint16) if numbers.dtype == BFLOAT16 else numbers


@contextmanager
def bfloat16_numbers() -> Iterator[None]:
    """Let kernels compute with bf16 numbers while the context lasts; what touches memory must call `as_bits`."""
    builder = interpreter.InterpreterBuilder
    stock_dtype, stock_dot, stock_fma = interpreter._get_np_dtype, builder.create_dot, builder.create_fma

    def numpy_dtype(dtype: tl.dtype) -> np.dtype:
        scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        return BFLOAT16 if scalar == tl.bfloat16 else stock_dtype(dtype)

    def cast(self: Any, source: Any, dtype: tl.dtype) -> Any:
        return interpreter.TensorHandle(source.data.astype(numpy_dtype(dtype.scalar)), dtype.scalar)

    def dot(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        return stock_dot(self, _widened(a), _widened(b), total, *options)

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        """Round once, from fp32: the exact product of two bf16 numbers fits there."""
        if z.data.dtype != BFLOAT16:
            return stock_fma(self, x, y, z)
        return cast(self, stock_fma(self, *map(_widened, (x, y, z))), tl.bfloat16)

    with ExitStack() as stack:
        stack.enter_context(patch.object(interpreter, "_get_np_dtype", numpy_dtype))
        for name, method in (("cast_impl", cast), ("create_dot", dot), ("create_fma", fma)):
            stack.enter_context(patch.object(builder, name, method))
        yield


def _widened(handle: Any) -> Any:
    if handle.data.dtype != BFLOAT16:
        return handle
    return interpreter.TensorHandle(handle.data.astype(np.float32), tl.float32)
