"""Sources of a run's samples, opened by the names in data.sources, and their weighted mixture."""

from pathlib import Path

from medmo_core.data.records.faults import RecordError
from medmo_core.data.sources.mixture import Mixture, Source
from medmo_core.data.sources.open_source import open_source

from ...settings.run_config import ConfigError, Data, RunConfig, unknown_key

SAMPLE_PREFIX = "sample:"


def load_mixtures(config: RunConfig) -> tuple[Mixture, Mixture | None]:
    """Build the mixture that a run trains on, and the one of its held-out split where that is measured.

    What a first reading of data files finds out is kept in the run's folder, for the next start.

    Raises:
        ConfigError: no source, or a task of the embedded data that does not exist.
        RecordError: a record that cannot be used.
    """
    train = config.train
    index_folder = Path(train.out_dir) / "index"
    mixture = load_mixture(config.data, seed=train.seed, index_folder=index_folder)
    if not train.eval_every:
        return mixture, None
    return mixture, load_mixture(config.data, seed=train.seed, split=train.eval_split, index_folder=index_folder)


def load_mixture(data: Data, *, seed: int, split: str | None = None, index_folder: Path | None = None) -> Mixture:
    """Build the weighted mixture of data.sources.

    Args:
        data: sources and how to draw from them.
        seed: seed of the order.
        split: split to draw from in place of data.split.
        index_folder: folder for what a first reading of data files finds out; None: it is not kept.

    Raises:
        ConfigError: no source, or a task of the embedded data that does not exist.
        RecordError: a record that cannot be used.
    """
    if not data.sources:
        raise ConfigError("data.sources: nothing to train on; name data files or sample:TASK, each with a weight")
    wanted = split or data.split
    parts = {n: (load_source(n, data, wanted, index_folder), w) for n, w in data.sources.items() if w > 0}
    return Mixture(parts, seed)


def load_source(name: str, data: Data, split: str, index_folder: Path | None = None) -> Source:
    """Open one entry of data.sources."""
    if name.startswith(SAMPLE_PREFIX):
        from medmo_core.datasets.embedded.dialogues import Dialogues
        from medmo_core.datasets.embedded.pairs import Pairs
        from medmo_core.datasets.embedded.tasks import TASKS, EmbeddedTasks

        task = name.removeprefix(SAMPLE_PREFIX)
        made = {"dialogue": Dialogues, "pair": Pairs}
        if task not in (*TASKS, *made):
            raise unknown_key(name, [SAMPLE_PREFIX + t for t in (*TASKS, *made)], "data source")
        return made[task](split, data.crops) if task in made else EmbeddedTasks(task, split, crops=data.crops)
    try:
        return open_source(name, data.root, split=split, crops=data.crops, index_folder=index_folder)
    except RecordError:
        raise
    except ValueError as error:
        raise ConfigError(f"data.sources: {error}, or {SAMPLE_PREFIX}TASK") from error
