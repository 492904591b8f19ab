"""Retrieval: where the right candidate stands when candidates are ranked by score."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class RetrievalScores(NamedTuple):
    """Figures of a set of queries.

    Attributes:
        recall_at_1: share of the queries whose right candidate stands first.
        median_rank: median rank of the right candidate, 1 = first.
        chance: recall@1 of guessing.
        ranks: rank of the right candidate for each query, for intervals.
    """

    recall_at_1: float
    median_rank: float
    chance: float
    ranks: list[int]


def retrieval_ranks(scores: Tensor, truth: Sequence[int]) -> list[int]:
    """Return the rank of the right candidate of each query, 1 = first.

    A tie counts against the right candidate (equal scores for all put it last), and so does a score that is NaN.

    Args:
        scores: (Q, C), larger is better; -inf where a candidate is not offered to a query.
        truth: Q columns.

    Raises:
        ValueError: shapes or columns do not fit.
    """
    if scores.ndim != 2 or len(truth) != len(scores):
        raise ValueError(f"retrieval: scores {tuple(scores.shape)} for {len(truth)} queries, expected (Q, C)")
    if any(not 0 <= column < scores.shape[1] for column in truth):
        raise ValueError(f"retrieval: truth names columns {sorted(set(truth))}, scores has {scores.shape[1]}")
    offered = scores != float("-inf")
    own = scores.gather(1, torch.tensor(list(truth), dtype=torch.int64, device=scores.device).reshape(-1, 1))
    ahead = ~(scores < own) & offered  # true as well where either is NaN
    return [max(1, int(n)) for n in ahead.sum(1).tolist()]


def retrieval_scores(scores: Tensor, truth: Sequence[int]) -> RetrievalScores:
    """Return recall@1, median rank and chance; arguments as in `retrieval_ranks`.

    Raises:
        ValueError: there is no query, or shapes do not fit.
    """
    ranks = retrieval_ranks(scores, truth)
    if not ranks:
        raise ValueError("retrieval: no queries to score")
    offered = (scores != float("-inf")).sum(1).clamp(min=1).double()
    hits = sum(rank == 1 for rank in ranks)
    return RetrievalScores(hits / len(ranks), float(statistics.median(ranks)), (1 / offered).mean().item(), ranks)
