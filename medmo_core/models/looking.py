"""The loss of a batch's looks: what each sees, where it should look, and which layer and head are taught.

Shapes: L looks of some documents, S tokens of these documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import Batch
from ..batch.looks import Looks
from ..losses.attention_supervision import attention_losses
from .targets import predicting_rows

TAUGHT_HEAD = 0


def taught_layer(depth: int) -> int:
    """Return the decoder layer whose attention is supervised: behind two thirds, so that some come after it."""
    return 2 * depth // 3


class LookLoss:
    """Receiver of queries and keys, as `hidden_states` hands them out, that knows the loss of a batch's looks.

    Args:
        batch: batch with looks.
        depth: number of decoder layers.
        visual_ids: token ids of the placeholders of images and videos.
    """

    def __init__(self, batch: Batch, depth: int, visual_ids: tuple[int, int]) -> None:
        self.batch, self.layer, self.visual_ids = batch, taught_layer(depth), visual_ids
        self._query: Tensor | None = None
        self._key: Tensor | None = None

    def keep_qk(self, index: int, query: Tensor, key: Tensor) -> None:
        """Keep the taught head of the taught layer: queries (T, H, D), keys (T, K, D)."""
        if index == self.layer:
            self._query, self._key = query[:, TAUGHT_HEAD], key[:, TAUGHT_HEAD * key.shape[1] // query.shape[1]]

    def total(self) -> Tensor:
        """Return the weighted sum over the looks, a scalar with a graph."""
        assert self._query is not None and self._key is not None and self.batch.looks
        rows = predicting_rows(self.batch)
        is_visual = torch.isin(self.batch.input_ids, self.batch.input_ids.new_tensor(self.visual_ids))
        parts = []
        for looks in self.batch.looks:
            span, of_looks = slice(looks.start, looks.stop), rows[looks.tokens]
            cover = looks.boxes.new_zeros(len(of_looks), looks.stop - looks.start)
            cover[:, is_visual[span]] = looks.covers()
            seen = self._seen(looks, of_looks)
            losses = attention_losses(self._query[of_looks], self._key[span], seen, cover, is_visual[span])
            # A look at boxes that cover nothing is no look away.
            counts = (cover.sum(-1) > 0) | ~torch.isin(torch.arange(len(of_looks), device=rows.device), looks.look_of)
            parts.append(losses @ (looks.weights * counts).to(losses.dtype))
        return torch.stack(parts).sum()

    def _seen(self, looks: Looks, rows: Tensor) -> Tensor:
        """Return which tokens each look sees: its document's up to its row, and the whole of its prompt: (L, S)."""
        tokens = torch.arange(looks.start, looks.stop, device=rows.device)
        document, own = self.batch.document_of(tokens), self.batch.document_of(looks.tokens)
        seen = (document == own[:, None]) & (tokens <= rows[:, None])
        if self.batch.prompt_of is not None:
            seen |= document == self.batch.prompt_of[own][:, None]
        return seen
