"""A checkpoint folder read into a kit: model, tokenizer, profile, and a processor with the image sizes it states."""

import json
from pathlib import Path
from typing import Literal

import torch

from ..choices import DEFAULT_MAX_PIXELS, DEFAULT_MIN_PIXELS
from ..data.processor import Processor
from ..data.text.tokenizer import Tokenizer
from ..errors import InputError
from ..models.medmo import MedMO
from ..models.official.folder import find_folder
from ..models.official.names import PREPROCESSOR_FILE
from ..profile import CheckpointProfile
from .kit import Kit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load(
    checkpoint: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: Literal["float32", "bfloat16", "float64"] | None = None,
    max_pixels: int | None = None,
) -> Kit:
    """Load a checkpoint ready to answer.

    Args:
        checkpoint: a folder in the official layout, a run's folder (its final/ is taken), a hub id, or
            `medmo-tiny-demo`, the toy that the package carries.
        device: "auto" (CUDA when there is one), "cpu", or a CUDA device, such as "cuda:1".
        dtype: type of weights and activations; None: bfloat16 on CUDA, float32 elsewhere.
        max_pixels: largest image area in px; a larger image is shrunk. None: what the checkpoint states.

    Returns:
        Model in evaluation mode, tokenizer, profile and processor.

    Raises:
        FileNotFoundError: there is no such folder, or it is a run that has not finished.
        InputError: the folder is no checkpoint, one of its files is broken, there is no such device or type, or
            `max_pixels` is below 1.
    """
    if not isinstance(checkpoint, str | Path) or not str(checkpoint):
        raise InputError(f"checkpoint is {checkpoint!r}, expected a folder or a hub id")
    place = _find_device(device)
    name = dtype or ("bfloat16" if place.type == "cuda" else "float32")
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}")
    if max_pixels is not None and (not isinstance(max_pixels, int) or max_pixels < 1):
        raise InputError(f"max_pixels is {max_pixels!r}, expected an image area of 1 px or more, as a whole number")
    folder = find_folder(checkpoint)
    low, high = read_pixel_limits(folder)
    high = high if max_pixels is None else max_pixels
    tokenizer = Tokenizer.from_checkpoint(folder)
    model = MedMO.from_pretrained(folder, dtype=DTYPES[name], device=place)
    if tokenizer.vocab_size > model.config.text.vocab_size:
        raise InputError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, but the model has only "
            f"{model.config.text.vocab_size} embeddings; put the tokenizer there that the model was trained with"
        )
    profile = CheckpointProfile.load(folder)
    processor = Processor(tokenizer, model.encoder.specs, profile, min_pixels=min(low, high), max_pixels=high)
    return Kit(model, tokenizer, profile, processor, folder)


def _find_device(device: str | torch.device) -> torch.device:
    """Return the device that is meant.

    Raises:
        InputError: there is no device of that name, or no CUDA device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(f"device is {device!r}, expected auto or a device of torch, such as cpu or cuda") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}; a model answers on cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {found}: this machine shows no CUDA device; use cpu")
    return found


def read_pixel_limits(folder: Path) -> tuple[int, int]:
    """Return the smallest and largest image area in px that a checkpoint states; Qwen3-VL's where it states none.

    Raises:
        InputError: the file is there and states no usable area.
    """
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        return DEFAULT_MIN_PIXELS, DEFAULT_MAX_PIXELS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        size = values.get("size") or {}
        low = int(size.get("shortest_edge") or values.get("min_pixels") or DEFAULT_MIN_PIXELS)
        high = int(size.get("longest_edge") or values.get("max_pixels") or DEFAULT_MAX_PIXELS)
        if min(low, high) < 1:
            raise ValueError(f"found {low} and {high} px")
        return low, high
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no readable image size ({error}); expected "
            f'{{"size": {{"shortest_edge": {DEFAULT_MIN_PIXELS}, "longest_edge": {DEFAULT_MAX_PIXELS}}}}} in px'
        ) from None
