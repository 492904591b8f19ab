"""Images of documents: where they end, how often they enter a batch, and what stands in for their pixels."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import IGNORE_INDEX, PatchSpec
from medmo_core.data.document import Document
from medmo_core.data.packing import pack, prefix_trees
from medmo_core.data.processor import Processor
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.profile import QWEN3_VL

embedded = cache(Tokenizer.embedded)


def document(root: Path, **fields: Any) -> Document:
    """Encode one sample about pictures of 64 x 32 px, which are two visual tokens each."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((32, 64, 3), dtype=np.uint8)).save(root / name)
    specs = {"qwen3_vl": PatchSpec(16, 2, 2)}
    processor = Processor(embedded(), specs, QWEN3_VL, min_pixels=1, max_pixels=10**6, root=root)
    return processor.encode(sample_from_json({"id": "s", "question": "Where?", "answer": "here", **fields}))


@pytest.mark.parametrize(("images", "count"), [([], 0), (["a.png"], 2), (["a.png", "b.png"], 4)])
def test_it_is_the_place_behind_the_last_visual_token(tmp_path: Path, images: list[str], count: int) -> None:
    item = document(tmp_path, **({"images": images} if images else {}))
    visual = [place for place, token in enumerate(item.input_ids) if token == embedded().image_token_id]
    assert len(visual) == count
    assert item.visual_end == (visual[-1] + 1 if visual else 0)


def cut_behind_the_images(item: Document, more: int, seed: int) -> Document:
    """Return an item whose text goes on with random tokens `more` places behind its last visual one."""
    ids, labels = item.input_ids.copy(), np.full_like(item.input_ids, IGNORE_INDEX)
    first = item.visual_end + more
    ids[first:] = 300 + seed
    labels[-1] = ids[-1]
    return replace(item, input_ids=ids, labels=labels)


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_what_is_shared_holds_every_visual_token(tmp_path: Path, more: int) -> None:
    """Items that begin to differ at the last visual token share nothing; from the one behind it they share all before.

    The end of the images is the least a prompt may have.
    """
    item = document(tmp_path, image="a.png")
    pair = [cut_behind_the_images(item, more, seed) for seed in (0, 1)]
    expected = [item.visual_end + more] if more >= 0 else [0, 0]
    assert [tree.prefix for tree in prefix_trees(pair)] == expected
    batch = pack(pair, share_prefixes=True)
    assert (batch.prompt_of is None) == (more < 0)
    assert batch.num_tokens == 2 * len(item.input_ids) - expected[0]


def test_every_set_of_images_enters_once_however_many_there_are(tmp_path: Path) -> None:
    """Numbers of images go on from all before them."""
    one, two, three = (document(tmp_path, images=names) for names in (["a.png"], ["a.png", "b.png"], ["b.png"]))
    batch = pack([one, two, three, two, three, one])
    assert batch.image_index is not None
    assert batch.image_index.tolist() == [0, 1, 2, 3, 1, 2, 3, 0]
    assert batch.image_grid_thw["qwen3_vl"].tolist() == [[1, 2, 4]] * 4


def test_neighbours_without_a_common_beginning_stay_apart_beside_some_that_share(tmp_path: Path) -> None:
    item = document(tmp_path, image="a.png")
    other = document(tmp_path, image="b.png")
    apart = [cut_behind_the_images(item, -1, seed) for seed in (0, 1)]
    items = [*apart, *(cut_behind_the_images(other, 1, seed) for seed in (0, 1))]
    batch = pack(items, share_prefixes=True)
    assert batch.prompt_of is not None and batch.prompt_of.tolist() == [-1, -1, -1, 2, 2]
    assert batch.lengths()[:2] == [len(item.input_ids)] * 2
    assert [len(tree.items) for tree in prefix_trees(items)] == [1, 1, 2]


def test_an_outline_is_black(tmp_path: Path) -> None:
    document(tmp_path)  # makes the pictures
    specs = {"qwen3_vl": PatchSpec(16, 2, 2)}
    processor = Processor(embedded(), specs, QWEN3_VL, min_pixels=1, max_pixels=10**6, root=tmp_path)
    given = sample_from_json({"id": "s", "image": "a.png", "question": "Where?", "answer": "here"})
    outline = processor.encode(given, pixels=False)
    assert not outline.patches["qwen3_vl"].any() and outline.patches["qwen3_vl"].shape == (8, 768)
