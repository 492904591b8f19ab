"""Invariant 29: an image of any size has the same resized size, grid and tokens in training, in planning
(where only its header is read), in sampling and in evaluation of the finished model; and as transformers' rule says.
"""

import io
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from medmo_core.data import processor as process
from medmo_core.data.document import Document
from medmo_core.data.processor import Processor
from medmo_core.data.records.sample import Answer, ImageRef, Sample
from medmo_core.inference.load import load
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit

MIN_PIXELS, MAX_PIXELS = 3000, 12_000
COUNT = 1000


@dataclass(frozen=True)
class Gradients:
    """A store of one picture of some size, bright towards the right."""

    width: int
    height: int

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(stored(self.width, self.height))


@lru_cache(maxsize=2)
def stored(width: int, height: int) -> bytes:
    row, out = np.linspace(0, 255, width, dtype=np.uint8), io.BytesIO()
    Image.fromarray(np.broadcast_to(row[None, :, None], (height, width, 3)).copy()).save(out, "BMP")
    return out.getvalue()


def sample(size: tuple[int, int]) -> Sample:
    """A sample whose record does not state the size."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    return Sample("s", "vqa", (ImageRef("a.bmp"),), (question,), answer=Answer("open", "CT"), root=Gradients(*size))


def random_sizes() -> list[tuple[int, int]]:
    """Ordinary ones, and strips up to and beyond the longest that are supported, lying and standing."""
    rng = random.Random(0)
    sizes = [(rng.randint(1, 300), rng.randint(1, 300)) for _ in range(COUNT // 2)]
    for _ in range(COUNT // 2):
        short = rng.choice((1, 2, 3, 7, 15, 16, 17))
        sizes.append((short, short * rng.choice((100, 150, 199, 200, 201)) + rng.randint(0, 1)))
    return [size if rng.random() < 0.5 else size[::-1] for size in sizes]


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Processor, Processor]:
    """The processor that trains and samples, and that of the model it leaves behind."""
    kit = load_kit(CONFIGS["debug_align"]().change(data={"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}), "cpu")
    folder = tmp_path_factory.mktemp("final")
    limits = {"min_pixels": kit.processor.min_pixels, "max_pixels": kit.processor.max_pixels}
    kit.model.save_pretrained(folder, tokenizer=kit.tokenizer, profile=kit.profile, **limits)
    return kit.processor, load(folder, device="cpu").processor


def check(trainer: Processor, evaluator: Processor, sizes: list[tuple[int, int]]) -> int:
    """Check all ways an image takes; returns how many sizes all of them refuse."""
    rule = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize
    refused = 0
    for width, height in sizes:
        given = sample((width, height))
        try:
            resized = rule(height, width, factor=32, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        except ValueError:
            refused += 1
            for encode in (trainer.encode, trainer.length, evaluator.encode):
                with pytest.raises(ValueError, match="times longer than wide"):
                    encode(given)
            continue
        grid = [1, resized[0] // 16, resized[1] // 16]
        learned = trainer.encode(given)
        sampled, judged = (p.encode(given, for_generation=True) for p in (trainer, evaluator))
        for item in (learned, sampled, judged):
            assert item.image_grid_thw["qwen3_vl"].tolist() == [grid], (width, height)
            assert num_placeholders(item, trainer) == grid[1] * grid[2] // 4
            assert np.array_equal(item.patches["qwen3_vl"], learned.patches["qwen3_vl"])
        assert trainer.length(given) == len(learned.input_ids)
        assert learned.input_ids[: len(judged.input_ids)].tolist() == judged.input_ids.tolist()
    return refused


def num_placeholders(item: Document, processor: Processor) -> int:
    return int((item.input_ids == processor.tokenizer.image_token_id).sum())


def test_a_thousand_sizes_are_treated_alike_everywhere(processors: tuple[Processor, Processor]) -> None:
    assert 50 < check(*processors, random_sizes()) < 300


def test_an_evaluator_with_another_budget_is_noticed(processors: tuple[Processor, Processor]) -> None:
    trainer, evaluator = processors
    other = Processor(
        evaluator.tokenizer,
        evaluator.specs,
        evaluator.text.profile,
        min_pixels=MIN_PIXELS,
        max_pixels=MAX_PIXELS - 4000,
    )
    with pytest.raises(AssertionError):
        check(trainer, other, random_sizes()[:40])


def test_a_rule_that_rounds_otherwise_is_noticed(
    processors: tuple[Processor, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = process.smart_resize

    def rounded_down(height: int, width: int, **limits: int) -> tuple[int, int]:
        return rule(max(1, height - 8), width, **limits)

    monkeypatch.setattr(process, "smart_resize", rounded_down)
    with pytest.raises(AssertionError):
        check(*processors, random_sizes()[:40])
