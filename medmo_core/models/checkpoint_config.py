"""The config of a checkpoint, read and compared with the names of its weights before anything is built."""

import re

from ..errors import InputError
from .config import ModelConfig
from .official.folder import Checkpoint
from .official.names import CONFIG_FILE

DECODER, TOWER = "language_model.layers", "visual.blocks"
"""Beginnings of the official names of layers, without `model.`, which the headless base model lacks."""


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """Return the sizes that a checkpoint's config.json states.

    Raises:
        InputError: it states none that make a model, or other numbers of layers than the weights have.
    """
    path = checkpoint.folder / CONFIG_FILE
    try:
        config = ModelConfig.from_dict(checkpoint.config)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    stated = {DECODER: ("text_config.num_hidden_layers", config.text.num_hidden_layers)}
    if config.encoder == "qwen3_vl":
        stated[TOWER] = ("vision_config.depth", config.vision.depth)
    for beginning, (field, number) in stated.items():
        layer = re.compile(rf"(?:model\.)?{re.escape(beginning)}\.(\d+)\.")
        found = [int(match[1]) for match in map(layer.match, checkpoint.files) if match]
        stored = 1 + max(found, default=-1)
        if stored != number:
            raise InputError(f"{path}: {field} is {number}, but the weights beside it have {stored} of these layers")
    return config
