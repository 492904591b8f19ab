"""Questions about images, answered by a loaded checkpoint in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, overload

from ..data.images.load import LoadedImage
from ..data.packing import pack
from ..data.processor import Cut
from ..data.records.sample import ImageRef, Sample
from ..errors import InputError
from .images import AnyImage, open_image
from .kit import Kit
from .reply import Reply

Images = AnyImage | Sequence[AnyImage]


class AskOptions(TypedDict, total=False):
    """Keyword arguments of `ask`."""

    max_new_tokens: int
    temperature: float
    seed: int
    frame: int | None
    slice_index: int | Sequence[int | None] | None
    plane: str
    window: Any


@overload
def ask(kit: Kit, images: Images, question: str, **options: Unpack[AskOptions]) -> Reply:
    """Answer one question."""


@overload
def ask(kit: Kit, images: Images, question: list[str] | tuple[str, ...], **options: Unpack[AskOptions]) -> list[Reply]:
    """Answer several questions about the same images."""


@overload
def ask(kit: Kit, images: Sequence[tuple[Images, str]], **options: Unpack[AskOptions]) -> list[Reply]:
    """Answer pairs of images and a question."""


def ask(
    kit: Kit,
    images: Any,
    question: str | Sequence[str] | None = None,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    frame: int | None = None,
    slice_index: int | Sequence[int | None] | None = None,
    plane: str = "axial",
    window: Any = None,
) -> Reply | list[Reply]:
    """Ask a checkpoint about one image, or about several at once.

    Several questions are answered together in one batch, which takes less time than one after the other and gives the
    same answers. Images that several questions share are decoded and encoded once.

    Args:
        kit: checkpoint from `load`.
        images: one image or several; several are shown in their order, as image 1, image 2, ... Without `question`:
            pairs of (images, question).
        question: one question, or a list of questions about the same images.
        max_new_tokens: longest answer, in tokens.
        temperature: randomness of the answer; 0 takes the likeliest token each time.
        seed: number that fixes the random choices when `temperature` is above 0.
        frame: frame of a multi-frame file, from 0; None: the first.
        slice_index: slice of a volume, from 0: one for all images, or one per image; None: the middle one.
        plane: direction in which volumes are sliced: axial, coronal or sagittal.
        window: grey levels of a deep picture: the name of a preset such as "soft_tissue", (center, width), or None for
            the file's own.

    Returns:
        One answer to one question; a list of answers to a list of questions or to pairs.

    Raises:
        InputError: an image cannot be used as asked (the message says which and how to fix it), a question is empty, or
            the number of slices is not that of the images, or images, question and answer are longer than the
            checkpoint's positions.
    """
    if not isinstance(kit, Kit):
        raise InputError(f"the first argument is of type {type(kit).__name__}, expected what `load(folder)` returns")
    pairs = _pairs(images, question)
    shown: dict[int, _Shown] = {}  # by the identity of what the caller gave: decoded once, however many questions
    for given, _ in pairs:
        if id(given) not in shown:
            images_of_it = _open(given, frame=frame, slice_index=slice_index, plane=plane, window=window)
            shown[id(given)] = _Shown(images_of_it, kit.processor.cut(image.pixels for image in images_of_it))
    sheets = [(shown[id(given)], text) for given, text in pairs]
    answers = _answer(kit, sheets, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return answers[0] if isinstance(question, str) else answers


@dataclass(frozen=True)
class _Shown:
    """Images that one question or several are about, decoded and cut into patches."""

    images: tuple[LoadedImage, ...]
    cut: Cut


def _pairs(images: Any, question: Any) -> list[tuple[Any, str]]:
    """Return what is shown and asked, one pair per answer."""
    if question is not None:
        asked: list[Any] = [(images, text) for text in (question if isinstance(question, list | tuple) else [question])]
    else:
        asked = list(images) if isinstance(images, list | tuple) else [images]
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in asked):
            raise InputError("there is no question: give one after the images, or give (images, question) pairs")
    for _, text in asked:
        if not isinstance(text, str):
            raise InputError(f"the question is of type {type(text).__name__}, expected text")
        if not text.strip():
            raise InputError("the prompt is empty: ask something, such as 'Where is the liver?'")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the question holds half a character (a lone surrogate) at position {error.start}: give text in UTF-8"
            ) from None
    return asked


def _open(
    given: Any, *, frame: int | None, slice_index: int | Sequence[int | None] | None, plane: str, window: Any
) -> tuple[LoadedImage, ...]:
    """Decode the images of a question."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise InputError("there is no image: give at least one")
    if isinstance(slice_index, Sequence) and not isinstance(slice_index, str | bytes):
        slices: list[Any] = list(slice_index)
    else:
        slices = [slice_index]  # a string is one wrong slice, which the reader names, and not one slice a letter
    if len(slices) not in (1, len(several)):
        raise InputError(
            f"{len(slices)} slices for {len(several)} image(s): give one (slice_index, --slice) for all, or one each"
        )
    return tuple(
        open_image(one, frame=frame, slice_index=index, plane=plane, window=window)
        for one, index in zip(several, slices * (len(several) // len(slices)), strict=True)
    )


def _answer(
    kit: Kit, sheets: Sequence[tuple[_Shown, str]], *, max_new_tokens: int, temperature: float, seed: int
) -> list[Reply]:
    """Answer every question in one batch."""
    if not sheets:
        return []
    samples = [_sample(shown.images, text) for shown, text in sheets]
    documents = [
        kit.processor.encode(sample, for_generation=True, cut=shown.cut)
        for sample, (shown, _) in zip(samples, sheets, strict=True)
    ]
    _refuse_overlong(kit, max(len(document.input_ids) for document in documents), max_new_tokens)
    batch = pack(documents).to(kit.model.head_weight.device)
    outcomes = kit.model.generate(batch, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    answers: list[Reply] = []
    for (outcome,), sample, (shown, _) in zip(outcomes, samples, sheets, strict=True):
        text = kit.tokenizer.decode(outcome.tokens)
        where = sample.truth_boxes()
        assert where is not None  # a sample with images
        parsed = kit.profile.read_boxes(text, where)
        answers.append(Reply(text, outcome.finished, parsed.boxes, parsed.errors, shown.images))
    return answers


def _refuse_overlong(kit: Kit, num_tokens: int, max_new_tokens: int) -> None:
    most = kit.model.config.text.max_position_embeddings
    if isinstance(max_new_tokens, int) and num_tokens + max_new_tokens > most:  # `generate` refuses other types
        raise InputError(
            f"images and question are {num_tokens} tokens and the answer may be {max_new_tokens} more; the checkpoint "
            f"knows {most} positions: shorten the question, show fewer or smaller images, or lower max_new_tokens"
        )


def _sample(images: Sequence[LoadedImage], question: str) -> Sample:
    """Return a question as a sample: its images are named by their number, never by their file."""
    references = tuple(
        ImageRef(path=f"image {number}", width=image.size[0], height=image.size[1])
        for number, image in enumerate(images, start=1)
    )
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    return Sample(id="question", task="vqa", images=references, messages=({"role": "user", "content": content},))
