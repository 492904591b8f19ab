"""Launcher of the kernels of decode_attention: how many parts, which tiles."""

# The options of a launch are no parameters of the kernel.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..fit import dense, unit_stride
from ..grids import LOG2E, cdiv, next_power_of_2
from ..placement import on_device_of_tensors
from ..tables import Tuned, tuned
from . import triton_kernel as kernels
from .reference import Call

ROOM = "decode_attention"
MAX_BLOCK_M = 64
MIN_BLOCK_M = 16
"""The least M of a matrix product."""


class SplitPlan(NamedTuple):
    """Programs of the first launch.

    Attributes:
        prompt_programs: programs that read prompts, for each key/value head.
        own_programs: programs that read the rows' own caches, for each key/value head.
        prompt_splits: parts of a row's prompt.
        own_splits: parts of a row's own tokens.
        constants: compile-time constants that follow from the shapes.
        config: configuration of the launch.
    """

    prompt_programs: int
    own_programs: int
    prompt_splits: int
    own_splits: int
    constants: dict[str, Any]
    config: Tuned


@on_device_of_tensors
def decode_attention_triton(call: Call, scale: float, num_splits: int | None, max_splits: int) -> Tensor:
    """Launch the kernel of the parts and, where there are several, the one that joins them.

    Grids, buffers and the number of parts follow from shapes alone, so that a CUDA graph of a call serves every token
    that the caches have room for.

    Args:
        call: tensors, checked by `decode_attention`.
        scale: factor on the scores.
        num_splits: parts that a row's prompt, and its own tokens, are each cut into; None: as many as fill the GPU.
        max_splits: most parts that a row's prompt, and the tokens after it, are each cut into.

    Returns:
        (B, H, D) in the dtype of the queries.
    """
    call, prompt_key, prompt_value = _fitting(call)
    query, key, value, lengths, left_pad, _, _, prompt_lengths, prompt_of = call
    rows, num_heads, head_dim = query.shape
    columns, prompt_columns = key.shape[2], 0 if prompt_of is None else prompt_key.shape[2]
    if not rows or not columns + prompt_columns:
        return torch.zeros_like(query, memory_format=torch.contiguous_format)
    plan = _plan(call, columns, prompt_columns, num_splits, max_splits)
    splits = plan.prompt_splits + plan.own_splits
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    part_out, part_lse = out, None
    if splits > 1:
        part_out = query.new_empty(rows, num_heads, splits, head_dim, dtype=torch.float32)
        part_lse = query.new_empty(rows, num_heads, splits, dtype=torch.float32)
    flags = {
        "HAS_PROMPT": prompt_columns > 0,
        "HAS_PROMPT_LENGTHS": prompt_lengths is not None,
        "HAS_LENGTHS": lengths is not None,
        "HAS_LEFT_PAD": left_pad is not None,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
    }
    caches = (key, value, prompt_key, prompt_value)
    kernels.decode_parts_kernel[(plan.prompt_programs + plan.own_programs, key.shape[1])](
        query, key, value, lengths, left_pad, prompt_key, prompt_value, prompt_lengths, prompt_of, part_out, part_lse,
        scale * LOG2E, rows, columns, prompt_key.shape[0], prompt_columns, plan.prompt_programs, plan.prompt_splits,
        plan.own_splits,
        *query.stride()[:2], *(stride for cache in caches for stride in cache.stride()[:3]),
        **plan.constants, **flags, **plan.config.blocks, **plan.config.options,
    )  # fmt: skip
    if part_lse is not None:
        kernels.decode_join_kernel[(rows * num_heads,)](
            part_out, part_lse, out, splits, HEAD_DIM=head_dim, BLOCK_D=plan.constants["BLOCK_D"],
            BLOCK_S=2 * max_splits, **tuned(ROOM, "join", query).options,
        )  # fmt: skip
    return out


def _fitting(call: Call) -> tuple[Call, Tensor, Tensor]:
    """Return tensors as the kernels read them, and the prompts' keys and values again.

    Where there is no prompt, its keys and values are pointers that no program follows.
    """
    numbers = {name: dense(getattr(call, name)) for name in ("lengths", "left_pad", "prompt_lengths", "prompt_of")}
    call = call._replace(
        query=unit_stride(call.query), key_cache=unit_stride(call.key_cache),
        value_cache=unit_stride(call.value_cache), **numbers,
    )  # fmt: skip
    if call.prompt_key is None or call.prompt_value is None or not call.prompt_key.numel():
        key, value = call.key_cache, call.value_cache
        call = call._replace(prompt_lengths=None, prompt_of=None)
    else:
        key, value = unit_stride(call.prompt_key), unit_stride(call.prompt_value)
    return call._replace(prompt_key=key, prompt_value=value), key, value


def _plan(call: Call, columns: int, prompt_columns: int, num_splits: int | None, max_splits: int) -> SplitPlan:
    rows, num_heads, head_dim = call.query.shape
    num_kv_heads = call.key_cache.shape[1]
    group = num_heads // num_kv_heads
    own_m = prompt_m = max(MIN_BLOCK_M, next_power_of_2(group))
    if prompt_columns and call.prompt_key is not None:
        shared = group * _tile_rows(rows, call.prompt_key.shape[0])
        prompt_m = max(own_m, min(MAX_BLOCK_M, next_power_of_2(shared)))
    block_d = max(16, next_power_of_2(head_dim))
    config = tuned(ROOM, "parts", call.query, head_dim=max(64, block_d), tile_m=max(prompt_m, own_m))
    tiles = cdiv(rows, prompt_m // group)
    prompt_splits, own_splits = (
        _splits(num_splits, max_splits, programs * num_kv_heads, longest, config)
        for programs, longest in ((tiles, prompt_columns), (rows, columns))
    )
    constants = {"GROUP": group, "HEAD_DIM": head_dim, "BLOCK_D": block_d, "PROMPT_M": prompt_m, "OWN_M": own_m}
    return SplitPlan(tiles * prompt_splits, rows * own_splits, prompt_splits, own_splits, constants, config)


def _tile_rows(rows: int, num_prompts: int) -> int:
    """Choose the rows of a tile: those of one prompt where all have equally many, else twice the mean or more.

    Tiles that begin in the middle of a prompt read it again; larger ones do so less often.
    """
    mean = next_power_of_2(cdiv(rows, num_prompts))
    return mean if mean * num_prompts == rows else 2 * mean


def _splits(asked: int | None, most: int, programs: int, longest: int, config: Tuned) -> int:
    """Choose into how many parts to cut: enough programs to fill the device, no part below `min_tokens`."""
    if not longest:
        return 0
    if asked is not None:
        return asked
    return max(1, min(config.launch["programs"] // programs, longest // config.launch["min_tokens"], most))
