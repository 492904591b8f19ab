"""A debug checkpoint, and a kit that says what a test wants."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.generation.decoding import Generation
from medmo_core.inference import Kit, load
from medmo_core.models.config import PRESETS
from medmo_core.models.medmo import MedMO
from medmo_core.profile import CheckpointProfile


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the official layout: a debug model with random weights."""
    tokenizer, folder = Tokenizer.embedded(), tmp_path_factory.mktemp("checkpoint") / "debug"
    config = PRESETS["debug"].override(
        vocab_size=tokenizer.vocab_size,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_id,
        vision_end_token_id=tokenizer.vision_end_id,
        bos_token_id=tokenizer.endoftext_id,
        eos_token_id=tokenizer.im_end_id,
    )
    torch.manual_seed(0)
    MedMO.from_config(config).save_pretrained(folder, tokenizer=tokenizer, profile=CheckpointProfile())
    return folder


@pytest.fixture
def kit(checkpoint: Path) -> Kit:
    """The debug checkpoint in float64, on small images."""
    return load(checkpoint, device="cpu", dtype="float64", max_pixels=64 * 64)


@pytest.fixture
def says(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the kit's model say a text, whatever it is asked."""

    def let_it_say(text: str) -> None:
        def generate(*_: object, **__: object) -> list[list[Generation]]:
            return [[Generation(kit.tokenizer.encode(text), [], True)]]

        monkeypatch.setattr(kit.model, "generate", generate)

    return let_it_say
