"""Scores of answers with several boxes or none: boxes said twice, and boxes too many or too few.

Shapes: P predicted and T true boxes of one answer.
"""

from collections.abc import Sequence

import torch

from medmo_core.metrics.matching import comparable_labels
from medmo_kernels.giou import overlap_terms

HIT_IOU = 0.5
SAME_IOU = 0.7
"""IoU from which two predicted boxes of one label are one box said twice."""


def num_duplicates(
    said: Sequence[Sequence[float]], labels: Sequence[str], truth: Sequence[Sequence[float]], true_labels: Sequence[str]
) -> int:
    """Count the boxes of an answer that are there already.

    Boxes are taken in the order of the answer. One is a duplicate where it overlaps an earlier box of its label at IoU
    0.7 or more, or where every true box of its label that it hits (IoU 0.5 or more) was hit by an earlier box.

    Args:
        said: P boxes x1, y1, x2, y2.
        labels: labels of those boxes; compared as the metrics compare them.
        truth: T true boxes.
        true_labels: labels of those.
    """
    if not said:
        return 0
    names, true_names = comparable_labels(labels, true_labels)
    boxes = torch.tensor(said, dtype=torch.float64).view(-1, 4)
    among = overlap_terms(boxes[:, None], boxes)[0].tolist()
    onto = overlap_terms(boxes[:, None], torch.tensor(truth, dtype=torch.float64).view(-1, 4))[0].tolist()
    taken: set[int] = set()
    duplicates = 0
    for i, name in enumerate(names):
        repeated = any(names[j] == name and among[i][j] >= SAME_IOU for j in range(i))
        hits = [t for t, iou in enumerate(onto[i]) if true_names[t] == name and iou >= HIT_IOU]
        free = sorted((t for t in hits if t not in taken), key=lambda t: -onto[i][t])
        if repeated or (hits and not free):
            duplicates += 1
        elif free:
            taken.add(free[0])
    return duplicates
