"""Catalogue of the data sets that a run or an evaluation can name in place of files.

`CATALOGUE` is what `data.sources` of a run and `medmo evaluate --data` are looked up in: one line here serves both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from ..data.records.sample import Sample
from ..data.sources.mixture import Source
from ..errors import InputError
from ..nearest import nearest_name
from .embedded.dialogues import Dialogues
from .embedded.pairs import Pairs, eval_pairs
from .embedded.targets import Targets, target_samples
from .embedded.tasks import EMBEDDED_TASKS, EmbeddedTasks, eval_samples
from .names import EMBEDDED_PREFIX, current_name


@dataclass(frozen=True)
class DataSet:
    """A data set that has a name.

    Attributes:
        open: split, crops -> source of that split's samples; empty where it has none. `crops` asks for random crops.
        fixed: split, number, seed -> samples to evaluate on, the same for the same arguments; None: drawn from
            `open(split, True)`, evenly over the source.
    """

    open: Callable[[str, bool], Source]
    fixed: Callable[[str, int, int], list[Sample]] | None = None

    def evaluation_samples(self, split: str, num_samples: int, seed: int) -> list[Sample]:
        """Return fixed samples to evaluate on; there may be fewer than asked for, since each is returned once."""
        if self.fixed is not None:
            return self.fixed(split, num_samples, seed)
        source = self.open(split, True)
        count = min(num_samples, len(source))
        indices = (i * len(source) // count for i in range(count))
        drawn = [source.get(index, Random(f"{seed}/{source.name}/{split}/{index}")) for index in indices]
        return list({sample.id: sample for sample in drawn}.values())


def _embedded_samples(task: str, split: str, num_samples: int, seed: int) -> list[Sample]:
    return eval_samples(task, split, n=num_samples, seed=seed)


CATALOGUE: dict[str, DataSet] = {
    **{
        f"{EMBEDDED_PREFIX}{task}": DataSet(partial(EmbeddedTasks, task), partial(_embedded_samples, task))
        for task in EMBEDDED_TASKS
    },
    f"{EMBEDDED_PREFIX}dialogue": DataSet(Dialogues),
    f"{EMBEDDED_PREFIX}pair": DataSet(Pairs, eval_pairs),
    f"{EMBEDDED_PREFIX}targets": DataSet(Targets, target_samples),
}
"""Name -> data set."""


def find_data_set(name: str) -> DataSet | None:
    """Return the data set of a name; None where the name can only mean files.

    Raises:
        InputError: the name begins like one of the catalogue (`embedded:`), or is near one and no file, and is not in
            it; names the nearest.
    """
    name = current_name(name)
    family, colon, _ = name.partition(":")
    if not colon or name in CATALOGUE:
        return CATALOGUE.get(name)
    near = nearest_name(name, CATALOGUE)
    is_of_family = any(known.startswith(family + colon) for known in CATALOGUE)
    if is_of_family or (near is not None and not Path(name).exists()):
        hint = f"use one of {', '.join(CATALOGUE)}" if near is None else f"did you mean {near!r}?"
        raise InputError(f"unknown data set {name!r}: {hint}")
    return None
