"""Packing: documents end to end, every one as it was, nothing between them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medmo_core.batch import IGNORE_INDEX, PatchSpec
from medmo_core.data.packing import PackingStats, group_by_tokens, pack
from medmo_core.data.process import Item, Processor
from medmo_core.data.read_record import sample_from_json
from medmo_core.data.tokenizer import Tokenizer
from medmo_core.profile import QWEN3_VL

embedded = cache(Tokenizer.embedded)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """A document with one image, one without, one with two."""
    for name, size in {"a.png": (64, 96), "b.png": (32, 32)}.items():
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    specs = {"qwen3_vl": PatchSpec(16, 2, 2), "dinov2": PatchSpec(14, 2)}
    processor = Processor(embedded(), specs, QWEN3_VL, min_pixels=1, max_pixels=10**6, root=tmp_path)
    records = [
        {"id": "one", "image": "a.png", "question": "?", "answer": "CT"},
        {"id": "none", "question": "What is CT?", "answer": "a scan"},
        {"id": "two", "images": ["b.png", "a.png"], "question": "?", "answer": "MR"},
    ]
    return [processor.encode(sample_from_json(record)) for record in records]


def test_every_document_is_in_the_batch_as_it_was(items: list[Item]) -> None:
    batch = pack(items)
    assert batch.lengths() == [len(item.input_ids) for item in items]
    assert batch.num_tokens == sum(len(item.input_ids) for item in items)  # no padding
    assert batch.sample_ids == ("one", "none", "two")
    bounds = batch.cu_seqlens.tolist()
    for item, start, stop in zip(items, bounds, bounds[1:], strict=False):
        assert np.array_equal(batch.input_ids[start:stop].numpy(), item.input_ids)
        assert batch.labels is not None
        assert np.array_equal(batch.labels[start:stop].numpy(), item.labels)
        assert np.array_equal(batch.position_ids[:, start:stop].numpy(), item.position_ids)
    for name in ("qwen3_vl", "dinov2"):
        assert batch.image_grid_thw[name].tolist() == [[1, 4, 6], [1, 2, 2], [1, 4, 6]]
        assert len(batch.patches[name]) == int(batch.image_grid_thw[name].prod(1).sum())
        assert np.array_equal(batch.patches[name][-len(items[2].patches[name]) :].numpy(), items[2].patches[name])
    assert batch.patches["qwen3_vl"].dtype == torch.uint8
    assert batch.cu_seqlens.dtype == torch.int32


def test_packing_packed_pieces_changes_nothing(items: list[Item]) -> None:
    """The tokens of a document do not depend on its company."""
    both, alone = pack(items), [pack([item]) for item in items]
    assert torch.equal(both.input_ids, torch.cat([b.input_ids for b in alone]))
    assert torch.equal(both.position_ids, torch.cat([b.position_ids for b in alone], dim=1))


def test_a_batch_without_images_has_no_patches(items: list[Item]) -> None:
    batch = pack([items[1]])
    assert (batch.patches, batch.image_grid_thw) == ({}, {})


def test_labels_are_absent_or_ignored_where_there_are_none(items: list[Item]) -> None:
    prompts = [replace(item, labels=None) for item in items]
    assert pack(prompts).labels is None
    mixed = pack([items[0], prompts[1]])
    assert mixed.labels is not None
    assert (mixed.labels[len(items[0].input_ids) :] == IGNORE_INDEX).all()
    assert (mixed.labels[: len(items[0].input_ids)] != IGNORE_INDEX).any()


def test_the_counts_of_a_batch(items: list[Item]) -> None:
    stats = PackingStats.of(pack(items))
    learned = sum(int((item.labels != IGNORE_INDEX).sum()) for item in items)
    patches = sum(len(rows) for item in items for rows in item.patches.values())
    assert stats == PackingStats(3, sum(len(i.input_ids) for i in items), learned, patches)


def test_what_cannot_be_packed_is_refused(items: list[Item]) -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([])
    other = replace(items[2], patches={"qwen3_vl": items[2].patches["qwen3_vl"]})
    with pytest.raises(ValueError, match="different encoders cannot share a batch"):
        pack([items[0], other])


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_groups_keep_order_and_budget(lengths: list[int], budget: int) -> None:
    groups = group_by_tokens(lengths, budget)
    assert [i for group in groups for i in group] == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[i] for i in group) <= budget for group in groups)
    sums = [sum(lengths[i] for i in group) for group in groups]
    assert all(total + lengths[following[0]] > budget for total, following in zip(sums, groups[1:], strict=False))
