"""Supervised learning from many answers to one image: one prompt with branches beside separate rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models import MedMO

from ..suite.comparison import Comparison
from .layouts import Learning, compare_layouts, shape_of

CASES = ((8, 50), (5, 60))
"""Answers, and tokens of each; on a CPU the first alone."""


def lay_out(items: Sequence[Document], share: bool) -> Batch:
    """Pack documents."""
    return pack(items, share_prefixes=share)


def step(model: MedMO, batch: Batch) -> Tensor:
    """Run the training loss forward and backward, the transfer of the batch included."""
    loss = model.loss(batch.to(model.head_weight.device))
    loss.backward()
    return loss.detach()


SUPERVISED = Learning(lay_out, step, step)


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    cases = CASES if device.type == "cuda" and not short else CASES[:1]
    shapes = [shape_of(device, answers, length, short=short) for answers, length in cases]
    return [compare_layouts("shared_prefix", SUPERVISED, shape, device) for shape in shapes]
