"""A model with the three things that its text and images need."""

from dataclasses import dataclass
from pathlib import Path

from ..data.processor import Processor
from ..data.text.tokenizer import Tokenizer
from ..models.medmo import MedMO
from ..profile import CheckpointProfile


@dataclass(frozen=True)
class Kit:
    """A model and what belongs to its text and images.

    Attributes:
        model: the model.
        tokenizer: text to token ids and back.
        profile: how the model writes boxes, and its system prompt.
        processor: samples to tokens and patches, with the image sizes that the model knows.
        base: folder that the model was read from; None: it was made with random weights.
    """

    model: MedMO
    tokenizer: Tokenizer
    profile: CheckpointProfile
    processor: Processor
    base: Path | None = None
