"""Whole steps beside transformers' model: the same work on both sides, or no figure; and what the listing promises."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import bench_recipes
from benchmarks.recipes import documents, grpo_step, grpo_update, layouts, rollout, scaling, sft_step, shared_prefix
from benchmarks.suite.comparison import OURS, measure
from benchmarks.suite.schema import Row
from medmo_core.data.packing import pack
from medmo_core.models import MedMO
from medmo_core.models.config import PRESETS

CPU = torch.device("cpu")
MODULES = (sft_step, shared_prefix, grpo_step, grpo_update, rollout, scaling)


def rows_of(module: Any, subject: str | None = None) -> dict[tuple[str, str], Row]:
    """Measure the first short comparison of a module; (way, direction) -> row."""
    first = next(c for c in module.comparisons(CPU, short=True) if subject in (None, c.subject))
    return {(row.way, row.direction): row for row in measure(replace(first, seconds=0.0), CPU)}


@pytest.fixture
def darkens(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Hand transformers' model black images in a module."""

    def dark(module: Any) -> None:
        honest = documents.padded

        def padded(*arguments: Any) -> dict[str, torch.Tensor]:
            inputs = honest(*arguments)
            return inputs | {"pixel_values": torch.zeros_like(inputs["pixel_values"])}

        monkeypatch.setattr(module, "padded", padded)

    return dark


@pytest.mark.parametrize("wrong", [False, True])
def test_an_sft_step(darkens: Callable[[Any], None], wrong: bool) -> None:
    pytest.importorskip("transformers")
    if wrong:
        darkens(sft_step)
    rows = rows_of(sft_step)
    assert rows[OURS, "step"].status == "timed" and rows[OURS, "step"].items == 184
    peers = [row for (way, _), row in rows.items() if way != OURS and row.status != "absent"]
    assert len(peers) == 2 and {row.status for row in peers} == {"wrong" if wrong else "timed"}


def test_documents_are_as_long_as_they_say_and_rows_are_padded() -> None:
    for size in (sft_step.SIZES["cpu"], sft_step.SIZES["short"]):
        config = size.model(CPU).config
        items = size.items(config)
        batch, rows = pack(items), documents.padded(items, config, torch.float32)
        assert batch.num_tokens == size.tokens == int(rows["attention_mask"].sum())
        assert rows["input_ids"].shape == (len(items), max(document.length for document in size.documents))
        assert int((rows["labels"] >= 0).sum()) == size.targets
        assert len(rows["pixel_values"]) == len(batch.patches["qwen3_vl"])


@pytest.mark.parametrize("wrong", [False, True])
def test_a_grpo_step(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    pytest.importorskip("transformers")
    if wrong:  # the peer is handed other completions
        honest = grpo_step.TheirSide.__init__

        def other(self: grpo_step.TheirSide, *arguments: Any) -> None:
            with monkeypatch.context() as context:
                context.setattr(grpo_step.Size, "make_completions", lambda *_: [[[5, 6, 7], [8, 9, 1]]])
                honest(self, *arguments)

        monkeypatch.setattr(grpo_step.TheirSide, "__init__", other)
    rows = rows_of(grpo_step)
    ours = {direction: row.status for (way, direction), row in rows.items() if way == OURS}
    assert ours == dict.fromkeys(("step", "rollout", "update", "reward"), "timed")
    theirs = {direction: row.status for (way, direction), row in rows.items() if way != OURS}
    if wrong:
        assert set(theirs.values()) == {"wrong"}
    else:
        assert theirs == dict.fromkeys(("step", "rollout", "update"), "timed")


def test_a_sampler_with_other_weights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = grpo_step.InPlaceEngine.sample

    def other(self: grpo_step.InPlaceEngine, *arguments: Any, **named: Any) -> Any:
        torch.manual_seed(1)
        return sample(grpo_step.InPlaceEngine(MedMO.from_config("debug"), ()), *arguments, **named)

    monkeypatch.setattr(grpo_step.InPlaceEngine, "sample", other)
    rows = rows_of(grpo_step)
    assert rows[OURS, "step"].status == "wrong" and "log-probabilities of a plain pass" in rows[OURS, "step"].reason


@pytest.mark.parametrize("wrong", [False, True])
def test_the_loss_at_a_place_of_a_curve(darkens: Callable[[Any], None], wrong: bool) -> None:
    pytest.importorskip("transformers")
    if wrong:
        darkens(scaling)
    (ours,), (theirs,) = (
        [row for (way, _), row in rows_of(scaling, "loss").items() if (way == OURS) is mine] for mine in (True, False)
    )
    assert ours.status == "timed" and ours.axis == "tokens" and ours.at == ours.items == 48
    assert theirs.status == ("wrong" if wrong else "timed")


@pytest.fixture
def builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to build a model or a prompt, in every module that looks up `make_prompt`."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model or a prompt was built")

    monkeypatch.setattr(MedMO, "from_config", refuse)
    loaded = [module for name, module in sys.modules.items() if name.startswith("benchmarks.recipes.")]
    drawing = [module for module in loaded if hasattr(module, "make_prompt")]
    assert {documents, layouts, sft_step, grpo_step, rollout, scaling} <= {*drawing}
    for module in drawing:
        monkeypatch.setattr(module, "make_prompt", refuse)


@pytest.mark.usefixtures("builds_nothing")
def test_a_model_or_a_prompt_that_is_built_is_noticed() -> None:
    size = sft_step.SIZES["cpu"]
    for build in (lambda: size.model(CPU), lambda: size.items(PRESETS["debug"])):
        with pytest.raises(AssertionError, match="a model or a prompt was built"):
            build()


@pytest.mark.usefixtures("builds_nothing")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_listing_builds_nothing_and_curves_have_points(device: str) -> None:
    found = [one for module in MODULES for one in module.comparisons(torch.device(device), short=False)]
    assert all([way.name for way in one.ways].count(OURS) == 1 and len(one.ways) > 1 for one in found)
    assert len({f"{one.name} {one.dtype}" for one in found}) == len(found)
    points = Counter(one.axis for one in found)
    assert {axis: points[axis] for axis in ("tokens", "images", "group size", "boxes")} == {
        axis: {"cpu": 3, "cuda": 4}[device] if axis in ("tokens", "images") else 4
        for axis in ("tokens", "images", "group size", "boxes")
    }


@pytest.mark.parametrize("short", [False, True])
def test_places_are_told_apart(short: bool) -> None:
    found: Sequence[Any] = bench_recipes.comparisons(CPU, short=short)
    names = [f"{one.name} {one.dtype}" for one in found]
    assert len(set(names)) == len(names) > len(MODULES)
