"""Registration of decode_attention. CUDA: Triton; CPU: batched dense products, each prompt read once for all its rows.

One call serves one layer of one new token, so its fixed cost counts: the op is registered in the plain define/impl
form, the leanest that PyTorch has.
"""

from __future__ import annotations

from functools import lru_cache
from math import isnan
from typing import Any

import torch
from torch import Tensor

from .. import back_ends
from ..back_ends import Choice
from ..transforms import as_autocast, is_autocast, refuse_transforms
from .plain import as_far_as_filled, to_own, to_prompts_and_own
from .reference import Call, decode_attention_reference

OP = "decode_attention"
BACK_ENDS = back_ends.declare("decode_attention", OP, ("triton", "sdpa"), plain="torch")
"""Names that the table may use; `sdpa` takes full caches without prompts only."""
FEW_ROWS = 8
"""Up to so many rows a GPU is filled by cutting their caches into parts."""
MAX_SPLITS = 32
"""Most parts that a row's prompt, and the tokens after it, are each cut into."""
MAX_HEAD_DIM = 128
MAX_GROUP = 64
"""Most query heads that may share a key/value head in the Triton kernels: the rows of one tile."""


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    lengths: Tensor | None = None,
    *,
    left_pad: Tensor | None = None,
    prompt_key: Tensor | None = None,
    prompt_value: Tensor | None = None,
    prompt_lengths: Tensor | None = None,
    prompt_of: Tensor | None = None,
    scale: float | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Attend from one new token of each row to everything before it: the row's prompt, then its own cached tokens.

    Rows that continue one prompt share its keys and values: they are stored once, and on the GPU read once for all
    neighbouring rows of it. Without prompts this is attention to a plain contiguous cache. For inference: no gradients.

    Shapes: B rows, H query heads, K key/value heads (H a multiple of K), D head width, S columns of the cache,
        n prompts of at most P tokens. All tensors may be views whose last axis is contiguous.
    One call for all tokens: pass caches whole, with room for S tokens, and say in `lengths` how far they are filled;
        `left_pad`, `prompt_lengths` and `prompt_of` may change likewise. No shape, grid or buffer depends on them and
        no host reads them on CUDA, so a CUDA graph that holds the call serves every token until the caches are full.
        Work follows `lengths`, not S. The number of parts is fixed by B, S, P and n: by the sizes that a graph has.
    Numerics: scores, softmax and sums in fp32 (float64 for float64). A row without any token gives 0. What a cache
        holds outside a row's tokens is never used, be it NaN. Deterministic: no atomics, partial results are added in
        a fixed order. Bit for bit, on CUDA what a row gives does not depend on the contents, lengths or prompts of the
        rows beside it; nor, with `num_splits` given, on S (a cache passed whole equals its filled columns,
        `keys[:, :, :stop]`) or, without prompts, on how many rows are beside it. On the CPU it does not depend on S
        behind the longest row. What else changes with B, n or S changes the rounding alone.

    Args:
        query: (B, H, D).
        key_cache: (B, K, S, D); query head h reads key/value head h // (H // K). Heads lie before columns so that
            what one program reads is one contiguous stretch.
        value_cache: (B, K, S, D).
        lengths: (B,) int32; a row's tokens end before this column, and before S. None: all at S.
        left_pad: (B,) int32; the column a row's tokens begin at, 0 where it is negative. None: all at 0.
        prompt_key: (n, K, P, D), tokens on the left. None: no prompts.
        prompt_value: (n, K, P, D).
        prompt_lengths: (n,) int32 tokens of each prompt; more than P count as P. None: all P.
        prompt_of: (B,) int32 prompt of each row, from 0 to n - 1. Rows of one prompt may stand anywhere; standing
            together they share its bytes. On CUDA this is not checked, because it would make the host wait: there a row
            of another number has no prompt.
        scale: factor on the scores; default D ** -0.5.
        num_splits: parts that a row's prompt, and its own tokens, are each cut into; None: as many as fill the GPU.

    Returns:
        (B, H, D) in the dtype of `query`; under autocast in that of `F.linear`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, only some of the prompt's tensors are given, or, on the CPU,
            `prompt_of` names no prompt.
        RuntimeError: a gradient is asked for.

    Reference: Dao et al. 2023, Flash-Decoding; Juravsky et al. 2024, Hydragen (shared prefixes), arXiv 2402.05099.
    """
    call = Call(
        query, key_cache, value_cache, lengths, left_pad, prompt_key, prompt_value, prompt_lengths, prompt_of
    )
    if is_autocast(query.device):
        names = ("query", "key_cache", "value_cache", "prompt_key", "prompt_value")
        call = call._replace(**{name: as_autocast(getattr(call, name)) for name in names})
    _check(call)
    if num_splits is not None and not 1 <= num_splits <= MAX_SPLITS:
        raise ValueError(f"decode_attention: num_splits is {num_splits}, expected 1 to {MAX_SPLITS}")
    refuse_transforms("decode_attention", query, key_cache, value_cache, prompt_key, prompt_value)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    # On the CPU the dispatcher would only add its own time, a quarter of a small call's, where nothing traces the call.
    direct = query.device.type == "cpu" and type(query) is Tensor and not torch.compiler.is_compiling()
    return (_decode_attention if direct else _op)(*call, factor, num_splits)


def choices(device: torch.device) -> dict[str, Choice]:
    """Say what serves decode_attention on a device."""
    limit = f"head_dim <= {MAX_HEAD_DIM}, at most {MAX_GROUP} query heads per key/value head"
    found = back_ends.choices(OP, device, torch.bfloat16)
    if not {"torch", "reference"} & {choice.backend for choice in found.values()}:
        found["other heads"] = Choice("reference", "no kernel", (("triton", f"serves {limit}"),))
    return found


def shape_class(rows: int, is_full: bool, has_prompts: bool) -> str:
    """Return the name that the table has for a class of shapes."""
    cache = "prompts" if has_prompts else "full cache" if is_full else "ragged cache"
    return f"{cache}, {'at most' if rows <= FEW_ROWS else 'more than'} {FEW_ROWS} rows"


def _check(call: Call) -> None:
    """Raise where arguments do not fit; written to pass quickly, as every layer of every token comes here."""
    query, key_cache, value_cache, lengths, left_pad, prompt_key, prompt_value, prompt_lengths, prompt_of = call
    fits = query.ndim == 3 and _is_cache(key_cache, value_cache, query, query.shape[0])
    fits = fits and query.shape[1] % key_cache.shape[1] == 0
    fits = fits and _is_index(lengths, query) and _is_index(left_pad, query)
    if prompt_key is not None or prompt_value is not None or prompt_lengths is not None or prompt_of is not None:
        if prompt_key is None or prompt_value is None or prompt_of is None:
            raise ValueError("decode_attention: prompts need prompt_key, prompt_value and prompt_of together")
        fits = fits and _is_cache(prompt_key, prompt_value, query, prompt_key.shape[0])
        fits = fits and prompt_key.shape[1] == key_cache.shape[1]
        fits = fits and _is_index(prompt_of, query) and _is_index(prompt_lengths, prompt_key)
    if not fits:
        given = zip(call._fields, call, strict=True)
        shapes = ", ".join(f"{name} {tuple(x.shape)} {x.dtype}" for name, x in given if x is not None)
        raise ValueError(
            f"decode_attention: {shapes}: expected (B, H, D), (B, K, S, D) twice and (n, K, P, D) twice, floats of one "
            "dtype, H a multiple of K; int32 (B,) for lengths, left_pad and prompt_of, int32 (n,) for prompt_lengths"
        )
    tensors = (query, key_cache, value_cache, prompt_key, prompt_value)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise RuntimeError("decode_attention has no gradient: call it under torch.no_grad()")


@lru_cache(maxsize=64)
def check_owners(prompt_of: tuple[int, ...], num_prompts: int) -> None:
    """Check that every row's prompt is one of `num_prompts`.

    Raises:
        ValueError: one is not.
    """
    for row, prompt in enumerate(prompt_of):
        if not 0 <= prompt < num_prompts:
            raise ValueError(f"decode_attention: prompt_of[{row}] is {prompt}, expected 0 to {num_prompts - 1}")


def _is_cache(key: Tensor, value: Tensor, query: Tensor, rows: int) -> bool:
    shape = key.shape
    fits = len(shape) == 4 and value.shape == shape and key.dtype == value.dtype == query.dtype
    fits = fits and query.is_floating_point()
    return fits and shape[0] == rows and shape[1] > 0 and shape[3] == query.shape[2]


def _is_index(index: Tensor | None, rows: Tensor) -> bool:
    return index is None or (index.ndim == 1 and index.shape[0] == rows.shape[0] and index.dtype == torch.int32)


_library = torch.library.Library("medmo_kernels", "FRAGMENT")
_library.define(
    "decode_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor? lengths, Tensor? left_pad, "
    "Tensor? prompt_key, Tensor? prompt_value, Tensor? prompt_lengths, Tensor? prompt_of, float scale, "
    "int? num_splits) -> Tensor"
)


def _decode_attention(*arguments: Any) -> Tensor:
    *tensors, scale, num_splits = arguments
    call = Call(*tensors)
    query, key_cache, value_cache, lengths, left_pad, prompt_key, _, _, prompt_of = call
    if prompt_of is not None and prompt_key is not None and prompt_of.device.type == "cpu":
        check_owners(tuple(prompt_of.tolist()), prompt_key.shape[0])
    is_full, has_prompts = lengths is None and left_pad is None and key_cache.shape[2] > 0, prompt_key is not None
    shape = shape_class(query.shape[0], is_full, has_prompts)
    backend = back_ends.choose(OP, shape, query.device, query.dtype).backend
    if backend == "torch" and query.device.type == "cpu":
        call = as_far_as_filled(call)
        out = to_prompts_and_own(call, scale) if has_prompts else to_own(*call[:5], scale)
        # Dense products multiply what a mask hides by 0, which does not stop NaN; a sum finds NaN quickly. A row
        # without tokens is NaN too.
        masked = call.left_pad is not None or call.lengths is not None or call.prompt_lengths is not None
        if not (masked or call.key_cache.shape[2] == 0) or not isnan(out.sum().item()):
            return out
    elif _fits_kernel(query, key_cache) and backend == "triton":
        from .launch import decode_attention_triton

        return decode_attention_triton(call, scale, num_splits, MAX_SPLITS)
    elif _fits_kernel(query, key_cache) and backend == "sdpa":
        if not is_full or has_prompts:
            raise NotImplementedError("decode_attention by sdpa: it takes full caches without prompts")
        return to_own(query, key_cache, value_cache, None, None, scale)
    return decode_attention_reference(**call._asdict(), scale=scale)


def _fits_kernel(query: Tensor, key_cache: Tensor) -> bool:
    return query.shape[2] <= MAX_HEAD_DIM and query.shape[1] <= MAX_GROUP * key_cache.shape[1]


_library.impl("decode_attention", _decode_attention, "CompositeExplicitAutograd")
_op = torch.ops.medmo_kernels.decode_attention.default


@torch.library.register_fake("medmo_kernels::decode_attention", lib=_library)
def _(query: Tensor, *arguments: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
