"""Sums of token losses over batches and processes: means in all and by task, and the samples whose loss is bad.

Sums stay on the device until all batches are through: asking for them makes the host wait once.

Shapes: B batches, L target tokens of a batch, K tasks and one more for documents that name none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.data.records.sample import TASKS
from medmo_core.losses import TokenLosses
from medmo_core.models.targets import learned_positions

from ..distributed.world import World

NO_TASK = len(TASKS)


@dataclass(frozen=True)
class Means:
    """Means over the target tokens of all processes; `tasks` holds those that have any."""

    minimised: float
    """Cross-entropy, z-loss and what supervises attention."""
    loss: float
    """Cross-entropy."""
    z_loss: float
    attention: float
    """What supervises attention."""
    accuracy: float
    """Share of tokens that were the most likely ones; 0 where it was not asked for."""
    tasks: dict[str, float]
    """Task -> cross-entropy."""
    task_accuracy: dict[str, float]

    @property
    def is_finite(self) -> bool:
        """Whether what was minimised is a number."""
        return math.isfinite(self.minimised)


class LossSums:
    """Sums over the batches of one process."""

    def __init__(self) -> None:
        # Per batch: what was minimised, of it z-loss and attention, then (3, K + 1) cross-entropies, tokens and right
        # tokens by task.
        self._sums: list[Tensor] = []
        self._batches: list[tuple[Batch, Tensor, Tensor]] = []  # with the document and the cross-entropy of each token

    def add(self, batch: Batch, losses: TokenLosses) -> None:
        """Add a batch (on the host) and its losses (where the model is)."""
        device = losses.cross_entropy.device
        documents = batch.document_of(learned_positions(batch))
        of_document = [TASKS.index(task) for task in batch.tasks] or [NO_TASK] * batch.num_documents
        tasks = torch.tensor(of_document)[documents].to(device, non_blocking=True)
        ones = torch.ones(len(tasks), dtype=torch.float64, device=device)
        correct = ones * 0 if losses.correct is None else losses.correct.double()
        columns = torch.stack([losses.cross_entropy.double(), ones, correct])
        by_task = columns.new_zeros(3, NO_TASK + 1).index_add_(1, tasks, columns)
        attention = losses.z_loss.new_zeros(()) if losses.attention is None else losses.attention
        whole = torch.stack([losses.total.detach().double(), losses.z_loss.double(), attention.double()])
        self._sums.append(torch.cat([whole, by_task.flatten()]))
        self._batches.append((batch, documents, losses.cross_entropy))

    def means(self, world: World) -> Means:
        """Add up all processes; every one calls this."""
        own = torch.zeros(3 + 3 * (NO_TASK + 1), dtype=torch.float64)
        if self._sums:
            own = torch.stack(self._sums).sum(dim=0).cpu()
        total = world.sum(own)
        losses, tokens, right = total[3:].view(3, -1).tolist()
        count = max(1.0, sum(tokens))
        present = [(task, index) for index, task in enumerate(TASKS) if tokens[index]]
        return Means(
            minimised=float(total[0]) / count,
            loss=sum(losses) / count,
            z_loss=float(total[1]) / count,
            attention=float(total[2]) / count,
            accuracy=sum(right) / count,
            tasks={task: losses[index] / tokens[index] for task, index in present},
            task_accuracy={task: right[index] / tokens[index] for task, index in present},
        )

    def not_finite(self) -> list[str]:
        """Name the samples of this process whose loss is not finite; where no token shows it, those of their batch."""
        names: list[str] = []
        for (batch, documents, losses), sums in zip(self._batches, self._sums, strict=True):
            if not bool(sums.isfinite().all()):
                guilty = documents[~losses.cpu().isfinite()]
                names += _names(batch, guilty if len(guilty) else documents)
        return names

    def above(self, limit: float) -> list[str]:
        """Name the samples of this process whose own mean loss is above a limit."""
        names: list[str] = []
        for batch, documents, losses in self._batches:
            sums = torch.zeros(2, batch.num_documents, dtype=torch.float64)
            rows = losses.cpu().double()
            sums.index_add_(1, documents, torch.stack([rows, torch.ones_like(rows)]))
            names += _names(batch, (sums[0] > limit * sums[1]).nonzero().squeeze(1))
        return names


def _names(batch: Batch, documents: Tensor) -> list[str]:
    """Name each sample once: several documents may belong to one."""
    return list(dict.fromkeys(batch.document_name(index) for index in documents.unique().tolist()))
