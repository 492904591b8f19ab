"""Tokens of a batch that are learned, and the rows of the hidden states that predict them.

Shapes: T packed tokens, n documents, L learned tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import IGNORE_INDEX, Batch


def labelled_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Find the rows whose next token is learned.

    Returns:
        (L,) row indices and the (L,) tokens they predict, in the order of `learned_positions`. The row of a token is
        the one before it; that of a branch's first token is the last of its prompt, which so occurs once per branch. A
        row never predicts the first token of the next document.

    Raises:
        ValueError: the batch has no labels.
    """
    positions = learned_positions(batch)
    assert batch.labels is not None
    return predicting_rows(batch)[positions], batch.labels[positions]


def learned_positions(batch: Batch) -> Tensor:
    """Find the tokens that are learned: those with a label that some row predicts.

    Returns:
        (L,) increasing positions in the batch. The document of a learned token is the one its position lies in (its
        row may lie in the prompt of that document).

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.labels is None:
        raise ValueError("this batch has no labels: build it with labels to compute a loss")
    return ((batch.labels != IGNORE_INDEX) & (predicting_rows(batch) >= 0)).nonzero().squeeze(1)


def predicting_rows(batch: Batch) -> Tensor:
    """Return for every token the row that predicts it: (T,), -1 where there is none."""
    rows = torch.arange(-1, batch.num_tokens - 1, device=batch.input_ids.device)
    bounds = batch.cu_seqlens.long()
    before = torch.full_like(bounds[:-1], -1)
    if batch.prompt_of is not None:
        prompts = batch.prompt_of.long()
        before = torch.where(prompts >= 0, bounds[prompts + 1] - 1, before)
    rows[bounds[:-1]] = before
    return rows
