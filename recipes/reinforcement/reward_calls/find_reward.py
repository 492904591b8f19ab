"""Look-up of a reward by its name in a config: one of ours, of a module, or of a file.

A module or file is imported, and so runs as it stands: what the command line names is trusted like the command line.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from medmo_core.rewards import REWARDS

from ...settings.section import ConfigError, unknown_key
from .error_place import FAILURES, told

SAMPLE_COLUMNS = (
    "task", "answer", "solution", "boxes", "facts", "image_size", "num_images", "profile", "sample_id"
)  # fmt: skip
"""What a reward learns of the sample, one value per completion: a row of a data set for TRL has the same keys."""

ARGUMENTS = (
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "finished", *SAMPLE_COLUMNS
)  # fmt: skip
"""Keywords of every call of a reward."""

PARSED_BOXES = "parsed_boxes"
"""Keyword of the boxes that completions name, for rewards with a parameter of this name."""


def find_reward(name: str) -> Callable[..., Any]:
    """Return a reward by its name in a config.

    Args:
        name: a key of `medmo_core.rewards.REWARDS`, "package.module:function", or "path/to/file.py:function".

    Raises:
        ConfigError: there is no such reward (the nearest is named), its module cannot be imported, or it cannot be
            called with the keywords that rewards are called with.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon:
        if name not in REWARDS:
            raise unknown_key(name, REWARDS, "reward in rewards.weights")
        _check_keywords(REWARDS[name], name)
        return REWARDS[name]
    module = _import_file(Path(place), name) if place.endswith(".py") else _import_module(place, name)
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    function = getattr(module, attribute, None)
    if function is None:
        raise unknown_key(attribute, functions, f"function of {place} in rewards.weights")
    if not callable(function):
        raise ConfigError(f"rewards.weights.{name}: {attribute} of {place} is no function but {function!r}")
    _check_keywords(function, name)
    return function


def asks_for(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a function has a parameter of this name; `**columns` alone asks for nothing."""
    try:
        return keyword in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables of C have no signature
        return False


def _import_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"rewards.weights.{name}: there is no file {path} (seen from {Path.cwd()})")
    key = f"medmo_own_reward:{path.resolve()}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # before it runs: its dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except FAILURES as error:
        del sys.modules[key]
        raise _cannot_import(name, error) from error
    return module


def _import_module(place: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except FAILURES as error:
        raise _cannot_import(name, error) from error


def _cannot_import(name: str, error: BaseException) -> ConfigError:
    return ConfigError(f"rewards.weights.{name}: importing it failed: {told(error)}")


def _check_keywords(function: Callable[..., Any], name: str) -> None:
    """Refuse at once what the first call would refuse after the first rollout."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables of C have no signature
        return
    try:
        asked = [PARSED_BOXES] if PARSED_BOXES in signature.parameters else []
        signature.bind(**dict.fromkeys([*ARGUMENTS, *asked]))
    except TypeError as error:
        raise ConfigError(
            f"rewards.weights.{name}: it cannot be called as rewards are: {error}. Every keyword is given: "
            f"{', '.join(ARGUMENTS)}; name those it reads and take the rest in **columns"
        ) from None
