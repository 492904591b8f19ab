"""From a checkpoint folder to what answers questions: model, tokenizer, profile, and the image sizes it knows."""

import json
from pathlib import Path
from typing import Literal

import torch

from medmo_core.errors import InputError
from medmo_core.models.official.folder import find_folder

from ..settings.run_config import Data, Model, RunConfig
from ..training.model.kit import Kit, load_kit

PREPROCESSOR_FILE = "preprocessor_config.json"


def load_for_inference(
    checkpoint: str | Path,
    *,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] | None = None,
    max_pixels: int | None = None,
) -> Kit:
    """Load a checkpoint ready to generate.

    Args:
        checkpoint: folder in the official layout, a run's folder (its final/ is taken), or a hub id.
        device: "auto" (CUDA when there is one), "cpu" or "cuda".
        dtype: "float32" or "bfloat16"; None: bfloat16 on CUDA, float32 on the CPU.
        max_pixels: largest image area in px; None: what the checkpoint states.

    Returns:
        Model in evaluation mode, tokenizer, profile, processor.

    Raises:
        FileNotFoundError: no such folder, or a run that has not been finished.
        InputError: the folder is no checkpoint, CUDA is asked for and there is none, or a file is broken.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this machine shows no CUDA device; use --device cpu")
    use_cuda = device != "cpu" and torch.cuda.is_available()
    folder = checkpoint_folder(checkpoint)
    low, high = read_pixel_limits(folder)
    high = high if max_pixels is None else max_pixels
    config = RunConfig(
        stage="instruct",
        model=Model(init=str(folder), dtype=dtype or ("bfloat16" if use_cuda else "float32")),
        data=Data(min_pixels=min(low, high), max_pixels=high),
    )
    kit = load_kit(config, "cuda" if use_cuda else "cpu")
    kit.model.eval()
    return kit


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Return the folder with the official layout that `checkpoint` means; a run's folder means its final/.

    Raises:
        FileNotFoundError: there is none, with the way to get one.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        return find_folder(checkpoint)
    if (path / "final").is_dir():
        return path / "final"
    if (path / "checkpoints").is_dir() or (path / "state.json").is_file():
        raise FileNotFoundError(
            f"{path} holds training checkpoints but no finished model; "
            f"write one with: medmo export --run {path} --out exported/"
        )
    return path


def read_pixel_limits(folder: Path) -> tuple[int, int]:
    """Return the smallest and largest image area in px that a checkpoint states; Qwen3-VL's where it states none.

    Raises:
        InputError: the file is there and says nothing usable.
    """
    path = folder / PREPROCESSOR_FILE
    defaults = Data()
    if not path.is_file():
        return defaults.min_pixels, defaults.max_pixels
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        size = values.get("size") or {}
        low = size.get("shortest_edge") or values.get("min_pixels") or defaults.min_pixels
        high = size.get("longest_edge") or values.get("max_pixels") or defaults.max_pixels
        return int(low), int(high)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no readable image size ({error}); expected "
            f'{{"size": {{"shortest_edge": {defaults.min_pixels}, "longest_edge": {defaults.max_pixels}}}}} in px'
        ) from None


def write_pixel_limits(folder: Path, min_pixels: int, max_pixels: int) -> None:
    """State a checkpoint's smallest and largest image area in px where transformers' processor looks for them."""
    path = folder / PREPROCESSOR_FILE
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # The official file calls the two areas edges.
    values["size"] = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
