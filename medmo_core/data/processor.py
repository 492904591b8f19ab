"""From a sample to what the model eats: tokens with labels, positions, patches.

Shapes: T tokens, N patches, I images, p patch size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import PatchSpec, mrope_position_ids
from ..boxes import AnyBoxes
from ..errors import InputError
from ..profile import CheckpointProfile
from .images.load import crop_pixels, load_image
from .images.patches import patchify, smart_resize
from .images.sizes import shown_size
from .records.sample import ImageRef, Message, Sample
from .records.store import Root
from .text.chat_template import encode_chat, name_images
from .text.tokenizer import Tokenizer

CACHE_BYTES = 256 * 2**20
Cut = tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.int64]]]
"""Patches and grids of a sample's images, per encoder."""


class TooLong(ValueError):
    """A sample has more tokens than the run allows; it is left out, never cut."""


@dataclass(frozen=True)
class Document:
    """One document ready to be packed.

    Attributes:
        input_ids: (T,) int64.
        labels: (T,) int64, -100 where nothing is learned; None for generation.
        position_ids: (3, T) int64.
        patches: per encoder (N, 3 * p * p) uint8 in merge order; empty without images.
        image_grid_thw: per encoder (I, 3) int64, in patches.
        sample: where it comes from.
        visual_end: number of tokens up to and with the last visual one; 0 without images.
        features: (1 + D, M, E) what the vision tower makes of the images, where it has run already (`Batch.features`).
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    position_ids: NDArray[np.int64]
    patches: dict[str, NDArray[np.uint8]]
    image_grid_thw: dict[str, NDArray[np.int64]]
    sample: Sample
    visual_end: int
    features: torch.Tensor | None = None


@dataclass
class _PictureCache:
    """Keep the pictures decoded last, so that crops of one file decode it once. Safe to share between threads."""

    max_bytes: int
    pictures: OrderedDict[tuple[Any, ...], NDArray[np.uint8]] = field(default_factory=OrderedDict)
    num_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        return _PictureCache, (self.max_bytes,)  # another process decodes its own

    def load(self, image: ImageRef, root: Root) -> NDArray[np.uint8]:
        """Return the picture without its crop: (H, W, 3)."""
        key = (root, image.path, image.frame, image.slice_index, image.plane, image.window)
        with self.lock:
            if key in self.pictures:
                self.pictures.move_to_end(key)
                return self.pictures[key]
        pixels = load_image(
            image.path,
            root=root,
            frame=image.frame,
            slice_index=image.slice_index,
            plane=image.plane,
            window=image.window,
        ).pixels
        with self.lock:
            if pixels.nbytes <= self.max_bytes and key not in self.pictures:
                self.pictures[key] = pixels
                self.num_bytes += pixels.nbytes
                while self.num_bytes > self.max_bytes:
                    self.num_bytes -= self.pictures.popitem(last=False)[1].nbytes
        return pixels


class Processor:
    """Turn samples into documents.

    Args:
        tokenizer: of the model.
        specs: per encoder, what it eats. The first one's rule decides the grid of visual tokens; every other image is
            resized to the same grid.
        profile: how the checkpoint writes boxes, and its system prompt.
        min_pixels: smaller images are enlarged to this area.
        max_pixels: larger images are shrunk to this area.
        max_tokens: longer documents raise `TooLong`; None: no limit.
        root: data root of samples that do not carry one.
        cache_bytes: memory for decoded pictures.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        specs: Mapping[str, PatchSpec],
        profile: CheckpointProfile,
        *,
        min_pixels: int,
        max_pixels: int,
        max_tokens: int | None = None,
        root: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.tokenizer, self.specs, self.profile = tokenizer, dict(specs), profile
        self.min_pixels, self.max_pixels, self.max_tokens = min_pixels, max_pixels, max_tokens
        self.root = None if root is None else Path(root)
        self._cache = _PictureCache(cache_bytes)

    def encode(
        self, sample: Sample, *, for_generation: bool = False, pixels: bool = True, cut: Cut | None = None
    ) -> Document:
        """Return a sample as one document.

        Args:
            sample: the example.
            for_generation: leave the answer out and open the assistant's turn instead.
            pixels: off: decode no image and make patches of zeros that take no memory; all else is the same, if the
                sizes that records and headers state are true.
            cut: patches and grids of the sample's images, from `cut`; None: decode the images.

        Raises:
            TooLong: more than `max_tokens` tokens.
            ValueError: the sample cannot be used, naming it.
        """
        messages = self.messages(sample, for_generation=for_generation)
        patches, grids = self._images(sample, pixels) if cut is None else cut
        return self._item(sample, messages, patches, grids, for_generation=for_generation)

    def length(self, sample: Sample) -> int:
        """Return the number of tokens that `encode` gives, without decoding an image.

        Raises:
            TooLong: more than `max_tokens` tokens.
            ValueError: the sample cannot be used, naming it.
        """
        return len(self.encode(sample, pixels=False).input_ids)

    def encode_turns(self, sample: Sample, *, pixels: bool = True) -> list[Document]:
        """Return every turn of a sample as a document of its own, about the same images.

        Nothing of the other turns can be copied, so each answer must come from the images; `pack` lets them be encoded
        once. A sample with images after its first user turn stays one conversation.

        Args:
            sample: the example.
            pixels: as for `encode`.

        Raises:
            TooLong: a turn has more than `max_tokens` tokens.
            ValueError: the sample cannot be used, naming it.
        """
        messages = self.messages(sample)
        patches, grids = self._images(sample, pixels)
        turns = independent_turns(messages)
        return [self._item(sample, turn, patches, grids, for_generation=False) for turn in turns]

    def _item(
        self,
        sample: Sample,
        messages: Sequence[Message],
        patches: dict[str, NDArray[np.uint8]],
        grids: dict[str, NDArray[np.int64]],
        *,
        for_generation: bool,
    ) -> Document:
        try:
            encoded = encode_chat(
                self.tokenizer,
                name_images(messages) if len(sample.images) > 1 else messages,
                [self._num_tokens(grid) for grid in self._token_grids(grids)],
                add_generation_prompt=for_generation,
            )
        except ValueError as error:
            raise InputError(f"{sample.id}: {error}") from error
        if self.max_tokens is not None and len(encoded.input_ids) > self.max_tokens:
            raise TooLong(
                f"{sample.id}: {len(encoded.input_ids)} tokens, over the limit of {self.max_tokens}; it is left out. "
                "Raise the limit, or lower max_pixels"
            )
        input_ids = torch.tensor(encoded.input_ids, dtype=torch.int64)
        first = next(iter(self.specs), None)
        position_ids = mrope_position_ids(
            input_ids,
            torch.from_numpy(grids[first]) if first is not None and first in grids else None,
            merge_size=self.specs[first].merge_size if first is not None else 1,
            image_token_id=self.tokenizer.image_token_id,
            video_token_id=self.tokenizer.video_token_id,
            sample_id=sample.id,
        )
        return Document(
            input_ids=input_ids.numpy(),
            labels=None if for_generation else np.array(encoded.labels, dtype=np.int64),
            position_ids=position_ids.numpy(),
            patches=patches,
            image_grid_thw=grids,
            sample=sample,
            visual_end=_visual_end(input_ids, self.tokenizer.image_token_id),
        )

    def messages(self, sample: Sample, *, for_generation: bool = False) -> list[Message]:
        """Return the sample's chat with the profile's system prompt, and with or without its answer.

        Raises:
            ValueError: there is no answer to learn, or the profile's grammar cannot write it.
        """
        messages = [self._with_boxes_as_text(message, sample) for message in sample.messages]
        if self.profile.system_prompt is not None and not any(m["role"] == "system" for m in messages[:1]):
            messages.insert(0, {"role": "system", "content": self.profile.system_prompt})
        is_answered = bool(messages) and messages[-1]["role"] == "assistant"
        if for_generation:
            return messages[:-1] if is_answered else messages
        if is_answered:
            return messages
        return [*messages, {"role": "assistant", "content": self.target_text(sample)}]

    def question_text(self, sample: Sample) -> str:
        """Return the words of the turn to be answered, boxes in it as the profile writes them."""
        content = self.messages(sample, for_generation=True)[-1]["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

    def target_text(self, sample: Sample) -> str:
        """Return what the model is to say: the last assistant turn, or the answer, boxes as the profile writes them.

        Raises:
            ValueError: the sample has no answer, or the profile's grammar cannot write its boxes.
        """
        if sample.messages and sample.messages[-1]["role"] == "assistant":
            return _plain_text(self._with_boxes_as_text(sample.messages[-1], sample)["content"])
        answer = sample.answer
        if answer is None:
            raise InputError(f"{sample.id}: nothing to learn: no assistant turn at the end, and no answer")
        if answer.type != "boxes":
            if answer.value is None:
                raise InputError(f"{sample.id}: answer.value is missing; an answer of type {answer.type!r} is a text")
            return answer.value
        return self._print_boxes(sample.truth_boxes(), sample)

    def _with_boxes_as_text(self, message: Message, sample: Sample) -> Message:
        """Return a turn whose parts of type `boxes` are written as the profile writes boxes."""
        content = message["content"]
        if isinstance(content, str) or not any(part["type"] == "boxes" for part in content):
            return message
        parts = [
            {"type": "text", "text": self._print_boxes(sample.boxes_at(part["boxes"]), sample)}
            if part["type"] == "boxes"
            else part
            for part in content
        ]
        return {"role": message["role"], "content": parts}

    def _print_boxes(self, boxes: AnyBoxes | None, sample: Sample) -> str:
        if boxes is None:
            raise InputError(f"{sample.id}: the answer is boxes, but the sample has no image")
        try:
            return self.profile.write_boxes(boxes)
        except ValueError as error:
            raise InputError(f"{sample.id}: {error}") from None

    def _images(self, sample: Sample, pixels: bool) -> Cut:
        """Return patches and grids of all images, per encoder."""
        if not sample.images:
            return {}, {}
        try:
            if not pixels:
                return self._outline(sample)
            root = self._root_of(sample)
            return self.cut(self._load(image, root) for image in sample.images)
        except ValueError as error:
            raise InputError(f"{sample.id}: {error}") from error

    def cut(self, pictures: Iterable[NDArray[np.uint8]]) -> Cut:
        """Resize pictures as the encoders need them and cut them into patches.

        Shapes: each picture (H, W, 3).

        Returns:
            Patches and grids of all pictures, per encoder.
        """
        patches: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in self.specs}
        grids: dict[str, list[tuple[int, int, int]]] = {name: [] for name in self.specs}
        for pixels in pictures:
            rows, columns = self._token_grid(pixels.shape[0], pixels.shape[1])
            for name, spec in self.specs.items():
                cut, grid = patchify(pixels, spec, (rows * spec.token_px, columns * spec.token_px))
                patches[name].append(cut)
                grids[name].append(grid)
        return (
            {name: rows[0] if len(rows) == 1 else np.concatenate(rows) for name, rows in patches.items()},
            {name: np.array(rows, dtype=np.int64) for name, rows in grids.items()},
        )

    def _outline(self, sample: Sample) -> Cut:
        """Return what `cut` does, with zeros for the pixels."""
        sizes = [shown_size(image, self._root_of(sample)) for image in sample.images]
        tokens = np.array([(1, *self._token_grid(height, width)) for width, height in sizes], dtype=np.int64)
        grids = {name: tokens * (1, spec.merge_size, spec.merge_size) for name, spec in self.specs.items()}
        return {
            name: np.broadcast_to(np.uint8(0), (int(grids[name].prod(axis=1).sum()), spec.still_width))
            for name, spec in self.specs.items()
        }, grids

    def _root_of(self, sample: Sample) -> Root:
        return sample.root if sample.root is not None else self.root

    def _load(self, image: ImageRef, root: Root) -> NDArray[np.uint8]:
        pixels = self._cache.load(image, root)
        if image.crop is not None:
            pixels = crop_pixels(pixels, image.crop)
        height, width = pixels.shape[:2]
        if image.size not in (None, (width, height)):
            raise InputError(
                f"{image.path} is {width}x{height} px, the record says {image.width}x{image.height}; "
                "correct the record and check its boxes"
            )
        return pixels

    def _token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of visual tokens of an image."""
        factor = next(iter(self.specs.values())).token_px
        new_height, new_width = smart_resize(
            height, width, factor=factor, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )
        return new_height // factor, new_width // factor

    def _token_grids(self, grids: Mapping[str, NDArray[np.int64]]) -> Sequence[NDArray[np.int64]]:
        """Return the patch grids of the encoder that decides the token grid."""
        return list(next(iter(grids.values()))) if grids else []

    def _num_tokens(self, grid: NDArray[np.int64]) -> int:
        return int(grid.prod()) // next(iter(self.specs.values())).merge_size ** 2


def independent_turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Return one conversation per answer: the system turn, the images of the first question, the question, the answer.

    Messages that are not pairs of question and answer with all images in the first come back whole.
    """
    system = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(system) :])
    pairs = list(zip(rest[::2], rest[1::2], strict=False))
    paired = len(rest) % 2 == 0 and all((q["role"], a["role"]) == ("user", "assistant") for q, a in pairs)
    if not paired or any(part["type"] == "image" for question, _ in pairs[1:] for part in _parts(question)):
        return [list(messages)]
    images = [part for part in _parts(pairs[0][0]) if part["type"] == "image"] if pairs else []
    turns = []
    for question, answer in pairs:
        words = [part for part in _parts(question) if part["type"] != "image"]
        turns.append([*system, {"role": "user", "content": [*images, *words]}, answer])
    return turns


def _visual_end(input_ids: torch.Tensor, image_token_id: int) -> int:
    where = (input_ids == image_token_id).nonzero()
    return int(where[-1]) + 1 if len(where) else 0


def _parts(message: Message) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _plain_text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
