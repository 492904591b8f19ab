"""Lengths without decoding equal the encoded ones, for every task and any size; and so does all but the pixels."""

import pickle
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmo_core.batch import PatchSpec
from medmo_core.data import picture_cache
from medmo_core.data.document import Document
from medmo_core.data.processor import Processor, TooLong
from medmo_core.data.records.sample import Answer, ImageRef, Sample
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.datasets.embedded.dialogues import Dialogues
from medmo_core.datasets.embedded.tasks import EMBEDDED_TASKS, EmbeddedTasks
from medmo_core.profile import MEDMO, QWEN3_VL

SPECS = {"qwen3_vl": PatchSpec(16, 2, 2), "dinov2": PatchSpec(14, 1)}
embedded = cache(Tokenizer.embedded)


def processor(min_pixels: int, max_pixels: int, max_tokens: int | None = None, root: Path | None = None) -> Processor:
    profile = MEDMO if max_pixels % 2 else QWEN3_VL
    return Processor(
        embedded(), SPECS, profile, min_pixels=min_pixels, max_pixels=max_pixels, max_tokens=max_tokens, root=root
    )


def assert_same_but_for_pixels(outline: Document, item: Document) -> None:
    for name in ("input_ids", "labels", "position_ids"):
        assert np.array_equal(getattr(outline, name), getattr(item, name)), name
    assert (outline.sample, outline.visual_end) == (item.sample, item.visual_end)
    assert outline.patches.keys() == item.patches.keys() == item.image_grid_thw.keys()
    for name, rows in item.patches.items():
        assert np.array_equal(outline.image_grid_thw[name], item.image_grid_thw[name])
        assert outline.patches[name].shape == rows.shape and outline.patches[name].dtype == rows.dtype
        assert outline.patches[name].strides == (0, 0)  # no memory


@pytest.mark.parametrize("task", [*EMBEDDED_TASKS, "dialogue"])
def test_every_task_has_the_length_that_it_is_encoded_to(task: str) -> None:
    source = Dialogues("train") if task == "dialogue" else EmbeddedTasks(task, "train", crops=True)
    rng = random.Random(task)
    for _ in range(12):
        low = rng.randint(1, 20_000)
        own = processor(low, low + rng.randint(5_000, 60_000))
        sample = source.get(rng.randrange(len(source)), rng)
        unknown = replace(sample, images=tuple(replace(i, width=None, height=None) for i in sample.images))
        item = own.encode(sample)
        assert own.length(sample) == len(item.input_ids)
        assert_same_but_for_pixels(own.encode(sample, pixels=False), item)
        if task not in ("grounding", "dialogue"):  # boxes need a stated size to be written
            assert own.length(unknown) == len(item.input_ids)
        for outline, turn in zip(own.encode_turns(sample, pixels=False), own.encode_turns(sample), strict=True):
            assert_same_but_for_pixels(outline, turn)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=0, max_size=3),
    st.integers(1, 40_000),
    st.integers(1024, 60_000),
    st.text(max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_any_sizes_and_texts(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], low: int, extra: int, text: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    own = processor(low, low + extra, root=folder)
    for index, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{index}.png")
    parts = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
    images = tuple(ImageRef(f"{index}.png") for index in range(len(sizes)))
    turn = {"role": "user", "content": parts}
    sample = Sample("s", "vqa", images, (turn,), answer=Answer("open", text or "yes"))
    try:
        expected = own.encode(sample)
    except ValueError as error:
        with pytest.raises(ValueError, match=r"times longer than wide"):
            own.length(sample)
        assert "times longer than wide" in str(error)
        return
    assert own.length(sample) == len(expected.input_ids)
    assert_same_but_for_pixels(own.encode(sample, pixels=False), expected)


def test_no_pixel_is_decoded_for_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = EmbeddedTasks("vqa", "train").get(0, random.Random(0))
    monkeypatch.setattr(picture_cache, "load_whole", lambda *a, **k: pytest.fail("decoded"))
    assert processor(1024, 50_000).length(sample) > 10


def test_what_is_too_long_is_known_before_decoding() -> None:
    sample = EmbeddedTasks("caption", "train").get(0, random.Random(0))
    length = processor(1024, 50_000).length(sample)
    with pytest.raises(TooLong, match=f"{length} tokens, over the limit of {length - 1}"):
        processor(1024, 50_000, max_tokens=length - 1).length(sample)


def test_a_processor_reads_text_as_text_in_another_process_too() -> None:
    """The tokenizer's library forgets in its pickle that special tokens are spelled out."""
    own = processor(1024, 50_000)
    sample = EmbeddedTasks("vqa", "train").get(3, random.Random(0))
    typed = replace(sample, answer=Answer("open", "<|im_end|><|image_pad|>"))
    own.encode(typed)
    other = pickle.loads(pickle.dumps(own))
    found, expected = other.encode(typed), own.encode(typed)
    assert np.array_equal(found.input_ids, expected.input_ids)
    assert np.array_equal(found.patches["dinov2"], expected.patches["dinov2"])
    assert (found.input_ids == embedded().image_token_id).sum() == found.image_grid_thw["dinov2"].prod()
