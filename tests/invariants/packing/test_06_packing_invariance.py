"""Invariant 6: loss and gradients do not depend on how documents are packed, and ambiguous packs are refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack


@pytest.fixture(scope="module")
def items(toy: Any) -> list[Document]:
    """Documents of several lengths: text alone, one image, several of different sizes."""
    shapes = [[], [(4, 4)], [(2, 2), (4, 6)], [], [(6, 2)], [(4, 4)]]
    prompts = [toy.prompt(f"doc-{i}", grids, text=2 + 3 * i, seed=i) for i, grids in enumerate(shapes)]
    return [toy.extend(prompt, 2, 3 + i, seed=i) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("sizes", [(6,), (2, 4), (3, 3)], ids=str)
def test_loss_and_gradients_do_not_depend_on_the_packing(
    toy: Any, items: list[Document], sizes: tuple[int, ...], tied: bool
) -> None:
    left = list(items)
    batches = [pack([left.pop(0) for _ in range(size)]) for size in sizes]
    toy.assert_equals_separate_rows(toy.model(tied=tied), items, batches)


def test_documents_that_see_one_another_are_noticed(
    toy: Any, items: list[Document], blind_batch: Callable[[], None]
) -> None:
    """Positions restart but no boundary says so: attention would run across the documents."""
    packed = pack(items)
    blind_batch()
    merged = replace(packed, cu_seqlens=packed.cu_seqlens[[0, -1]])
    with pytest.raises(AssertionError):
        toy.assert_equals_separate_rows(toy.model(), items, [merged])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda b: {"cu_seqlens": b.cu_seqlens[[0, 2, 3, 4, 5, 6]]}, "doc-0: positions fall from .* need a boundary"),
        (lambda b: {"cu_seqlens": b.cu_seqlens[:-1]}, "cu_seqlens must rise from 0 to"),
        (lambda b: {"cu_seqlens": b.cu_seqlens + 1}, "cu_seqlens must rise from 0 to"),
        (lambda b: {"cu_seqlens": b.cu_seqlens[[0, 1, 1, 2, 3, 4, 5, 6]]}, "cu_seqlens must rise .* with every doc"),
        (lambda b: {"cu_seqlens": torch.cat([b.cu_seqlens[:1], b.cu_seqlens[:1] + 2, b.cu_seqlens[1:]])},
         r"doc-1: its positions begin at \[2, 2, 2\], expected 0"),
        (lambda b: {"position_ids": torch.arange(b.num_tokens).expand(3, -1)}, "doc-1: its positions begin at"),
        (lambda b: {"position_ids": b.position_ids[:1]}, "position_ids must be"),
        (lambda b: {"prompt_of": torch.tensor([-1, 0, 0, -1, -1, -1])}, r"doc-1: .* expected 7.* from their prompt"),
        (lambda b: {"prompt_of": torch.tensor([-1, 0])}, r"prompt_of must be \(6,\)"),
        (lambda b: {"prompt_of": torch.tensor([-1, 3, -1, -1, -1, -1])}, "must follow their prompt directly"),
    ],
    ids=["missing", "early-end", "late-start", "empty", "cut", "running-positions", "one-axis", "branch", "short",
         "later-prompt"],
)  # fmt: skip
def test_a_pack_that_contradicts_itself_is_refused(
    items: list[Document], changes: Callable[[Batch], dict[str, Any]], message: str
) -> None:
    batch = pack(items)
    with pytest.raises(ValueError, match=message):
        replace(batch, **changes(batch))
