"""Provenance of an evaluation: which weights answered which questions, by hash, and with which versions."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medmo_core.data.images.digest import digest_of
from medmo_core.data.records.store import Root
from medmo_core.optional import version_of

from .ask import Asking
from .results import Evaluation

WEIGHTS = "*.safetensors"


def provenance_of(
    result: Evaluation, *, checkpoint: str, folder: Path, data: str, files: Iterable[Path], split: str, asking: Asking
) -> dict[str, Any]:
    """Return what a reader needs to repeat an evaluation, in plain values.

    Args:
        result: scores and answers.
        checkpoint: checkpoint as the caller named it.
        folder: folder that its weights were read from.
        data: data as the caller named it.
        files: data files that were read; the pictures of the samples are hashed beside them.
        split: split that was scored.
        asking: batch size, longest answer and seed.
    """
    return {
        "checkpoint": checkpoint,
        "weights_sha256": weights_digest(folder),
        "data": data,
        "files_sha256": {str(path): file_digest(path) for path in files},
        "pictures_sha256": _digest(_pictures(result)),
        "questions_sha256": _digest(
            json.dumps([key, p.sample_id, p.question, p.truth])
            for key, predictions in sorted(result.predictions.items())
            for p in predictions
        ),
        "split": split,
        "seed": asking.seed,
        "batch_size": asking.batch_size,
        "max_new_tokens": asking.max_new_tokens,
        "medmo": version_of("medmo"),
        "torch": version_of("torch"),
    }


def _pictures(result: Evaluation) -> Iterator[str]:
    """Yield the checksum of every picture that was shown, in the order of the questions; each is read once."""
    known: dict[tuple[Root, str], str] = {}
    for _, samples in sorted(result.samples.items()):
        for sample in samples:
            for image in sample.images:
                place = (sample.root, image.path)
                if place not in known:
                    known[place] = digest_of(image, sample.root)
                yield known[place]


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a checkpoint's weight files."""
    return _digest(path.name + file_digest(path) for path in sorted(folder.glob(WEIGHTS)))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(parts: Iterable[str]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode("utf-8", "surrogatepass") + b"\n")
    return whole.hexdigest()
