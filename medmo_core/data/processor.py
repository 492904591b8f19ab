"""Processor of samples: tokens with labels, positions and patches, as the model takes them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import PatchSpec, mrope_position_ids
from ..batch.coordinates import Coordinates
from ..batch.looks import Looks
from ..errors import InputError
from ..profile import CheckpointProfile
from .box_answers import box_answers
from .coordinates import coordinate_codes
from .document import Document
from .images.load import crop_pixels
from .images.patches import patchify, smart_resize
from .images.sizes import shown_size
from .looks import find_looks
from .picture_cache import PictureCache
from .records.sample import ImageRef, Message, Sample, message_text
from .records.store import Root
from .sample_text import SampleText, independent_turns
from .text.chat_template import Encoded, encode_chat, name_images
from .text.tokenizer import Tokenizer
from .tones import Uptake, random_tone

CACHE_BYTES = 256 * 2**20
Cut = tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.int64]]]
"""Patches and grids of a sample's images, per encoder."""


def shown_images(sample: Sample) -> Hashable:
    """Return what is equal for samples that show the same pixels."""
    outlines = tuple(image.outlines for image in sample.images)  # no part of what makes references equal
    return sample.root, sample.images, sample.tone, None if sample.tone is None else outlines


class TooLong(ValueError):
    """A sample has more tokens than the run allows; it is left out, never cut."""


class Processor:
    """Maker of documents from samples, for one checkpoint.

    Attributes:
        text: the samples' chats in the checkpoint's words.
        coordinates: distributions of the coordinates whose codes documents carry; None: they carry none.

    Args:
        tokenizer: the model's tokenizer.
        specs: encoder -> the patches it takes. The first one's rule decides the grid of visual tokens; every other
            image is resized to the same grid.
        profile: how the checkpoint writes boxes, and its system prompt.
        min_pixels: smaller images are enlarged to this area.
        max_pixels: larger images are shrunk to this area.
        max_tokens: longer documents raise `TooLong`; None: no limit.
        root: data root of samples that do not carry one.
        cache_bytes: memory for decoded pictures.
        looks: also find where attention should be while boxes are said (`Document.looks`).
        coordinates: distributions whose codes are also found where boxes are said (`Document.coordinates`).
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
        looks: bool = False,
        coordinates: Coordinates | None = None,
    ) -> None:
        self.tokenizer, self.specs, self.text = tokenizer, dict(specs), SampleText(profile)
        self.min_pixels, self.max_pixels, self.max_tokens = min_pixels, max_pixels, max_tokens
        self.root = None if root is None else Path(root)
        self._cache = PictureCache(cache_bytes)
        self._finds_looks, self.coordinates = looks, coordinates

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
        messages = self.text.messages(sample, for_generation=for_generation)
        patches, grids = self._images(sample, pixels) if cut is None else cut
        return self._document(sample, messages, patches, grids, for_generation=for_generation)

    def encode_all(self, samples: Sequence[Sample], *, for_generation: bool = False) -> list[Document]:
        """Return samples as documents, those about the same images with the same arrays of patches.

        So images that several show are decoded once, and encoded once where the documents are packed together.

        Args:
            samples: the examples.
            for_generation: leave the answers out, as for `encode`.

        Raises:
            TooLong: a document has more than `max_tokens` tokens.
            ValueError: a sample cannot be used, naming it.
        """
        cuts: dict[Hashable, Cut] = {}
        documents: list[Document] = []
        for sample in samples:
            shown = shown_images(sample)
            if shown not in cuts:
                cuts[shown] = self._images(sample, pixels=True)
            documents.append(self.encode(sample, for_generation=for_generation, cut=cuts[shown]))
        return documents

    def length(self, sample: Sample) -> int:
        """Return the number of tokens that `encode` gives, without decoding an image.

        Raises:
            TooLong: more than `max_tokens` tokens.
            ValueError: the sample cannot be used, naming it.
        """
        return len(self.encode(sample, pixels=False).input_ids)

    def encode_turns(self, sample: Sample, *, pixels: bool = True) -> list[Document]:
        """Return every turn of a sample as a separate document about the same images.

        Nothing of the other turns can be copied, so each answer must come from the images; `pack` lets them be encoded
        once. A sample with images after its first user turn stays one conversation.

        Args:
            sample: the example.
            pixels: decode the images, as for `encode`.

        Raises:
            TooLong: a turn has more than `max_tokens` tokens.
            ValueError: the sample cannot be used, naming it.
        """
        messages = self.text.messages(sample)
        patches, grids = self._images(sample, pixels)
        turns = independent_turns(messages)
        return [self._document(sample, turn, patches, grids, for_generation=False) for turn in turns]

    def _document(
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
        looks, coordinates = (None, None) if for_generation else self._said(sample, messages, encoded, grids)
        return Document(
            input_ids=input_ids.numpy(),
            labels=None if for_generation else np.array(encoded.labels, dtype=np.int64),
            position_ids=position_ids.numpy(),
            patches=patches,
            image_grid_thw=grids,
            sample=sample,
            visual_end=_visual_end(input_ids, self.tokenizer.image_token_id),
            looks=looks,
            coordinates=coordinates,
        )

    def _said(
        self, sample: Sample, messages: Sequence[Message], encoded: Encoded, grids: dict[str, NDArray[np.int64]]
    ) -> tuple[Looks | None, NDArray[np.int64] | None]:
        """Return looks and coordinates of the answers that are boxes, as far as they are wanted."""
        where = sample.truth_boxes() if self._finds_looks or self.coordinates else None
        if where is None:
            return None, None
        input_ids, profile = np.array(encoded.input_ids), self.text.profile
        texts = [message_text(message) for message in messages if message["role"] == "assistant"]
        answers = box_answers(input_ids, np.array(encoded.labels), texts, where, profile, self.tokenizer)
        looks = None
        if self._finds_looks:
            size = next(iter(self.specs.values())).merge_size
            tokens = [grid // (1, size, size) for grid in self._token_grids(grids)]
            shown = [(int(frames), int(rows), int(columns)) for frames, rows, columns in tokens]
            looks = find_looks(answers, profile, shown, len(input_ids))
        return looks, coordinate_codes(self.coordinates, answers, input_ids) if self.coordinates else None

    def _images(self, sample: Sample, pixels: bool) -> Cut:
        """Return patches and grids of all images, per encoder."""
        if not sample.images:
            return {}, {}
        try:
            if not pixels:
                return self._outline(sample)
            root = self._root_of(sample)
            pictures = (self._load(image, root) for image in sample.images)
            if sample.tone is not None:
                pictures = (
                    random_tone(sample.tone + i).apply(pixels, *self._outlines(sample.images[i], root))
                    for i, pixels in enumerate(pictures)
                )
            return self.cut(pictures)
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
        pixels = _cropped(self._cache.load(image, root), image)
        height, width = pixels.shape[:2]
        if image.size not in (None, (width, height)):
            raise InputError(
                f"{image.path} is {width}x{height} px, the record says {image.width}x{image.height}; "
                "correct the record and check its boxes"
            )
        return pixels

    def _outlines(self, image: ImageRef, root: Root) -> tuple[NDArray[np.uint8] | None, Uptake]:
        """Return the label map (H, W) of what an image shows and its uptake; nothing where they are not known."""
        if image.outlines is None:
            return None, ()
        path = image.outlines.path
        stored, labels = self._cache.load(image, root), self._cache.load_label_map(path, root)
        if stored.shape[:2] != labels.shape:
            sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in (labels.shape, stored.shape))
            raise InputError(f"{path} and {image.path} are {sizes} px, expected the same size")
        return _cropped(labels, image), image.outlines.uptake

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


def _cropped(pixels: NDArray[np.uint8], image: ImageRef) -> NDArray[np.uint8]:
    return pixels if image.crop is None else crop_pixels(pixels, image.crop)


def _visual_end(input_ids: torch.Tensor, image_token_id: int) -> int:
    where = (input_ids == image_token_id).nonzero()
    return int(where[-1]) + 1 if len(where) else 0
