"""Invariant 7: another order of the documents of a pack gives the outputs in that order.

And an image's features land on its own document only.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models import MedMO

SHAPES = [[(4, 4)], [], [(4, 4), (2, 6)], [(4, 4)], [(2, 6)], []]
ORDERS = [(5, 4, 3, 2, 1, 0), (2, 0, 4, 1, 5, 3)]


@pytest.fixture(scope="module")
def items(toy: Any) -> list[Document]:
    """Pairs of documents about the same images, which share their prompt where that is asked for."""
    prompts = [toy.prompt(f"doc-{i}", grids, text=3 + i, seed=i) for i, grids in enumerate(SHAPES)]
    return [toy.extend(prompt, 1, 2 + i + turn) for i, prompt in enumerate(prompts) for turn in range(2)]


@pytest.fixture(scope="module")
def model(toy: Any) -> MedMO:
    return toy.model()


def answers(model: MedMO, batch: Batch) -> dict[str, Tensor]:
    """Return the log-probabilities of the learned tokens by document, prompts left out."""
    assert batch.labels is not None
    with torch.no_grad():
        logps = model.token_logprobs(batch)
    counts = [int((labels != -100).sum()) for labels in batch.labels.split(batch.lengths())]
    found: dict[str, Tensor] = {}
    for name, values in zip(batch.sample_ids, logps.split(counts), strict=True):
        if len(values):
            found[f"{name}/{len(values)}"] = values
    assert len(found) == 2 * len(SHAPES)
    return found


def assert_same_answers(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0.0, atol=1e-12, msg=name)


@pytest.mark.parametrize("share", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_another_order_gives_the_same_outputs(
    model: MedMO, items: list[Document], order: Sequence[int], share: bool
) -> None:
    turned = [items[2 * document + turn] for document in order for turn in (1, 0)]
    assert_same_answers(answers(model, pack(turned, share)), answers(model, pack(items, share)))


def with_bright_patch(items: list[Document], document: int) -> list[Document]:
    """Return the items with one patch of one document's first image turned white."""
    bright = items[2 * document].patches["qwen3_vl"].copy()
    bright[0] = 255
    return [
        replace(item, patches={"qwen3_vl": bright}) if index // 2 == document else item
        for index, item in enumerate(items)
    ]


def assert_only(changed: int, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that the answers of one document, and of no other, are different."""
    for name, values in expected.items():
        moved = float((found[name] - values).abs().max())
        assert (moved > 1e-4) if name.startswith(f"doc-{changed}/") else (moved < 1e-12), (name, moved)


@pytest.mark.parametrize("share", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("document", [i for i, grids in enumerate(SHAPES) if grids])
def test_a_bright_patch_is_seen_by_its_own_document_only(
    model: MedMO, items: list[Document], document: int, share: bool
) -> None:
    dark = [replace(i, patches={k: np.zeros_like(v) for k, v in i.patches.items()}) for i in items[::2]]
    pairs = [replace(item, patches=dark[index // 2].patches) for index, item in enumerate(items)]
    changed = with_bright_patch(pairs, document)
    assert_only(document, answers(model, pack(changed, share)), answers(model, pack(pairs, share)))


def test_images_of_equal_size_on_the_wrong_documents_are_noticed(model: MedMO, items: list[Document]) -> None:
    """Images 0 and 3 of the batch are of one size: shown in each other's place they fit all the same."""
    batch = pack(items, share_prefixes=True)
    swapped = replace(batch, image_index=torch.tensor([3, 1, 2, 0, 4]))
    with pytest.raises(AssertionError):
        assert_same_answers(answers(model, swapped), answers(model, batch))
    bright = pack(with_bright_patch(items, 0), share_prefixes=True)
    with pytest.raises(AssertionError):
        assert_only(0, answers(model, replace(bright, image_index=swapped.image_index)), answers(model, swapped))
