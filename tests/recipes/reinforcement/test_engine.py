"""The engine in place: requests in order, samples of their own, and the same in processes that share a model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medmo_core.data.packing import pack
from medmo_core.data.sources.jsonl import load_jsonl
from medmo_core.generation.kv_cache import KVCache
from medmo_core.inference.kit import Kit
from medmo_core.models import Generation, MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.reinforcement.engine import InPlaceEngine, Request, RolloutEngine
from medmo_recipes.settings.run_config import Rollout
from medmo_recipes.training.distributed.sharding import prepare
from medmo_recipes.training.distributed.world import connect
from medmo_recipes.training.model.kit import load_kit

CONFIG = CONFIGS["debug_reinforce"]().change(model={"dtype": "float64"})
ROLLOUT = Rollout(num_generations=3, max_new_tokens=9, rows_per_pass=4)
STOPS = tuple(range(0, 512, 9))
"""So that answers end early, one in nine tokens."""


@pytest.fixture
def kit() -> Kit:
    return load_kit(CONFIG, "cpu")


@pytest.fixture
def requests(kit: Kit, own_data: Path) -> list[Request]:
    samples = [sample for sample in load_jsonl(own_data, own_data.parent) if sample.task in ("vqa", "grounding")]
    prompts = [kit.processor.encode(sample, for_generation=True) for sample in samples[:5]]
    return [Request(f"{prompt.sample.id}#{number}", prompt) for number, prompt in enumerate(prompts)]


def assert_same(found: Sequence[Sequence[Generation]], expected: Sequence[Sequence[Generation]]) -> None:
    for group, other in zip(found, expected, strict=True):
        for one, two in zip(group, other, strict=True):
            assert replace(one, logps=[]) == replace(two, logps=[])
            assert one.logps == pytest.approx(two.logps, abs=1e-11)


def test_what_is_asked_beside_a_request_and_how_many_rows_there_are_changes_nothing(
    kit: Kit, requests: list[Request]
) -> None:
    engine: RolloutEngine = InPlaceEngine(kit.model, STOPS)
    together = engine.sample(requests, ROLLOUT, seed=7)
    assert [len(group) for group in together] == [3] * 5
    assert len({len(g.tokens) for group in together for g in group}) > 3, "the answers must end at different steps"
    assert_same(engine.sample(requests[::-1], ROLLOUT, seed=7)[::-1], together)
    assert_same(engine.sample(requests[3:4], replace(ROLLOUT, rows_per_pass=1), seed=7), together[3:4])
    assert engine.sample(requests[3:4], ROLLOUT, seed=8) != together[3:4]
    renamed = [replace(requests[3], name="another draw of it")]
    assert engine.sample(renamed, ROLLOUT, seed=7)[0][0].tokens != together[3][0].tokens


def test_rows_and_settings_of_the_rollout_are_kept(
    kit: Kit, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    look_back = KVCache.look_back

    def counting(self: KVCache, layer: int, q: torch.Tensor) -> torch.Tensor:
        rows.append(q.shape[0])
        return look_back(self, layer, q)

    monkeypatch.setattr(KVCache, "look_back", counting)
    engine = InPlaceEngine(kit.model, ())
    engine.sample(requests, ROLLOUT, seed=0)
    assert max(rows) == ROLLOUT.rows_per_pass
    [group] = engine.sample(requests[:1], replace(ROLLOUT, top_k=1), seed=0)
    assert len({tuple(generation.tokens) for generation in group}) == 1, "the likeliest token, each time"


def test_stop_tokens_are_the_models_unless_given(kit: Kit, requests: list[Request]) -> None:
    model, rollout = kit.model, replace(ROLLOUT, max_new_tokens=3)
    with torch.no_grad():
        model.head_weight[model.config.eos_token_id] = (
            1e3 * model.hidden_states(pack([request.prompt for request in requests]))[-1]
        )
    last = InPlaceEngine(model).sample(requests, rollout, seed=0)[-1]
    assert [generation.stop_token for generation in last] == [model.config.eos_token_id] * 3
    assert not any(g.finished for g in InPlaceEngine(model, ()).sample(requests, rollout, seed=0)[-1])


def test_a_name_used_twice_is_refused(kit: Kit, requests: list[Request]) -> None:
    twice = [requests[0], requests[1], replace(requests[2], name=requests[0].name)]
    with pytest.raises(ValueError, match="requests named q0#0 occur twice"):
        InPlaceEngine(kit.model).sample(twice, ROLLOUT, seed=0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the patches that go through the vision tower."""
    counts: list[int] = []
    forward = MedMO.hidden_states

    def counting(self: MedMO, batch: Any, *arguments: Any, **options: Any) -> Any:
        counts.append(sum(rows.shape[0] for rows in batch.patches.values()))
        return forward(self, batch, *arguments, **options)

    monkeypatch.setattr(MedMO, "hidden_states", counting)
    yield counts


def test_a_prompts_images_are_encoded_once_for_its_group(kit: Kit, requests: list[Request], encoded: list[int]) -> None:
    InPlaceEngine(kit.model, STOPS).sample(requests, ROLLOUT, seed=0)
    assert len(encoded) > 1, "in more than one portion"
    assert sum(encoded) == sum(len(rows) for request in requests for rows in request.prompt.patches.values())


def test_sharded_processes_with_unequal_shares_sample_what_one_process_does(
    kit: Kit, requests: list[Request], run_processes: Callable[..., list[Any]]
) -> None:
    """One has nothing to ask, as where all of its prompts could not be read, and takes part all the same."""
    expected = InPlaceEngine(kit.model, STOPS).sample(requests, ROLLOUT, seed=7)

    def work() -> list[list[list[Generation]]]:
        with connect("cpu", shard=True) as world:
            sharded = load_kit(CONFIG, world.device)
            prepare(sharded.model, CONFIG.change(parallel={"shard": True}), world)
            engine = InPlaceEngine(sharded.model, STOPS)
            shares = [requests[:3], requests[3:]], [requests, []]
            return [engine.sample(share[world.rank], ROLLOUT, seed=7) for share in shares]

    first, second = run_processes(work)
    assert_same(first[0] + second[0], expected)
    assert_same(first[1], expected)
    assert second[1] == []
