"""The plan of the dense calls that serve one packing: which documents share a call, and which branches of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MAX_PADDING_RATIO = 0.25
"""A padded group may spend at most this share of its rows on padding."""
MAX_WASTE_RATIO = 0.25
"""A run of branches may spend at most this share of its scores on pairs that the mask hides ..."""
SHORT_RUN = 256
"""... unless it has no more tokens than this: one call is then cheaper than several."""


@dataclass(frozen=True, eq=False)
class DenseGroup:
    """Documents that one dense call serves.

    Attributes:
        num_documents: documents in the group.
        rows: token index of every (padded) row, or a slice where the documents lie end to end.
        real: index of the rows that are not padding, or None when none is padded.
    """

    num_documents: int
    rows: Tensor | slice
    real: Tensor | None


@dataclass(frozen=True, eq=False)
class BranchRun:
    """Consecutive branches of one prompt that one dense call serves.

    Attributes:
        prompt: tokens of the prompt.
        rows: tokens of the branches.
        mask: (branch tokens, prompt tokens + branch tokens), true where a token is seen.
    """

    prompt: slice
    rows: slice
    mask: Tensor


@dataclass(frozen=True, eq=False)
class DensePlan:
    """All calls of one packing, and where their rows belong.

    Attributes:
        groups: calls that serve documents and prompts.
        runs: calls that serve branches.
        order: token index of the rows in the order in which the calls return them; None: they are in place.
    """

    groups: tuple[DenseGroup, ...]
    runs: tuple[BranchRun, ...]
    order: Tensor | None


@lru_cache(maxsize=64)
def plan_of(
    bounds: tuple[int, ...], causal: bool, device: torch.device, prompts: tuple[int, ...] | None = None
) -> DensePlan:
    """Choose the calls; the same plan serves every layer of a step."""
    spans = list(zip(bounds[:-1], bounds[1:], strict=True))
    if prompts is None:
        prompts = (-1,) * len(spans)
    whole = [(stop - start, start) for (start, stop), p in zip(spans, prompts, strict=True) if p < 0 and stop > start]
    groups = [_group(bucket, device) for bucket in _buckets(whole, causal)]
    runs = [_run(spans[prompt], branches, device) for prompt, branches in _runs(spans, prompts)]
    if not groups and not runs:  # no tokens: one empty call keeps the graph
        return DensePlan((DenseGroup(1, slice(0, 0), None),), (), None)
    order: list[Tensor] = []
    for part in (*groups, *runs):
        rows = part.rows if isinstance(part.rows, Tensor) else torch.arange(part.rows.start, part.rows.stop)
        real = part.real if isinstance(part, DenseGroup) else None
        order.append(rows.cpu() if real is None else rows.cpu()[real.cpu()])
    places = torch.cat(order)
    in_place = torch.equal(places, torch.arange(bounds[-1]))
    return DensePlan(tuple(groups), tuple(runs), None if in_place else places.to(device))


def _buckets(spans: list[tuple[int, int]], causal: bool) -> list[list[tuple[int, int]]]:
    """Sort documents, (length, start) each, into groups that one call can serve."""
    if len({length for length, _ in spans}) <= 1:
        return [spans] if spans else []
    buckets: list[list[tuple[int, int]]] = []
    filled = 0
    for length, start in sorted(spans, reverse=True):
        longest = buckets[-1][0][0] if buckets else 0
        rows = longest * (len(buckets[-1]) + 1) if buckets else 0
        fits = length == longest or (causal and filled + length >= rows * (1 - MAX_PADDING_RATIO))
        if buckets and fits:
            buckets[-1].append((length, start))
            filled += length
        else:
            buckets.append([(length, start)])
            filled = length
    return buckets


def _group(bucket: list[tuple[int, int]], device: torch.device) -> DenseGroup:
    longest = bucket[0][0]
    lengths = torch.tensor([length for length, _ in bucket])
    starts = torch.tensor([start for _, start in bucket])
    offset = torch.arange(longest)
    # Padding rows repeat the last real token: a value that exists, whose result is thrown away.
    rows = (starts[:, None] + torch.minimum(offset[None, :], lengths[:, None] - 1)).flatten()
    real = (offset[None, :] < lengths[:, None]).flatten().nonzero().squeeze(1)
    if torch.equal(rows, torch.arange(bucket[0][1], bucket[0][1] + rows.numel())):
        return DenseGroup(len(bucket), slice(bucket[0][1], bucket[0][1] + rows.numel()), None)
    padded = real.numel() < rows.numel()
    return DenseGroup(len(bucket), rows.to(device), real.to(device) if padded else None)


def _runs(spans: list[tuple[int, int]], prompts: tuple[int, ...]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Cut the branches of every prompt into runs: (prompt, spans of the run's branches)."""
    runs: list[tuple[int, list[tuple[int, int]]]] = []
    for span, prompt in zip(spans, prompts, strict=True):
        if prompt < 0 or span[0] == span[1]:
            continue
        length = spans[prompt][1] - spans[prompt][0]
        grown = [*runs[-1][1], span] if runs and runs[-1][0] == prompt else [span]
        tokens = grown[-1][1] - grown[0][0]
        needed = sum((stop - start) * (length + stop - start) for start, stop in grown)
        if len(grown) > 1 and (tokens <= SHORT_RUN or tokens * (length + tokens) * (1 - MAX_WASTE_RATIO) <= needed):
            runs[-1] = (prompt, grown)
        else:
            runs.append((prompt, [span]))
    return runs


def _run(prompt: tuple[int, int], branches: list[tuple[int, int]], device: torch.device) -> BranchRun:
    first, last = branches[0][0], branches[-1][1]
    branch = torch.cat([torch.full((stop - start,), n) for n, (start, stop) in enumerate(branches)])
    own = (branch[:, None] == branch[None, :]).tril()
    mask = torch.cat([own.new_ones(last - first, prompt[1] - prompt[0]), own], dim=1)
    return BranchRun(slice(*prompt), slice(first, last), mask.to(device))
