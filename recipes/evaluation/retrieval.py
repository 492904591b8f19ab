"""Retrieval of captions for images and of images for captions, by log-likelihood."""

from collections.abc import Callable, Sequence
from statistics import median

from torch import Tensor

from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Sample
from medmo_core.data.sample_text import SampleText
from medmo_core.errors import InputError
from medmo_core.inference.copies import Copies
from medmo_core.metrics import mean_interval, retrieval_ranks
from medmo_core.models.medmo import MedMO

from .ask import DEFAULT_ASKING, Asking, start_caption_scores
from .results import Evaluation
from .scores import Prediction, Score, image_key


def distinct_captions(sample_text: SampleText, samples: Sequence[Sample]) -> list[Sample]:
    """Keep one sample per distinct caption and per image: a second right candidate would make every rank unfair."""
    kept: dict[str, Sample] = {}
    images: set[str] = set()
    for sample in samples:
        facts = str(sample.facts) if sample.facts else sample_text.target_text(sample)
        image = image_key(sample, crop=True)
        if facts not in kept and image not in images:
            kept[facts] = sample
            images.add(image)
    return list(kept.values())


def evaluate_retrieval(
    model: MedMO, processor: Processor, samples: Sequence[Sample], *, suffix: str = "", asking: Asking = DEFAULT_ASKING
) -> Evaluation:
    """Rank captions for each image and images for each caption.

    Args:
        model: the model.
        processor: processor of the model's checkpoint.
        samples: N pairs with distinct captions.
        suffix: ending of the names.
        asking: batch size.

    Returns:
        `retrieval_recall1` and `retrieval_median_rank` (a caption per image), `retrieval_image_recall1` and
        `retrieval_image_median_rank` (an image per caption); the baseline is chance. The answer to an image is the
        caption that came first.

    Raises:
        InputError: fewer than two distinct captions.
    """
    return start_retrieval(Copies(model, processor), samples, suffix=suffix, asking=asking)()


def start_retrieval(
    copies: Copies, samples: Sequence[Sample], *, suffix: str, asking: Asking
) -> Callable[[], Evaluation]:
    """Start what `evaluate_retrieval` does; the function returned waits for its result."""
    sample_text = copies.processor.text
    samples = distinct_captions(sample_text, samples)
    if len(samples) < 2:
        raise InputError(f"retrieval needs at least two samples with distinct facts, got {len(samples)}")
    captions = [sample_text.target_text(sample) for sample in samples]
    scores = start_caption_scores(copies, samples, captions, batch_size=asking.batch_size)
    key, pairs = f"retrieval{suffix}", len(samples) ** 2

    def finish() -> Evaluation:
        table = scores(lambda done: asking.on_progress(key, done, pairs))
        return _ranked(table, samples, captions, sample_text, suffix)

    return finish


def _ranked(
    scores: Tensor, samples: Sequence[Sample], captions: list[str], sample_text: SampleText, suffix: str
) -> Evaluation:
    """Rank captions and images by their scores (N, N)."""
    key, truth = f"retrieval{suffix}", list(range(len(samples)))
    result = Evaluation()
    for name, table in (("retrieval", scores), ("retrieval_image", scores.T)):
        ranks = [int(rank) for rank in retrieval_ranks(table, truth)]
        for metric, score in _rank_scores(ranks, samples).items():
            result.metrics[f"{name}_{metric}{suffix}"] = score
    result.samples[key] = list(samples)
    result.predictions[key] = [
        Prediction(
            sample_id=sample.id,
            task=sample.task,
            question=sample_text.question_text(sample),
            text=captions[first],
            truth=captions[index],
            scores={"retrieval_recall1": float(rank == 1)},
            baseline={"retrieval_recall1": 1 / len(samples)},
            image=image_key(sample, crop=False),
            scan=sample.group or image_key(sample, crop=False),
        )
        for index, (sample, first, rank) in enumerate(
            zip(samples, scores.argmax(1).tolist(), retrieval_ranks(scores, truth), strict=True)
        )
    ]
    return result


def _rank_scores(ranks: Sequence[int], samples: Sequence[Sample]) -> dict[str, Score]:
    """Summarise ranks (1 = first): recall@1 and median rank, each beside chance."""
    images = [image_key(sample, crop=False) for sample in samples]
    counts = {
        "n": len(ranks),
        "num_images": len(set(images)),
        "num_scans": len({sample.group or image for sample, image in zip(samples, images, strict=True)}),
    }
    hits = [float(rank == 1) for rank in ranks]
    low, high = mean_interval(hits, images) or (None, None)
    chance, value = 1.0 / len(ranks), sum(hits) / len(hits)
    gain = {
        "gain": value - chance,
        "gain_low": None if low is None else low - chance,
        "gain_high": None if high is None else high - chance,
    }
    middle = float(median(ranks))
    return {
        "recall1": Score(value=value, low=low, high=high, baseline=chance, **gain, **counts),
        # A median over so few ranks has no interval worth printing.
        "median_rank": Score(value=middle, low=None, high=None, baseline=(len(ranks) + 1) / 2, **counts),
    }
