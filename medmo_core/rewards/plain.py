"""Columns of plain values, as a table on disk or a TRL data set holds them, beside columns of our own types.

`plain_row` writes what a sample is rewarded by as text, numbers, lists and dicts; rewards read either form.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from ..boxes import Boxes, ImageBoxes, by_image
from ..profile import CheckpointProfile


def plain_row(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of one sample as values that JSON and Arrow can hold; `reads_plain` takes them back.

    Boxes become `{"images": [{"size": [width, height], "xyxy": [[x1, y1, x2, y2], ...], "labels": [...]}], "default":
    index}`, in pixels of each image; `default` is None where there is one image.

    Args:
        columns: name -> value of the sample.
    """
    return {name: _plain(value) for name, value in columns.items()}


def reads_plain(reward: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
    """Let a reward take columns of plain values too: `answer`, `boxes`, `facts`, `image_size`, `profile`."""

    @functools.wraps(reward)
    def scored(completions: Any, **columns: Any) -> list[float | None]:
        for name, read in _READERS.items():
            values = columns.get(name)
            if isinstance(values, list | tuple):
                columns[name] = [read(value) for value in values]
        return reward(completions, **columns)

    return scored


def _plain(value: Any) -> Any:
    if isinstance(value, Boxes | ImageBoxes):
        images = [
            {"size": list(part.size), "xyxy": part.pixel().xyxy.tolist(), "labels": list(part.labels)}
            for part in by_image(value)
        ]
        return {"images": images, "default": value.default if isinstance(value, ImageBoxes) else None}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _boxes(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    parts = tuple(Boxes(part["xyxy"], "pixel", tuple(part["size"]), tuple(part["labels"])) for part in value["images"])
    return parts[0] if value["default"] is None else ImageBoxes(parts, value["default"])


def _record(value: Any) -> Any:
    """Return a dict as something with attributes, lists in it as tuples."""
    if not isinstance(value, dict):
        return value
    return SimpleNamespace(**{key: tuple(v) if isinstance(v, list) else v for key, v in value.items()})


def _facts(value: Any) -> Any:
    return tuple(_record(fact) for fact in value) if isinstance(value, list | tuple) else value


def _size(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _profile(value: Any) -> Any:
    return CheckpointProfile.from_json(value, where="column profile") if isinstance(value, dict) else value


_READERS: dict[str, Callable[[Any], Any]] = {
    "answer": _record, "boxes": _boxes, "facts": _facts, "image_size": _size, "profile": _profile,
}  # fmt: skip
