"""Learning from many answers to one prompt: all layouts are the same work, and one that is not has no figure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.recipes import grpo_update, layouts, shared_prefix
from benchmarks.recipes.documents import answered, make_answers, unshared
from benchmarks.recipes.layouts import EACH_ROW, ENCODED_ONCE, OURS, LayoutShape, Learning
from benchmarks.suite.comparison import measure
from benchmarks.suite.schema import Row
from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.models import MedMO
from medmo_recipes.reinforcement.completions import PolicyBatch

CPU = torch.device("cpu")
SHAPE = LayoutShape("debug", torch.float32, 2, 3, side=4, changes=layouts.NARROW)


def measured(learning: Learning, **changes: Any) -> dict[str, Row]:
    """Measure a small comparison; way -> row."""
    comparison = layouts.compare_layouts("a test", replace(learning, **changes), SHAPE, CPU, seconds=0.0)
    return {row.way: row for row in measure(comparison, CPU)}


def test_a_shared_prompt_is_one_document_with_branches() -> None:
    model = SHAPE.model(CPU)
    items = answered(SHAPE.prompt(model), make_answers(model.config, 2, 3))
    shared, once = (shared_prefix.lay_out(items, share) for share in (True, False))
    each = shared_prefix.lay_out([unshared(item) for item in items], False)
    assert [batch.num_tokens for batch in (shared, each, once)] == [32, 58, 58]
    assert [len(batch.image_grid_thw["qwen3_vl"]) for batch in (shared, each, once)] == [1, 2, 1]
    assert shared.prompt_of is not None and each.prompt_of is None


@pytest.mark.parametrize("learning", [shared_prefix.SUPERVISED, grpo_update.GRPO], ids=["supervised", "grpo"])
def test_all_ways_agree_and_are_timed(learning: Learning) -> None:
    rows = measured(learning)
    assert list(rows) == [OURS, EACH_ROW, ENCODED_ONCE]
    for row in rows.values():
        assert row.status == "timed" and row.items == 6 and row.unit == "tokens", row.reason
        assert row.checked is not None and row.checked.error < 1e-5


def test_other_advantages_in_rows_are_noticed() -> None:
    def flipped(items: Sequence[Document], share: bool) -> PolicyBatch:
        laid = grpo_update.lay_out(items, share)
        return laid if share else replace(laid, advantages=laid.advantages.flip(0))

    rows = measured(grpo_update.GRPO, lay_out=flipped)
    assert {name: row.status for name, row in rows.items()} == {OURS: "wrong", EACH_ROW: "wrong", ENCODED_ONCE: "timed"}
    assert "float64" in rows[OURS].reason


def test_a_difference_in_what_is_timed_alone_is_noticed() -> None:
    def louder(model: MedMO, batch: Batch) -> Tensor:
        loss = model.loss(batch) * (1.1 if batch.prompt_of is not None else 1.0)
        loss.backward()
        return loss.detach()

    rows = measured(shared_prefix.SUPERVISED, step=louder)
    assert rows[OURS].status == "wrong" and "as timed" in rows[OURS].reason and "off by 0.1" in rows[OURS].reason
