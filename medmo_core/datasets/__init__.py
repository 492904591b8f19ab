"""Data sets: the embedded one, and what is measured against it.

`DATASETS` maps a name to a function `(task, split, crops) -> Source`.
"""

from .embedded.tasks import EmbeddedTasks

DATASETS = {"sample": EmbeddedTasks}
"""Name -> source of training samples; a configuration names it as `sample:TASK`."""

__all__ = ["DATASETS", "EmbeddedTasks"]
