"""Checks of the inputs of qk_norm_rope and its forms."""

import torch
from torch import Tensor

from .reference import Places

MAX_HEAD_DIM = 256


def check_call(query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Raise a ValueError unless the arguments fit together."""
    if query.ndim != 3 or key.ndim != 3 or query.shape[0] != key.shape[0] or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"qk_norm_rope: query {tuple(query.shape)} and key {tuple(key.shape)}, expected (T, H, D) and (T, K, D)"
        )
    num_tokens, _, head_dim = query.shape
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"qk_norm_rope: head width {head_dim} must be even and at most {MAX_HEAD_DIM}")
    if query_weight.shape != (head_dim,) or key_weight.shape != (head_dim,):
        raise ValueError(
            f"qk_norm_rope: weights {tuple(query_weight.shape)} and {tuple(key_weight.shape)}, heads {head_dim} wide"
        )
    table = (num_tokens, head_dim // 2)
    if cos.shape != table or sin.shape != table:
        raise ValueError(f"qk_norm_rope: tables {tuple(cos.shape)} and {tuple(sin.shape)}, expected {table} twice")
    if query.dtype != key.dtype or not query.is_floating_point():
        raise ValueError(f"qk_norm_rope: query is {query.dtype} and key is {key.dtype}, expected floats of one dtype")
    if not query.device == key.device == query_weight.device == key_weight.device == cos.device == sin.device:
        names = ("key", "query_weight", "key_weight", "cos", "sin")
        others = zip(names, (key, query_weight, key_weight, cos, sin), strict=True)
        strangers = ", ".join(f"{name} on {x.device}" for name, x in others if x.device != query.device)
        raise ValueError(f"qk_norm_rope: query is on {query.device}, {strangers}: expected one device")


def check_places(query: Tensor, key: Tensor, places: Places) -> None:
    """Raise a ValueError unless values, caches and columns fit queries and keys; passes quickly."""
    value, key_cache, value_cache, columns = places
    (num_tokens, num_kv_heads, head_dim), dtype, device = key.shape, key.dtype, query.device
    fits = value.shape == key.shape and key_cache.ndim == 4 and key_cache.shape == value_cache.shape
    fits = fits and key_cache.shape[:2] == key.shape[:2] and key_cache.shape[3] == head_dim
    fits = fits and value.dtype == key_cache.dtype == value_cache.dtype == dtype
    fits = fits and columns.shape == (num_tokens,) and columns.dtype == torch.int32
    fits = fits and value.device == key_cache.device == value_cache.device == columns.device == device
    fits = fits and query.stride(2) == key_cache.stride(3) == value_cache.stride(3) == 1
    if not fits:
        named = zip(places._fields, places, strict=True)
        shapes = ", ".join(f"{name} {tuple(x.shape)} {x.dtype} on {x.device}" for name, x in named)
        raise ValueError(
            f"qk_norm_rope: {shapes}: expected {tuple(key.shape)}, then ({num_tokens}, {num_kv_heads}, S, {head_dim}) "
            f"twice, {dtype}, and int32 ({num_tokens},), on {device}; last axes of query and caches of stride 1"
        )
