"""Boxes of many samples laid out as one ragged batch of matching problems."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..boxes import Boxes
from .text import normalise


class BoxProblems(NamedTuple):
    """What `medmo_kernels.box_match` and `box_reward` read, in pixels.

    Shapes: B samples, P predicted and T true boxes over all samples.
    """

    pred: Tensor
    truth: Tensor
    pred_offsets: Tensor
    truth_offsets: Tensor
    pred_labels: Tensor
    truth_labels: Tensor
    image_size: Tensor


def box_problems(pred: Sequence[Boxes], truth: Sequence[Boxes]) -> BoxProblems:
    """Lay predicted and true boxes out as one matching problem per sample.

    Labels compare after normalisation. Where the true boxes have no label, none is compared; a predicted box without
    label takes the label of the true ones where they have only one.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(pred) != len(truth):
        raise ValueError(f"{len(pred)} predictions for {len(truth)} samples: give one per sample")
    names: dict[str, int] = {}
    pred_ids: list[int] = []
    truth_ids: list[int] = []
    for p, t in zip(pred, truth, strict=True):
        p_labels, t_labels = comparable_labels(p.labels, t.labels)
        pred_ids += [names.setdefault(label, len(names)) for label in p_labels]
        truth_ids += [names.setdefault(label, len(names)) for label in t_labels]
    none = torch.zeros(0, 4, dtype=torch.float64)
    return BoxProblems(
        pred=torch.cat([none, *(p.resize(t.size).xyxy for p, t in zip(pred, truth, strict=True))]),
        truth=torch.cat([none, *(t.pixel().xyxy for t in truth)]),
        pred_offsets=torch.tensor([0, *(len(p) for p in pred)]).cumsum(0),
        truth_offsets=torch.tensor([0, *(len(t) for t in truth)]).cumsum(0),
        pred_labels=torch.tensor(pred_ids, dtype=torch.int64),
        truth_labels=torch.tensor(truth_ids, dtype=torch.int64),
        image_size=torch.tensor([t.size for t in truth], dtype=torch.float64).reshape(-1, 2),
    )


def comparable_labels(pred: Sequence[str], truth: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the labels of one sample as they are compared; see `box_problems`."""
    truth_names = [normalise(label) for label in truth]
    if not any(truth_names):
        return [""] * len(pred), truth_names
    only = truth_names[0] if len(set(truth_names)) == 1 else ""
    return [normalise(label) or only for label in pred], truth_names
