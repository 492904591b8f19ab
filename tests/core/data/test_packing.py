"""Packing: documents end to end, every one as it was, nothing between them."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmo_core.batch import IGNORE_INDEX, Batch, PatchSpec
from medmo_core.data.document import Document
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.data.processor import Processor
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Sample
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.profile import QWEN3_VL

embedded = cache(Tokenizer.embedded)


@pytest.fixture
def items(tmp_path: Path) -> list[Document]:
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


def test_every_document_is_in_the_batch_as_it_was(items: list[Document]) -> None:
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


def test_packing_packed_pieces_changes_nothing(items: list[Document]) -> None:
    """The tokens of a document do not depend on its company."""
    both, alone = pack(items), [pack([item]) for item in items]
    assert torch.equal(both.input_ids, torch.cat([b.input_ids for b in alone]))
    assert torch.equal(both.position_ids, torch.cat([b.position_ids for b in alone], dim=1))


def test_a_batch_without_images_has_no_patches(items: list[Document]) -> None:
    batch = pack([items[1]])
    assert (batch.patches, batch.image_grid_thw) == ({}, {})


def test_labels_are_absent_or_ignored_where_there_are_none(items: list[Document]) -> None:
    prompts = [replace(item, labels=None) for item in items]
    assert pack(prompts).labels is None
    mixed = pack([items[0], prompts[1]])
    assert mixed.labels is not None
    assert (mixed.labels[len(items[0].input_ids) :] == IGNORE_INDEX).all()
    assert (mixed.labels[: len(items[0].input_ids)] != IGNORE_INDEX).any()


def test_the_counts_of_a_batch(items: list[Document]) -> None:
    batch = pack(items)
    assert batch.labels is not None
    learned = sum(int((item.labels != IGNORE_INDEX).sum()) for item in items if item.labels is not None)
    patches = sum(len(rows) for item in items for rows in item.patches.values())
    assert (batch.num_examples, batch.num_tokens) == (3, sum(len(i.input_ids) for i in items))
    assert int((batch.labels != IGNORE_INDEX).sum()) == learned
    assert sum(len(rows) for rows in batch.patches.values()) == patches


def test_what_cannot_be_packed_is_refused(items: list[Document]) -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([])
    other = replace(items[2], patches={"qwen3_vl": items[2].patches["qwen3_vl"]})
    with pytest.raises(ValueError, match="different encoders cannot share a batch"):
        pack([items[0], other])


def branch(item: Document, count: int, seed: int, learned_from: int = 0) -> Document:
    """Return an item without its labels, followed by `count` new tokens, learned from `learned_from` on."""
    new = np.random.default_rng(seed).integers(0, 1000, count)
    positions = np.broadcast_to(item.position_ids.max() + 1 + np.arange(count), (3, count))
    labels = np.where(np.arange(count) < learned_from, IGNORE_INDEX, new)
    return replace(
        item,
        input_ids=np.concatenate([item.input_ids, new]),
        labels=np.concatenate([np.full_like(item.input_ids, IGNORE_INDEX), labels]),
        position_ids=np.concatenate([item.position_ids, positions], axis=1),
    )


def assert_documents_are(batch: Batch, items: list[Document]) -> None:
    """Check that every branch behind its prompt, and every other document, is an item, in order."""
    assert batch.labels is not None
    bounds = batch.cu_seqlens.tolist()
    prompts = [-1] * batch.num_documents if batch.prompt_of is None else batch.prompt_of.tolist()
    spans = [
        [*(range(bounds[p], bounds[p + 1]) if p >= 0 else ()), *range(bounds[j], bounds[j + 1])]
        for j, p in enumerate(prompts)
        if j not in prompts
    ]
    assert len(spans) == len(items) == batch.num_examples
    for span, item in zip(spans, items, strict=True):
        assert batch.input_ids[span].tolist() == item.input_ids.tolist()
        assert batch.labels[span].tolist() == item.labels.tolist()  # type: ignore[union-attr]
        assert batch.position_ids[:, span].tolist() == item.position_ids.tolist()


def test_neighbours_with_one_beginning_become_a_tree(items: list[Document]) -> None:
    one, none, two = items
    group = [branch(two, 3, 0), branch(two, 5, 1, learned_from=2), branch(two, 1, 2)]
    mixed = [branch(one, 2, 3), *group, branch(none, 2, 4)]
    batch = pack(mixed, share_prefixes=True)
    assert_documents_are(batch, mixed)
    assert batch.prompt_of is not None and batch.prompt_of.tolist() == [-1, -1, 1, 1, 1, -1]
    assert batch.lengths()[1:5] == [len(two.input_ids), 3, 5, 1]
    assert batch.sample_ids == ("one", "two", "two", "two", "two", "none")
    assert batch.tasks == ("vqa", "vqa", "vqa", "vqa", "vqa", "text")
    assert batch.image_index is None  # the images stand in the text once
    assert batch.image_grid_thw["dinov2"].tolist() == [[1, 4, 6], [1, 2, 2], [1, 4, 6]]
    assert batch.num_examples == 5
    assert sum(tree.num_tokens for tree in prefix_trees(mixed)) == batch.num_tokens
    assert_documents_are(pack(mixed), mixed)
    assert pack(mixed).prompt_of is None


def test_a_prompt_ends_before_the_first_label_and_spares_every_item_a_token(items: list[Document]) -> None:
    one, none, _ = items
    length = len(one.input_ids)
    same = [branch(one, 4, 0, learned_from=2), branch(one, 4, 0, learned_from=1)]
    assert [tree.prefix for tree in prefix_trees(same)] == [length + 1]
    equal = [replace(branch(none, 4, 0), labels=None)] * 2
    assert [tree.prefix for tree in prefix_trees(equal)] == [len(none.input_ids) + 3]
    assert_documents_are(pack(same, True), same)


def test_what_cannot_share_is_packed_as_it_is(items: list[Document]) -> None:
    """Other words before an image, pictures of their own, another sample, or others in between."""
    one, none, two = items
    other_words = branch(two, 2, 0)
    behind_first = int((two.input_ids == two.input_ids[two.visual_end - 1]).argmax()) + 2
    other_words.input_ids[behind_first] += 1  # the second image stands behind it
    own = replace(two, patches={name: rows.copy() for name, rows in two.patches.items()})
    other_sample = replace(none, sample=replace(none.sample))
    for pair in ([branch(two, 2, 1), other_words], [branch(two, 2, 1), branch(own, 2, 2)],
                 [branch(none, 2, 1), branch(other_sample, 2, 2)],
                 [branch(two, 2, 1), branch(one, 2, 2), branch(two, 2, 3)]):  # fmt: skip
        batch = pack(pair, share_prefixes=True)
        assert batch.prompt_of is None
        assert_documents_are(batch, pair)
    assert batch.image_index is not None and batch.image_index.tolist() == [0, 1, 2, 0, 1]


SAMPLES = [Sample(id=str(number), task="vqa") for number in range(3)]
TOKENS = st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=1, max_size=6)
"""Ids with the flag of being learned; few different ones, so that beginnings agree often."""


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SAMPLES), TOKENS), min_size=1, max_size=12))
def test_trees_hold_every_item_as_it_was(drawn: list[tuple[Sample, list[tuple[int, bool]]]]) -> None:
    texts = []
    for sample, tokens in drawn:
        ids, learned = (np.array(part) for part in zip(*tokens, strict=True))
        positions = np.broadcast_to(np.arange(len(ids)), (3, len(ids)))
        texts.append(Document(ids, np.where(learned, ids, IGNORE_INDEX), positions, {}, {}, sample, 0))
    batch = pack(texts, share_prefixes=True)
    assert_documents_are(batch, texts)
    assert batch.labels is not None
    for prompt in set([] if batch.prompt_of is None else batch.prompt_of.tolist()) - {-1}:
        start, stop = batch.cu_seqlens[prompt : prompt + 2].tolist()
        assert (batch.labels[start:stop] == IGNORE_INDEX).all()
