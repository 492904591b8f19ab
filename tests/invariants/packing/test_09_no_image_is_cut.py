"""Invariant 9: a document holds as many placeholders as its images make visual tokens, or it is dropped and counted;
nothing is ever cut.
"""

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.processor import Processor, TooLong
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.inference.kit import Kit
from medmo_core.models.medmo import MedMO
from medmo_recipes import align
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement.groups import draw_prompts
from medmo_recipes.settings.run_config import RunConfig
from medmo_recipes.training.loading.skipped import SkippedSamples
from medmo_recipes.training.model.kit import load_kit

SIZES = {"small.png": (32, 32), "wide.png": (160, 64), "tall.png": (64, 224)}
LIMIT = 80
"""Some of the samples below have more tokens."""


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about one to three images of several sizes, with words before, between and behind them."""
    folder = tmp_path_factory.mktemp("images")
    for name, (width, height) in SIZES.items():
        pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    lines = []
    for index in range(12):
        images = [*SIZES, *SIZES][index % 3 : index % 3 + 1 + index % 4 % 3]
        parts = [{"type": "text", "text": "compare these " * (index % 5)}]
        for _ in images:
            parts += [{"type": "image"}, {"type": "text", "text": " and <|image_pad|> "}]
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a scan " * (1 + index % 3)}]
        lines.append({"id": f"case-{index}", "task": "caption", "images": [{"path": i} for i in images],
                      "messages": turns})  # fmt: skip
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(own_data: Path, out_dir: Path) -> RunConfig:
    return CONFIGS["debug_align"]().change(
        data={"sources": {str(own_data): 1.0}, "min_pixels": 1024, "max_pixels": 2**20, "max_tokens": LIMIT,
              "max_bad_ratio": 1.0},
        train={"steps": 3, "docs_per_step": 12, "save_every": 3, "device": "cpu", "out_dir": str(out_dir)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def kit(own_data: Path) -> Kit:
    return load_kit(config(own_data, own_data.parent), "cpu")


@pytest.fixture(scope="module")
def samples(own_data: Path) -> list[Sample]:
    return list(load_jsonl(own_data, own_data.parent))


def assert_images_are_whole(batch: Batch, image_token_id: int) -> None:
    """Check every document's blocks of placeholders against the images in order."""
    counts = (batch.image_grid_thw["qwen3_vl"].prod(1) // 4) if batch.image_grid_thw else []
    shown = list(counts) if batch.image_index is None else [counts[i] for i in batch.image_index.tolist()]
    for index, ids in enumerate(batch.input_ids.split(batch.lengths())):
        blocks = [len(list(run)) for token, run in groupby(ids.tolist()) if token == image_token_id]
        makes = [int(shown.pop(0)) for _ in blocks[: len(shown)]]
        assert blocks == makes, batch.document_name(index)
    assert not shown


def limited(processor: Processor, max_tokens: int | None) -> Processor:
    return Processor(
        processor.tokenizer, processor.specs, processor.text.profile, min_pixels=processor.min_pixels,
        max_pixels=processor.max_pixels, max_tokens=max_tokens,
    )  # fmt: skip


def test_a_sample_is_whole_or_too_long_at_every_limit(kit: Kit, samples: list[Sample]) -> None:
    free = limited(kit.processor, None)
    whole = [free.encode(sample) for sample in samples]
    longest = max(len(item.input_ids) for item in whole)
    for max_tokens in range(1, longest + 1, 3):
        processor = limited(kit.processor, max_tokens)
        for sample, expected in zip(samples[::4], whole[::4], strict=True):
            if len(expected.input_ids) > max_tokens:
                with pytest.raises(TooLong, match=f"{sample.id}: {len(expected.input_ids)} tokens, over the limit"):
                    processor.encode(sample)
            else:
                assert np.array_equal(processor.encode(sample).input_ids, expected.input_ids)
    assert_images_are_whole(pack(whole), kit.tokenizer.image_token_id)


@pytest.mark.parametrize("share", [False, True], ids=["separate", "shared"])
def test_a_shared_prompt_holds_all_of_its_images(kit: Kit, samples: list[Sample], share: bool) -> None:
    free = limited(kit.processor, None)
    turn = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "a scan"}]
    talks = [replace(sample, messages=(*sample.messages, *turn)) for sample in samples]
    items = [item for talk in talks for item in free.encode_turns(talk)]
    assert len(items) == 2 * len(samples)
    batch = pack(items, share)
    assert (batch.prompt_of is not None) == share
    assert_images_are_whole(batch, kit.tokenizer.image_token_id)


def test_what_a_run_drops_is_counted(
    kit: Kit, samples: list[Sample], own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []
    hidden_states = MedMO.hidden_states

    def watched(self: MedMO, batch: Batch, *arguments: Any, **options: Any) -> Tensor:
        batches.append(batch)
        return hidden_states(self, batch, *arguments, **options)

    monkeypatch.setattr(MedMO, "hidden_states", watched)
    assert align.run(config(own_data, tmp_path))
    long = {s.id for s in samples if len(limited(kit.processor, None).encode(s).input_ids) > LIMIT}
    dropped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    learned = [name for batch in batches for name in batch.sample_ids]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {(fault["id"], fault["kind"]) for fault in dropped} == {(name, "too long") for name in long}
    assert 0 < len(long) < len(samples) and set(learned) == {sample.id for sample in samples} - long
    assert [m["skipped"] for m in metrics if "loss" in m][-1] == len(dropped) == 3 * len(long)
    for batch in batches:
        assert_images_are_whole(batch, kit.tokenizer.image_token_id)


def test_placeholders_without_their_image_are_dropped_and_counted(kit: Kit, samples: list[Sample]) -> None:
    two = next(sample for sample in samples if len(sample.images) == 2)
    broken = [replace(two, images=two.images[:1]), replace(two, images=(*two.images, *two.images)), samples[0]]
    prompts, faults = draw_prompts(lambda n: broken[n], limited(kit.processor, None), range(3))
    skipped = SkippedSamples(None)
    skipped.add(3, faults)
    assert list(prompts) == [2] and skipped.kinds == {"unreadable": 2}
    assert "2 image placeholder(s), 1 image(s) are given" in faults[0].reason
    assert "2 image placeholder(s), 4 image(s) are given" in faults[1].reason


def test_a_document_cut_through_an_image_is_noticed(kit: Kit, samples: list[Sample]) -> None:
    whole = limited(kit.processor, None).encode(next(s for s in samples if s.images[0].path == "tall.png"))
    middle = int(np.flatnonzero(whole.input_ids == kit.tokenizer.image_token_id)[3])
    batch = pack([truncated(whole, middle)])
    with pytest.raises(AssertionError, match=whole.sample.id):
        assert_images_are_whole(batch, kit.tokenizer.image_token_id)
    with pytest.raises(ValueError, match=f"the text holds 3 image placeholder tokens.*{whole.sample.id}"):
        kit.model.loss(batch)


def truncated(item: Document, length: int) -> Document:
    """Cut a document as loaders do that know nothing of images."""
    assert item.labels is not None
    return replace(
        item,
        input_ids=item.input_ids[:length],
        labels=item.labels[:length],
        position_ids=item.position_ids[:, :length],
    )
