"""Name, place and notice of the checkpoint in the repository.

`files/` holds the model card, the held-out figures that it names, and the checkpoint in a folder below, so that a model
trained from it takes neither over.
"""

import json
import sys
from functools import cache
from pathlib import Path

from ..notice import SHORT_NOTICE

DEMO_NAME = "medmo-tiny-demo"
"""Name that is taken wherever a folder or a hub id is; a folder of that name is written ./medmo-tiny-demo."""
FILES = Path(__file__).parent / "files"
CARD, HELD_OUT, WEIGHTS = "README.md", "held_out.json", "checkpoint"
"""Names within `FILES`: the card, the figures, and the folder in the official layout."""
FIRST_IMAGE, FIRST_QUESTION = "images/ct-contrast-006.png", "Where is the liver?"
"""A held-out image of the embedded set, and a question about it that the checkpoint answers with a box."""


def demo_folder() -> Path:
    """Return the folder of the checkpoint, in the official layout; the first call says on stderr that it is a toy.

    Raises:
        FileNotFoundError: the installation lacks it.
    """
    folder = FILES / WEIGHTS
    if not folder.is_dir() or not (FILES / HELD_OUT).is_file():
        raise FileNotFoundError(
            f"{DEMO_NAME} is missing in {FILES}: reinstall medmo, or train it with: python -m tools.demo_checkpoint"
        )
    _say(toy_line())
    return folder


def toy_line() -> str:
    """Return the sentence that says what the checkpoint is."""
    figures = json.loads((FILES / HELD_OUT).read_text(encoding="utf-8"))
    return f"{DEMO_NAME} is a toy, trained on {figures['num_training_images']} images: {SHORT_NOTICE}"


@cache
def _say(line: str) -> None:
    """Print a line once."""
    print(line, file=sys.stderr, flush=True)
