"""Decoding without shared prompts: every row holds its own copy of its prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medmo_kernels.spec import Arguments

from .peer import Peer


def _copied_cache(arguments: Arguments) -> Arguments:
    """Give what generation without shared prompts holds: every row its prompt's keys and values, and one mask."""
    query, key, value = (arguments[name] for name in ("query", "key_cache", "value_cache"))
    rows, _, columns, _ = key.shape
    column = torch.arange(columns, device=key.device)
    stop, first = arguments.get("lengths"), arguments.get("left_pad")
    mask = torch.ones(rows, columns, dtype=torch.bool, device=key.device)
    mask &= True if stop is None else column < stop[:, None]
    mask &= True if first is None else column >= first[:, None]
    if arguments.get("prompt_key") is not None:
        owner = arguments["prompt_of"].long()
        key, value = (torch.cat([arguments[f"prompt_{name}"][owner], own], dim=2)
                      for name, own in (("key", key), ("value", value)))  # fmt: skip
        lengths, width = arguments.get("prompt_lengths"), arguments["prompt_key"].shape[2]
        place = torch.arange(width, device=key.device).expand(rows, -1)
        known = place >= 0 if lengths is None else place < lengths[owner][:, None]
        mask = torch.cat([known, mask], dim=1)
    return {"query": query, "key": key.nan_to_num(), "value": value.nan_to_num(), "mask": mask[:, None, None]}


def _masked_sdpa(*, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    grouped = query.unflatten(1, (key.shape[1], -1))
    return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).flatten(1, 2)


PEERS = {"SDPA, prompts copied per row": Peer(_masked_sdpa, prepare=_copied_cache)}
