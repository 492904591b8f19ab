"""Answers of a model to samples, decoded greedily in packed batches, and its likelihood of given captions.

Shapes: N pairs of an image and its caption.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from medmo_core.batch import IGNORE_INDEX
from medmo_core.data.packing import pack
from medmo_core.data.processor import Processor, shown_images
from medmo_core.data.records.sample import Sample
from medmo_core.errors import InputError
from medmo_core.inference.copies import Copies
from medmo_core.models.medmo import MedMO

SPARE_TOKENS = 16  # an answer may be half as long again as the longest true one, and this much more
MAX_ANSWER_TOKENS = 1024
WORTH_A_PROCESS = 128  # questions: a process takes seconds to start, in which as many are answered by a small model
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
        num_processes: processes of one thread each that answer, for a model on the CPU; 1: this one. However many there
            are, the batches are the same.

    Raises:
        InputError: a number is out of range.
    """

    batch_size: int = 64
    max_new_tokens: int | None = None
    seed: int = 0
    on_progress: OnProgress = in_silence
    num_processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}, expected 1 or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}, expected 1 or more, or none for the default")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected 0 or more")
        if self.num_processes < 1:
            raise InputError(f"num_processes is {self.num_processes}, expected 1 or more")

    def copies(self, model: MedMO, processor: Processor, num_questions: int) -> Copies:
        """Return the processes that so many questions are worth, not yet started."""
        return Copies(model, processor, min(self.num_processes, num_questions // WORTH_A_PROCESS))


DEFAULT_ASKING = Asking()


def answer(
    model: MedMO, processor: Processor, samples: Sequence[Sample], *, max_new_tokens: int, batch_size: int = 64
) -> list[str]:
    """Answer samples greedily; their own answers are not shown to the model.

    Args:
        model: the model.
        processor: processor that encodes prompts and decodes answers.
        samples: samples with the questions.
        max_new_tokens: longest answer, see `answer_limit`.
        batch_size: answers decoded together.

    Returns:
        One text per sample.
    """
    asked = start_answers(Copies(model, processor), {"": samples}, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return asked(in_silence)[""]


def start_answers(
    copies: Copies, questions: Mapping[str, Sequence[Sample]], *, max_new_tokens: int, batch_size: int
) -> Callable[[OnProgress], dict[str, list[str]]]:
    """Start to answer parts of an evaluation greedily, questions of all parts about the same images side by side.

    So the images of a batch that several questions are about are encoded once.

    Args:
        copies: model, processor, and where they work.
        questions: name of a part -> samples with its questions.
        max_new_tokens: longest answer, see `answer_limit`.
        batch_size: answers decoded together.

    Returns:
        A function that waits for the answers and returns name -> one text per sample; its argument hears, after every
        batch, how far each part is.
    """
    places = [(part, index) for part, samples in questions.items() for index in range(len(samples))]
    first: dict[Hashable, int] = {}
    for place, (part, index) in enumerate(places):
        first.setdefault(shown_images(questions[part][index]), place)
    places.sort(key=lambda place: first[shown_images(questions[place[0]][place[1]])])
    batches = list(batched(places, batch_size))
    calls = [([questions[part][index] for part, index in batch], max_new_tokens) for batch in batches]
    answers = copies.start(answer_batch, calls)

    def wait(on_progress: OnProgress) -> dict[str, list[str]]:
        texts = {part: [""] * len(samples) for part, samples in questions.items()}
        done = dict.fromkeys(questions, 0)
        for batch, said in zip(batches, answers, strict=True):
            for (part, index), text in zip(batch, said, strict=True):
                texts[part][index] = text
                done[part] += 1
            for part in dict.fromkeys(part for part, _ in batch):
                on_progress(part, done[part], len(questions[part]))
        return texts

    return wait


def answer_batch(model: MedMO, processor: Processor, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
    """Answer samples greedily in one batch; returns one text per sample."""
    batch = pack(processor.encode_all(samples, for_generation=True)).to(model.head_weight.device)
    outcomes = model.generate(batch, max_new_tokens=max_new_tokens)
    return [processor.tokenizer.decode(generations[0].tokens) for generations in outcomes]


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


def start_caption_scores(
    copies: Copies, images: Sequence[Sample], captions: Sequence[str], *, batch_size: int
) -> Callable[[Callable[[int], None]], Tensor]:
    """Start to score every caption against every image by its log-likelihood given the image, per token.

    Args:
        copies: model, processor, and where they work.
        images: N samples; their images and questions are used.
        captions: candidate texts.
        batch_size: documents per pass.

    Returns:
        A function that waits for the scores and returns them, (N, number of captions) float64; its argument hears,
        after every pass, how many pairs are scored.
    """
    documents = [with_answer(image, caption) for image in images for caption in captions]
    parts = copies.start(answer_logprobs, [(chunk,) for chunk in batched(documents, batch_size)])

    def wait(on_progress: Callable[[int], None]) -> Tensor:
        scores: list[float] = []
        for part in parts:
            scores += part
            on_progress(len(scores))
        return torch.tensor(scores, dtype=torch.float64).view(len(images), len(captions))

    return wait


@torch.no_grad()
def answer_logprobs(model: MedMO, processor: Processor, samples: Sequence[Sample]) -> list[float]:
    """Return the log-likelihood, per token, of the answers that samples hold; answers about one image share its prefix.

    Args:
        model: the model.
        processor: processor that encodes the samples.
        samples: samples with one answer each, in one batch.
    """
    documents = processor.encode_all(samples)
    batch = pack(documents, share_prefixes=True).to(model.head_weight.device)
    lengths = [0 if item.labels is None else int((item.labels != IGNORE_INDEX).sum()) for item in documents]
    return [part.double().mean().item() for part in model.token_logprobs(batch).cpu().split(lengths)]


def with_answer(sample: Sample, text: str) -> Sample:
    """Return the sample with `text` as its only assistant turn."""
    turns = [message for message in sample.messages if message["role"] != "assistant"]
    return replace(sample, messages=(*turns, {"role": "assistant", "content": text}), answer=None)
