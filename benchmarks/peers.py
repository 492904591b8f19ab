"""What others offer for the same work, by op: called with the op's own arguments, prepared once outside the clock.

A peer is reported absent, with the reason, where its package or a GPU is missing.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medmo_kernels.attention import peers as attention_peers
from medmo_kernels.box_match.reference import pair_costs
from medmo_kernels.box_reward.reference import COST_OF, score_matches
from medmo_kernels.projector.cases import listed
from medmo_kernels.spec import Arguments


def _unprepared(arguments: Arguments) -> Arguments:
    return arguments


@dataclass(frozen=True)
class Peer:
    """Another way of doing an op's work.

    Attributes:
        function: takes what `prepare` returns; gives what the op gives.
        needs: packages by import name.
        cuda: it runs on a GPU only.
        prepare: turns the op's arguments into the peer's: what a user of the peer would have at hand.
    """

    function: Callable[..., Any]
    needs: tuple[str, ...] = ()
    cuda: bool = False
    prepare: Callable[[Arguments], Arguments] = _unprepared

    def refusal(self, device: torch.device) -> str:
        """Say why it cannot run here, or return an empty text."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        return "runs on a GPU only" if self.cuda and device.type != "cuda" else ""


# --- patch_embed -----------------------------------------------------------------------------------------------------


def _processor_rows(arguments: Arguments) -> Arguments:
    """Give what transformers' processor would: float32 rows, normalised, the frame there twice."""
    patches, weight = arguments["patches"], arguments["weight"]
    rows = patches
    if patches.dtype == torch.uint8:
        mean, std = (torch.tensor(arguments[name], device=patches.device) for name in ("image_mean", "image_std"))
        channels = (patches.float() / 255.0).unflatten(1, (3, -1))
        rows = ((channels - mean[:, None]) / std[:, None]).flatten(1)
    width = weight[0].numel()
    if rows.shape[1] != width:
        frames = weight.shape[2]
        rows = rows.unflatten(1, (3, 1, -1)).expand(-1, -1, frames, -1).flatten(1)
    return {**arguments, "patches": rows.contiguous()}


def _with_positions(tokens: Tensor, table: Tensor | None, coordinates: Tensor | None) -> Tensor:
    """Add bilinear positions as transformers does: four gathers, four weights, a sum."""
    if table is None or coordinates is None:
        return tokens
    side = round(table.shape[0] ** 0.5)
    low = coordinates.floor()
    high = (low + 1).clamp(max=side - 1)
    (top, left), (bottom, right), (down, across) = low.T, high.T, (coordinates - low).T
    index = torch.stack([top * side + left, top * side + right, bottom * side + left, bottom * side + right]).long()
    shares = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    weights = torch.stack(shares).to(table.dtype)
    return tokens + (F.embedding(index, table) * weights[..., None]).sum(0)


def _conv3d(*, patches: Tensor, weight: Tensor, bias: Tensor | None, position_table: Tensor | None,
            coordinates: Tensor | None, **_: Any) -> Tensor:  # fmt: skip
    volumes = patches.to(weight.dtype).view(-1, *weight.shape[1:])
    tokens = F.conv3d(volumes, weight, bias, stride=weight.shape[2:]).flatten(1)
    return _with_positions(tokens, position_table, coordinates)


def _linear_rows(*, patches: Tensor, weight: Tensor, bias: Tensor | None, position_table: Tensor | None,
                 coordinates: Tensor | None, **_: Any) -> Tensor:  # fmt: skip
    return _with_positions(F.linear(patches.to(weight.dtype), weight.flatten(1), bias), position_table, coordinates)


# --- attention -------------------------------------------------------------------------------------------------------


def _rotated(x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    if rope is None:
        return x
    cos, sin = (torch.cat([part, part], dim=-1).unsqueeze(1) for part in rope)
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def _varlen(*, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None,
            rope: tuple[Tensor, Tensor] | None, longest: int) -> Tensor:  # fmt: skip
    if prompt_of is not None:
        raise NotImplementedError("no shared prompts")
    q, k = _rotated(query, rope), _rotated(key, rope)
    return attention_peers.varlen_attention(q, k, value, cu_seqlens, causal, query.shape[-1] ** -0.5, longest)


def _xformers(*, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool, prompt_of: Tensor | None,
              rope: tuple[Tensor, Tensor] | None, longest: int) -> Tensor:  # fmt: skip
    del longest
    if prompt_of is not None:
        raise NotImplementedError("no shared prompts")
    q, k = _rotated(query, rope), _rotated(key, rope)
    return attention_peers.xformers_attention(q, k, value, cu_seqlens, causal, query.shape[-1] ** -0.5)


def _with_longest(arguments: Arguments) -> Arguments:
    return {**arguments, "longest": int(arguments["cu_seqlens"].diff().max())}


# --- qk_norm_rope ----------------------------------------------------------------------------------------------------


def _transformers_norm_rope(*, query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor,
                            sin: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:  # fmt: skip
    from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    whole = [torch.cat([part, part], dim=-1).to(query.dtype) for part in (cos, sin)]
    return apply_rotary_pos_emb(norm(query, query_weight), norm(key, key_weight), *whole)


def _liger_norm_rope(*, query: Tensor, key: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor,
                     eps: float = 1e-6) -> tuple[Tensor, Tensor]:  # fmt: skip
    from liger_kernel.ops import LigerRMSNormFunction, LigerRopeFunction

    q, k = (
        LigerRMSNormFunction.apply(x.contiguous(), weight, eps, 0.0, "llama", False)
        for x, weight in ((query, query_weight), (key, key_weight))
    )
    whole = [torch.cat([part, part], dim=-1)[None].to(query.dtype) for part in (cos, sin)]
    turned = LigerRopeFunction.apply(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *whole)
    return turned[0][0].transpose(0, 1), turned[1][0].transpose(0, 1)


# --- projector -------------------------------------------------------------------------------------------------------


def _eager_projector(**arguments: Any) -> list[Tensor]:
    """Compute each merger as transformers does, in the dtype of its tensors."""
    outputs = []
    for x, weights in zip(*listed(arguments), strict=True):
        width = weights.fc1_weight.shape[1]
        rows = x.reshape(-1, weights.norm_weight.shape[0])
        merged = F.layer_norm(rows, rows.shape[1:], weights.norm_weight, weights.norm_bias, 1e-6).reshape(-1, width)
        hidden = F.gelu(F.linear(merged, weights.fc1_weight, weights.fc1_bias))
        outputs.append(F.linear(hidden, weights.fc2_weight, weights.fc2_bias))
    return outputs


# --- decode_attention ------------------------------------------------------------------------------------------------


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


# --- boxes -----------------------------------------------------------------------------------------------------------


def scipy_match(
    *, pred: Tensor, truth: Tensor, pred_offsets: Tensor, truth_offsets: Tensor, pred_labels: Tensor | None = None,
    truth_labels: Tensor | None = None, image_size: Tensor | None = None, cost: str = "overlap",
) -> Tensor:  # fmt: skip
    """Match as DETR's descendants do: costs on the device, a copy to the host, SciPy problem by problem."""
    from scipy.optimize import linear_sum_assignment

    match = torch.full((len(pred),), -1, dtype=torch.int64)
    p_bounds, t_bounds = pred_offsets.tolist(), truth_offsets.tolist()
    for b in range(len(p_bounds) - 1):
        p, t = slice(p_bounds[b], p_bounds[b + 1]), slice(t_bounds[b], t_bounds[b + 1])
        diagonal = None if image_size is None else float(image_size[b].double().square().sum().sqrt())
        costs = pair_costs(pred[p].double(), truth[t].double(), cost, diagonal).cpu().numpy()
        allowed = np.isfinite(costs)
        if pred_labels is not None and truth_labels is not None:
            allowed &= (pred_labels[p, None] == truth_labels[None, t]).cpu().numpy()
        if not allowed.any():
            continue
        ceiling = (np.ptp(costs[allowed]) + 1.0) * (min(costs.shape) + 1)
        rows, columns = linear_sum_assignment(np.where(allowed, costs, costs[allowed].max() + ceiling))
        kept = allowed[rows, columns]
        match[p_bounds[b] + torch.from_numpy(rows[kept])] = t_bounds[b] + torch.from_numpy(columns[kept])
    return match.to(pred.device)


def _scipy_reward(
    *, pred: Tensor, truth: Tensor, pred_offsets: Tensor, truth_offsets: Tensor, image_size: Tensor, formula: str,
    pred_labels: Tensor | None, truth_labels: Tensor | None, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    match = scipy_match(
        pred=pred, truth=truth, pred_offsets=pred_offsets, truth_offsets=truth_offsets, pred_labels=pred_labels,
        truth_labels=truth_labels, image_size=image_size, cost=COST_OF[formula],
    )  # fmt: skip
    return score_matches(
        pred, truth, pred_offsets, truth_offsets, match, image_size, formula=formula, **options
    )  # fmt: skip


PEERS: dict[str, dict[str, Peer]] = {
    "patch_embed": {
        "Conv3d on float32 rows (transformers)": Peer(_conv3d, prepare=_processor_rows),
        "linear on float32 rows": Peer(_linear_rows, prepare=_processor_rows),
    },
    "attention": {
        "torch varlen (FA2 or FA3)": Peer(_varlen, cuda=True, prepare=_with_longest),
        "xformers": Peer(_xformers, needs=("xformers",), cuda=True, prepare=_with_longest),
    },
    "qk_norm_rope": {
        "transformers": Peer(_transformers_norm_rope, needs=("transformers",)),
        "Liger RMSNorm twice and rope": Peer(_liger_norm_rope, needs=("liger_kernel",), cuda=True),
    },
    "projector": {"torch, merger by merger (transformers)": Peer(_eager_projector)},
    "decode_attention": {"SDPA, prompts copied per row": Peer(_masked_sdpa, prepare=_copied_cache)},
    "box_match": {"SciPy through the host": Peer(scipy_match, needs=("scipy",))},
    "box_reward": {"SciPy through the host": Peer(_scipy_reward, needs=("scipy",))},
}
"""By op, then by the name shown in the tables."""
