"""Sources of a run's samples, opened by the names in data.sources, and their weighted mixture."""

from pathlib import Path

from medmo_core.data.records.faults import RecordError
from medmo_core.data.sources.mixture import Mixture, Source
from medmo_core.data.sources.open_source import open_source
from medmo_core.data.sources.record_source import RecordSource
from medmo_core.data.sources.splits import check_splits
from medmo_core.datasets.catalogue import CATALOGUE, find_data_set

from ...settings.run_config import ConfigError, Data, RunConfig


def load_mixtures(config: RunConfig) -> tuple[Mixture, Mixture | None]:
    """Build the mixture that a run trains on, and the one of its held-out split where that is measured.

    What a first reading of data files finds out is kept in the run's folder, for the next start.

    Raises:
        ConfigError: no source, or a name that means nothing.
        RecordError: a record that cannot be used, or shows what is trained on and held out.
    """
    train = config.train
    index_folder = Path(train.out_dir) / "index"
    mixture = load_mixture(config.data, seed=train.seed, index_folder=index_folder)
    if not train.eval_every:
        return mixture, None
    held_out = load_mixture(config.data, seed=train.seed, split=train.eval_split, index_folder=index_folder)
    sources = [source for each in (mixture, held_out) for source, _ in each.sources.values()]
    check_splits([source for source in sources if isinstance(source, RecordSource)], index_folder)
    return mixture, held_out


def load_mixture(data: Data, *, seed: int, split: str | None = None, index_folder: Path | None = None) -> Mixture:
    """Build the weighted mixture of data.sources.

    Args:
        data: sources and how to draw from them.
        seed: seed of the order.
        split: held-out split to draw from in place of data.split, with pictures as they are.
        index_folder: folder for what a first reading of data files finds out; None: it is not kept.

    Raises:
        ConfigError: no source, or a name that means nothing.
        RecordError: a record that cannot be used.
    """
    if not data.sources:
        raise ConfigError("data.sources: nothing to train on; name data files or embedded:TASK, each with a weight")
    wanted = split or data.split
    parts = {n: (load_source(n, data, wanted, index_folder), w) for n, w in data.sources.items() if w > 0}
    return Mixture(parts, seed, tones=data.tones if split is None else 0.0)


def load_source(name: str, data: Data, split: str, index_folder: Path | None = None) -> Source:
    """Open one entry of data.sources: a data set of the catalogue, or files.

    Raises:
        ConfigError: there is no such data set, and no such file.
        RecordError: a record that cannot be used.
    """
    try:
        data_set = find_data_set(name)
    except ValueError as error:
        raise ConfigError(f"data.sources: {error}") from error
    if data_set is not None:
        return data_set.open(split, data.crops)
    try:
        return open_source(name, data.root, split=split, crops=data.crops, index_folder=index_folder)
    except RecordError:
        raise
    except ValueError as error:
        raise ConfigError(f"data.sources: {error}, or a data set: {', '.join(CATALOGUE)}") from error
