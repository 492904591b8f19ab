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
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"attention: query is {query.dtype}, key {key.dtype}, value {value.dtype}; expected one dtype")
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
        ValueError: the boundaries do not end at T, or `prompt_of` breaks its rules.
    """
    if cu_seqlens.device.type == "cpu" and has_values(cu_seqlens) and int(cu_seqlens[-1]) != query.shape[0]:
        raise ValueError(f"cu_seqlens ends at {int(cu_seqlens[-1])}, the batch has {query.shape[0]} tokens")
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
