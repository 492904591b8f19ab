"""Answers of a model to samples, decoded greedily in packed batches, and its likelihood of given captions.

Shapes: N pairs of an image and its caption.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from medmo_core.data.packing import pack
from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.errors import InputError
from medmo_core.models.medmo import MedMO

SPARE_TOKENS = 16  # an answer may be half as long again as the longest true one, and this much more
MAX_ANSWER_TOKENS = 1024
Member = TypeVar("Member")
OnProgress = Callable[[str, int, int], None]
"""What hears how far a part of an evaluation is: its name, how many are done, how many there are."""


def in_silence(part: str, done: int, total: int) -> None:
    """Hear how far an evaluation is, and keep it to oneself."""




@dataclass(frozen=True)
class Asking:
    """Settings of how a model is asked in an evaluation.

    Attributes:
        batch_size: answers decoded together, or documents per pass.
        max_new_tokens: longest answer; None: half as long again as the longest true one.
        seed: seed of everything that is drawn: crops, shuffling.
        on_progress: function that hears how far the evaluation is.

    Raises:
        InputError: a number is out of range.
    """

    batch_size: int = 64
    max_new_tokens: int | None = None
    seed: int = 0
    on_progress: OnProgress = in_silence

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected 1 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more, or none for the default")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected 0 or more")


DEFAULT_ASKING = Asking()


def answer(
    model: MedMO,
    processor: Processor,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answer samples greedily; their own answers are not shown to the model.

    Args:
        model: the model.
        processor: processor that encodes prompts and decodes answers.
        samples: samples with the questions.
        max_new_tokens: longest answer, see `answer_limit`.
        batch_size: answers decoded together.
        on_progress: function that hears, after every batch, how many samples are answered.

    Returns:
        One text per sample.
    """
    texts: list[str] = []
    for chunk in batched(samples, batch_size):
        batch = pack([processor.encode(sample, for_generation=True) for sample in chunk])
        outcomes = model.generate(batch.to(model.head_weight.device), max_new_tokens=max_new_tokens)
        texts += [processor.tokenizer.decode(generations[0].tokens) for generations in outcomes]
        on_progress(len(texts))
    return texts


def answer_limit(processor: Processor, samples: Sequence[Sample]) -> int:
    """Return how many tokens an answer may take: room for one and a half times the longest true one."""
    longest = max(
        (len(processor.tokenizer.encode(processor.text.target_text(sample))) for sample in samples), default=0
    )
    return min(MAX_ANSWER_TOKENS, longest + longest // 2 + SPARE_TOKENS)


def batched(members: Sequence[Member], size: int) -> Iterator[Sequence[Member]]:
    """Yield consecutive runs of at most `size` members."""
    for start in range(0, len(members), size):
        yield members[start : start + size]


@torch.no_grad()
def caption_scores(
    model: MedMO, processor: Processor, images: Sequence[Sample], captions: Sequence[str], *, batch_size: int = 64,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:  # fmt: skip
    """Score every caption against every image by its log-likelihood given the image, per token.

    Args:
        model: the model.
        processor: processor that encodes the documents.
        images: N samples; their images and questions are used.
        captions: candidate texts.
        batch_size: documents per pass.
        on_progress: function that hears, after every pass, how many pairs are scored.

    Returns:
        (N, number of captions) float64.
    """
    documents = [with_answer(image, caption) for image in images for caption in captions]
    scores: list[Tensor] = []
    for chunk in batched(documents, batch_size):
        batch = pack([processor.encode(document) for document in chunk]).to(model.head_weight.device)
        assert batch.labels is not None
        lengths = [int((part >= 0).sum()) for part in batch.labels.split(batch.lengths())]
        scores += [part.double().mean() for part in model.token_logprobs(batch).cpu().split(lengths)]
        on_progress(len(scores))
    return torch.stack(scores).view(len(images), len(captions))


def with_answer(sample: Sample, text: str) -> Sample:
    """Return the sample with `text` as its only assistant turn."""
    turns = [message for message in sample.messages if message["role"] != "assistant"]
    return replace(sample, messages=(*turns, {"role": "assistant", "content": text}), answer=None)
