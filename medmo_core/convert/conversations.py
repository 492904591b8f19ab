"""Conversations of LLaVA and ShareGPT: turns of a person and a model, with `<image>` where a picture stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .json_stream import documents
from .outcome import Job, LeftOut, Outcome

IMAGE_TOKEN = "<image>"
OTHER_TOKENS = ("<video>", "<audio>")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}


def convert_conversations(job: Job) -> Iterator[Outcome]:
    """Yield a record per conversation; what a text says of places stays as it is written."""
    for number, row in enumerate(documents(job.source), start=1):
        outcome = _record(row, job.where(number))
        if isinstance(outcome, str):
            yield LeftOut(job.where(number), outcome)
            continue
        identifier = row.get("id")
        yield {"id": f"{job.source.stem}:{number if identifier is None else identifier}", **outcome}


def _record(row: Any, where: str) -> dict[str, Any] | str:
    """Return the record of a row without its id, or why there is none."""
    turns = row.get("conversations", row.get("messages")) if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        return "no conversations"
    images = row.get("images", row.get("image")) or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        return "image is no file name"
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in turns:
        if not isinstance(turn, dict):
            return f"a turn is {turn!r:.40}"
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
            return f"a turn of {role!r:.40}, of which only texts of a person, a model and the system are taken"
        if any(token in text for token in OTHER_TOKENS):
            return "it shows video or sound"
        messages.append({"role": ROLES[role], "content": _content(text)})
    places = sum(isinstance(m["content"], list) and _num_images(m["content"]) for m in messages)
    if places != len(images):
        return f"{len(images)} image(s), but {places} times {IMAGE_TOKEN} in its turns"
    if messages[-1]["role"] != "assistant":
        return "the last turn is not the model's: nothing to learn"
    is_dialogue = sum(message["role"] == "user" for message in messages) > 1
    task = "text" if not images else "dialogue" if is_dialogue else "vqa"
    return {"task": task, "images": [{"path": image} for image in images], "messages": messages}


def _content(text: str) -> str | list[dict[str, str]]:
    """Return a turn's text as parts where it shows images; the line end between image and text goes."""
    if IMAGE_TOKEN not in text:
        return text
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(IMAGE_TOKEN)):
        parts += [{"type": "image"}] if index else []
        words = piece.strip("\n")
        parts += [{"type": "text", "text": words}] if words else []
    return parts


def _num_images(parts: list[dict[str, str]]) -> int:
    return sum(part["type"] == "image" for part in parts)
