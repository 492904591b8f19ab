"""Files and folders that a run's settings name: looked for at the start, and all that are missing named at once.

Nothing is opened or fetched here.
"""

from collections.abc import Iterator
from pathlib import Path

from medmo_core.data.sources.open_source import find_files
from medmo_core.datasets.catalogue import CATALOGUE, find_data_set
from medmo_core.demo.checkpoint import DEMO_NAME
from medmo_core.models.config import PRESETS
from medmo_core.models.official.folder import names_folder

from ...settings.run_config import ConfigError, RunConfig


def check_files(config: RunConfig) -> None:
    """Look for every file and folder that the settings name.

    Raises:
        ConfigError: some are missing; each is named with its setting.
    """
    missing = list(_missing(config))
    if len(missing) == 1:
        raise ConfigError(missing[0])
    if missing:
        raise ConfigError(f"{len(missing)} things that this run needs are missing: {'; '.join(missing)}")


def _missing(config: RunConfig) -> Iterator[str]:
    """Say what is missing, one setting after the other."""
    model, data = config.model, config.data
    for key, name in {"model.init": model.init, **_encoders(config)}.items():
        if name not in (*PRESETS, DEMO_NAME) and names_folder(name) and not Path(name).expanduser().is_dir():
            yield f"{key}: {name} is no folder; expected that of a checkpoint or of a run"
    if model.tokenizer not in ("auto", "embedded") and not Path(model.tokenizer).exists():
        yield f'model.tokenizer: {model.tokenizer} is no file; expected "auto", "embedded" or a path'
    if data.root is not None and not Path(data.root).is_dir():
        yield f"data.root: {data.root} is no folder; expected the one that image paths are relative to"
    for name, weight in data.sources.items():
        try:
            if weight > 0 and find_data_set(name) is None:
                find_files(name)
        except ValueError as error:
            known = "" if str(error).startswith("unknown data set") else f", or a data set: {', '.join(CATALOGUE)}"
            yield f"data.sources: {error}{known}"


def _encoders(config: RunConfig) -> dict[str, str]:
    return {f"model.encoder_init.{name}": folder for name, folder in config.model.encoder_init.items()}
