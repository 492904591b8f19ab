"""Files that a checkpoint takes over from the folder of its base model: all that it holds beside the weights."""

import json
import shutil
from pathlib import Path
from typing import Any

from ...durable import write_text
from .folder import PICKLE_SUFFIXES
from .names import CHAT_TEMPLATE_FILE, GENERATION_FILE

LEFT = (".safetensors", ".index.json", ".gguf", ".onnx", ".h5", ".msgpack", *PICKLE_SUFFIXES)
"""Endings of files that hold weights or say where they are."""
ADAPTER = "adapter_config.json"  # transformers would look for an adapter's weights beside it
TOKENIZER_CONFIG = "tokenizer_config.json"


def carry(base: Path, staged: Path) -> None:
    """Add to a new checkpoint what the folder of its base model holds besides weights and the files written anew.

    Its chat template takes the place of ours, and its settings of generation stay as they are but for the ids of
    tokens. Folders and hidden files are left out.

    Args:
        base: folder in the official layout.
        staged: folder of the new checkpoint, with all files that are written anew.
    """
    generation = {**_json(staged / GENERATION_FILE), **_json(base / GENERATION_FILE)}
    ids = {key: value for key, value in _json(staged / GENERATION_FILE).items() if key.endswith("_token_id")}
    write_text(staged / GENERATION_FILE, json.dumps({**generation, **ids}, indent=2) + "\n")
    template = chat_template(base)
    if template is not None:
        write_text(staged / CHAT_TEMPLATE_FILE, template)
    for path in sorted(base.iterdir()):
        left = path.name.startswith(".") or path.name.endswith(LEFT) or path.name == ADAPTER
        if path.is_file() and not left and not (staged / path.name).exists():
            shutil.copyfile(path, staged / path.name)


def chat_template(folder: Path) -> str | None:
    """Return the chat template of a checkpoint, wherever it keeps it: in a file, or as a field of its tokenizer's."""
    path = folder / CHAT_TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", TOKENIZER_CONFIG):
        template = _json(folder / name).get("chat_template")
        if isinstance(template, str):
            return template
    return None


def _json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty one where there is no such file, or it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
