"""Rollouts: all ways give the answers that they must, and one that does not has no figure."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from benchmarks.recipes import rollout as b
from benchmarks.recipes.agreement import check_greedy, check_logps, plain_pass
from benchmarks.recipes.layouts import EACH_ROW, ENCODED_ONCE, NARROW, OURS, LayoutShape
from benchmarks.suite.comparison import Comparison, measure
from benchmarks.suite.schema import Row
from medmo_core.models import MedMO
from medmo_core.modules import KVCache

CPU = torch.device("cpu")
SHAPE = LayoutShape("debug", torch.float32, 2, 3, side=4, changes=NARROW)
UNEVEN = b.Uneven(SHAPE, prompts=6, prompt_length=8, longest=9, rows=4, stop_share=4)


def rows_of(comparison: Comparison) -> dict[str, Row]:
    """Measure a comparison; way -> row."""
    return {row.way: row for row in measure(replace(comparison, seconds=0.0), CPU)}


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Collect the number of rows of every step of a decoder."""
    rows: list[int] = []
    advance = KVCache.advance

    def counting(self: KVCache) -> None:
        rows.append(self.own[0][0].shape[0])
        advance(self)

    with patch.object(KVCache, "advance", counting):
        yield rows


def test_ways_of_one_prompt_agree_and_are_timed() -> None:
    rows = rows_of(b.compare_prefill(SHAPE, CPU))
    assert list(rows) == [OURS, EACH_ROW, ENCODED_ONCE]
    assert all(row.status == "timed" and row.items == 6 for row in rows.values()), rows


def test_another_image_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = b.unshared
    monkeypatch.setattr(b, "unshared", lambda item: replace(
        honest(item), patches={name: 0 * rows for name, rows in item.patches.items()}))  # fmt: skip
    rows = rows_of(b.compare_prefill(SHAPE, CPU))
    assert {name: row.status for name, row in rows.items()} == {OURS: "timed", EACH_ROW: "wrong", ENCODED_ONCE: "timed"}


def test_the_plain_pass_knows_greedy_tokens_and_their_log_probabilities() -> None:
    shape = SHAPE.small
    model = shape.model(CPU).eval()
    answers = b.prefill(shape, model, OURS, 0.0)()[0]
    tokens, logps = [answer.tokens for answer in answers], [logp for answer in answers for logp in answer.logps]
    scored = plain_pass(model, [shape.prompt(model)], [tokens])
    assert check_greedy(scored, shape.dtype).error == 0 and check_logps(scored, logps, shape.dtype).error < 1e-12
    others = [[*answer[:-1], (answer[-1] + 1) % 100] for answer in tokens]
    scored = plain_pass(model, [shape.prompt(model)], [others])
    assert check_greedy(scored, shape.dtype).error == pytest.approx(1 / 3)
    assert not check_logps(scored, logps, shape.dtype).passed


def test_refilled_rows_give_the_same_answers_in_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(b.compare_refill(UNEVEN, CPU))
    assert list(rows) == [OURS, b.FIXED]
    assert all(row.status == "timed" and row.items == 12 and row.unit == "answers" for row in rows.values()), rows
    model, steps = SHAPE.model(CPU).eval(), {}
    for way in rows:
        call = UNEVEN.sampling(model, way)
        with counted_steps() as counted:
            call()
        steps[way] = len(counted)
    assert steps[OURS] < steps[b.FIXED]

    honest = b.Uneven.requests

    def renamed(self: b.Uneven, model: MedMO) -> list[Any]:
        return [replace(request, name=f"other {request.name}") for request in honest(self, model)]

    sampling = b.Uneven.sampling

    def other(self: b.Uneven, model: MedMO, way: str) -> Any:
        with monkeypatch.context() as context:
            if way == b.FIXED:
                context.setattr(b.Uneven, "requests", renamed)
            return sampling(self, model, way)

    monkeypatch.setattr(b.Uneven, "sampling", other)
    rows = rows_of(b.compare_refill(UNEVEN, CPU))
    assert all(row.status == "wrong" and "answers of" in row.reason for row in rows.values())
