"""Checks of the arguments of attention."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..transforms import has_values


def check_tensors(query: Tensor, key: Tensor, value: Tensor, rope: tuple[Tensor, Tensor] | None) -> None:
    """Check shapes and dtypes.

    Raises:
        ValueError: they do not fit together.
    """
    if query.ndim != 3 or key.shape != value.shape or key.shape != (query.shape[0], key.shape[1], query.shape[2]):
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise ValueError(f"attention: {shapes}; expected (T, H, D), (T, K, D), (T, K, D)")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key/value heads")
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        dtypes = f"query is {query.dtype}, key {key.dtype}, value {value.dtype}"
        raise ValueError(f"attention: {dtypes}; expected one dtype, of floats")
    if rope is None:
        return
    half = query.shape[2] // 2
    if torch.compiler.is_compiling():  # rows may be known at run time only
        for table in rope:
            torch._check(table.shape[0] == query.shape[0])
    elif query.shape[2] % 2 or any(table.shape != (query.shape[0], half) for table in rope):
        shapes = f"{tuple(rope[0].shape)} and {tuple(rope[1].shape)}"
        raise ValueError(f"attention: rope {shapes} beside query {tuple(query.shape)}; expected (T, D / 2) twice")


def check_segments(query: Tensor, cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None) -> None:
    """Check the packing as far as that needs no word from a GPU, nor numbers that a traced call does not have.

    Raises:
        ValueError: they are not whole numbers, the boundaries do not rise from 0 to T, or `prompt_of` breaks its rules.
    """
    for name, given in (("cu_seqlens", cu_seqlens), ("prompt_of", prompt_of)):
        if given is not None and (given.ndim != 1 or given.dtype not in (torch.int32, torch.int64)):
            shape = f"{name} {tuple(given.shape)} {given.dtype}"
            raise ValueError(f"attention: {shape}; expected one axis of int32 or int64")
    if cu_seqlens.device.type == "cpu" and has_values(cu_seqlens):
        check_bounds(tuple(cu_seqlens.tolist()), query.shape[0])
    if prompt_of is None:
        return
    if not causal:
        raise ValueError("attention: prompt_of needs causal=True")
    if prompt_of.shape != cu_seqlens[1:].shape:
        shapes = f"prompt_of {tuple(prompt_of.shape)}, cu_seqlens {tuple(cu_seqlens.shape)}"
        raise ValueError(f"attention: {shapes}; expected (s,) and (s + 1,)")
    if prompt_of.device.type == "cpu" and has_values(prompt_of):
        check_prompts(tuple(prompt_of.tolist()))


@lru_cache(maxsize=64)
def check_bounds(bounds: tuple[int, ...], num_tokens: int) -> None:
    """Check that segments lie one behind the other and cover the batch.

    Raises:
        ValueError: they do not.
    """
    if not bounds or bounds[-1] != num_tokens:
        last = bounds[-1] if bounds else "nothing"
        raise ValueError(f"cu_seqlens ends at {last}, the batch has {num_tokens} tokens")
    if bounds[0] != 0 or any(stop < start for start, stop in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"cu_seqlens is {list(bounds)}, expected numbers that rise from 0 to {num_tokens}")


@lru_cache(maxsize=64)
def check_prompts(prompts: tuple[int, ...]) -> None:
    """Check that segments can share prompts in this way; see `prompt_of` of `attention`.

    Raises:
        ValueError: they cannot.
    """
    for segment, prompt in enumerate(prompts):
        if prompt < 0:
            continue
        if prompt >= segment or prompts[segment - 1] != prompt and segment - 1 != prompt:
            raise ValueError(f"prompt_of[{segment}] is {prompt}: branches must follow their prompt directly")
        if prompts[prompt] >= 0:
            raise ValueError(f"prompt_of[{segment}] is {prompt}, which has a prompt itself: only one level is possible")
