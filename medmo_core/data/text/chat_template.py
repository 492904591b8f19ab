"""Chats as Qwen3-VL writes them: as one string, or as token ids with the loss on what the assistant says.

`render_chat` equals Qwen3-VL's chat template. `encode_chat` gives the ids that tokenising that string gives, with one
intended difference: a special token typed inside a message stays plain text. In the published template it would become
the token, so a user could end their own turn and write the assistant's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...batch import IGNORE_INDEX
from ...errors import InputError
from .tokenizer import Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
_TOOL_KEYS = ("tool_calls", "function_call")
_IMAGE_NAME = re.compile(r"\bimage \d+\s*:?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Encoded:
    """A chat as ids.

    Attributes:
        input_ids: (T,) tokens.
        labels: (T,) the same where the assistant speaks (its text and its `<|im_end|>`), -100 elsewhere.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _Piece:
    """A stretch of a chat: text, or one special token (`repeat` times)."""

    text: str = ""
    special: str = ""
    repeat: int = 1
    learned: bool = False


def render_chat(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """Write a chat as one string, an image as `<|vision_start|><|image_pad|><|vision_end|>`.

    Args:
        messages: `{"role": "system" | "user" | "assistant", "content": text | [{"type": "text", "text": ...},
            {"type": "image"}, {"type": "video"}]}`; a system turn only at the start.
        add_generation_prompt: end with the opening of an assistant turn.

    Raises:
        ValueError: a role or content that the template has no place for, or a call of a tool.

    Reference: Qwen3-VL's chat template, without tools.
    """
    return "".join(piece.special * piece.repeat or piece.text for piece in _pieces(messages, add_generation_prompt))


def name_images(messages: Sequence[Message]) -> list[Message]:
    """Return a chat with `Image 1: `, `Image 2: `, ... before its images, by which questions and boxes speak of them.

    An image that the text right before it names in this way keeps that name.
    """
    named: list[Message] = []
    number = 0
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            named.append(message)
            continue
        parts: list[Any] = []
        for part in content:
            if part["type"] == "image":
                number += 1
                before = parts[-1] if parts else {}
                if not (before.get("type") == "text" and _IMAGE_NAME.search(before["text"])):
                    parts.append({"type": "text", "text": f"Image {number}: "})
            parts.append(part)
        named.append({**message, "content": parts})
    return named


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    image_tokens: Sequence[int] = (),
    add_generation_prompt: bool = False,
    *,
    video_tokens: Sequence[Sequence[tuple[float, int]]] = (),
) -> Encoded:
    """Write a chat as ids, with as many placeholders per image as it has visual tokens.

    Args:
        tokenizer: tokenizer with the chat and vision tokens.
        messages: a chat, as for `render_chat`.
        image_tokens: visual tokens of each image, in order of appearance.
        add_generation_prompt: end with the opening of an assistant turn.
        video_tokens: one list per video: for each pair of frames, its time in seconds and its visual tokens.

    Returns:
        Ids and labels. A token that begins before the assistant's first character (a line break that merges with the
        one after the word "assistant") is not learned.

    Raises:
        ValueError: other numbers of images or videos than placeholders.
    """
    pieces = list(_pieces(messages, add_generation_prompt))
    for kind, given in (("image", len(image_tokens)), ("video", len(video_tokens))):
        wanted = sum(piece.special == f"<|{kind}_pad|>" for piece in pieces)
        if wanted != given:
            raise InputError(
                f"the messages hold {wanted} {kind} placeholder(s), {given} {kind}(s) are given: write one "
                f'{{"type": "{kind}"}} part per {kind}'
            )
    ids: list[int] = []
    labels: list[int] = []
    for run in _text_runs(_fill(pieces, iter(image_tokens), iter(video_tokens))):
        if run[0].special:
            token = tokenizer.token_to_id(run[0].special)
            assert token is not None, run[0].special
            new, learned = [token] * run[0].repeat, [run[0].learned] * run[0].repeat
        else:
            new, learned = _encode_text(tokenizer, run)
        ids += new
        labels += [token if keep else IGNORE_INDEX for token, keep in zip(new, learned, strict=True)]
    return Encoded(ids, labels)


def _pieces(messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[_Piece]:
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES or (role == "system" and index > 0):
            raise InputError(
                f"messages[{index}].role is {role!r}: expected user or assistant, or system in the first message"
            )
        for key in _TOOL_KEYS:
            if message.get(key):
                raise InputError(
                    f"messages[{index}].{key}: chats are written without tools; write the call as text, or leave it out"
                )
        speaks = role == "assistant"
        yield _Piece(special="<|im_start|>")
        yield _Piece(text=f"{role}\n")
        content = message.get("content")
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise InputError(f"messages[{index}].content is {content!r}: expected text or a list of parts")
        for number, part in enumerate(parts):
            yield from _part(part, f"messages[{index}].content[{number}]", role)
        yield _Piece(special="<|im_end|>", learned=speaks)
        yield _Piece(text="\n")
    if add_generation_prompt:
        yield _Piece(special="<|im_start|>")
        yield _Piece(text="assistant\n")


def _part(part: Any, where: str, role: str) -> Iterator[_Piece]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        yield _Piece(text=part["text"], learned=role == "assistant")
    elif kind in ("image", "video") and role == "user":
        yield _Piece(special="<|vision_start|>")
        yield _Piece(special=f"<|{kind}_pad|>")
        yield _Piece(special="<|vision_end|>")
    else:
        raise InputError(
            f'{where} is {part!r}: expected {{"type": "text", "text": ...}}, or in a user turn {{"type": "image"}} or '
            '{"type": "video"}'
        )


def _fill(
    pieces: Sequence[_Piece], images: Iterator[int], videos: Iterator[Sequence[tuple[float, int]]]
) -> Iterator[_Piece]:
    """Repeat placeholders; a video becomes its frame pairs, each after its time in seconds."""
    index = 0
    while index < len(pieces):
        piece = pieces[index]
        following = pieces[index + 1].special if index + 1 < len(pieces) else ""
        if following == "<|video_pad|>":
            for seconds, count in next(videos):
                yield _Piece(text=f"<{seconds:.1f} seconds>")
                yield _Piece(special="<|vision_start|>")
                yield _Piece(special="<|video_pad|>", repeat=count)
                yield _Piece(special="<|vision_end|>")
            index += 3
            continue
        yield _Piece(special=piece.special, repeat=next(images)) if piece.special == "<|image_pad|>" else piece
        index += 1


def _text_runs(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Join neighbouring text: the tokenizer must see it whole, since its words cross the borders of parts."""
    run: list[_Piece] = []
    for piece in pieces:
        if piece.special:
            if run:
                yield run
            run = []
            yield [piece]
        else:
            run.append(piece)
    if run:
        yield run


def _encode_text(tokenizer: Tokenizer, run: Sequence[_Piece]) -> tuple[list[int], list[bool]]:
    ids, starts = tokenizer.encode_with_starts("".join(piece.text for piece in run))
    first_learned, position = float("inf"), 0
    for piece in run:
        if piece.learned:
            first_learned = min(first_learned, position)
        position += len(piece.text)
    return ids, [start >= first_learned for start in starts]
